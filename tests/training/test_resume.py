"""Muon, a training that was stopped, and the checkpoint that comes of one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

import numpy as np
from torch import nn

from export.checkpoint_folder import load_networks
from filmstrip.runtime.tokenizer import Tokenizer
from training.autoencoder import scaled, train_autoencoder, trained_autoencoder
from training.checkpoint_folder import trained_networks, write_checkpoint
from training.checkpoints import Budget
from training.encoded import encode_clips
from training.generator import CLIPS_FOLDER, FILE_NAME, train_generator
from training.grammar import VOCABULARY, caption, random_scene
from training.muon import Muon, orthogonalised
from training.samples import Sampler
from training.self_context import train_on_own
from training.settings import Settings, read_settings

NUM_STEPS = 4


def small() -> Settings:
    """The shipped settings with a network of few parameters and few clips."""
    settings = read_settings()
    values = {
        **settings.checkpoint_values,
        "dim": 48,
        "ffn_dim": 64,
        "num_heads": 2,
        "num_layers": 2,
        "freq_dim": 32,
        "text_dim": 16,
        "in_dim": 4,
        "out_dim": 4,
        "vae": {"type": "tae", "base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "activation": "silu"},
    }
    encoder = {**settings.text_encoder_values, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return replace(
        settings,
        checkpoint_values=values,
        text_encoder_values=encoder,
        autoencoder=replace(settings.autoencoder, batch=1, latent_frames=3),
        generator=replace(settings.generator, batch=2),
        clips=replace(settings.clips, plain=2, plain_anywhere=2, switched=6, switched_anywhere=6, recoloured_pairs=1),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training of few steps, autoencoder and clips."""
    made = tmp_path_factory.mktemp("training")
    train_autoencoder(made, small(), Budget(steps=2))
    settings = scaled(small(), made)
    encoder, _ = trained_autoencoder(made, settings)
    encode_clips(made / CLIPS_FOLDER, encoder, settings.clips, settings.checkpoint.text_len)
    return made


def linked(folder: Path, clips: Path) -> Path:
    folder.mkdir()
    for name in (CLIPS_FOLDER, "autoencoder.pt", "latents.json"):
        (folder / name).symlink_to(clips / name)
    return folder


def weights(folder: Path, name: str = FILE_NAME) -> dict[str, torch.Tensor]:
    state = torch.load(folder / name, weights_only=True)
    parts = {"now": state["modules"]["transformer"], "average": state["averages"]["transformer"]}
    return {f"{which} {key}": value for which, part in parts.items() for key, value in part.items()}


@pytest.mark.parametrize("shape", [(3, 24, 48), (2, 16, 64), (2, 64, 16)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, ...]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, after = (torch.linalg.svdvals(some.float()) for some in (matrices, orthogonalised(matrices)))
    assert before.min() < 0.5 * before.max()
    assert after.min() > 0.6
    assert after.max() < 1.3
    # It is the matrix's own: U V of its singular value decomposition, roughly.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.cosine_similarity((u @ v).flatten(), orthogonalised(matrices).float().flatten(), dim=0) > 0.95


def test_muon_finds_the_least_squares():
    generator = torch.Generator().manual_seed(0)
    wanted, inputs = torch.randn(8, 8, generator=generator), torch.randn(64, 8, generator=generator)
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.1)
    for _ in range(200):
        (inputs @ (weight - wanted)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (weight - wanted).abs().mean() < 0.1 * wanted.abs().mean()


@pytest.mark.parametrize("stage", [train_generator, train_on_own])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path, folder: Path, stage):
    settings = scaled(small(), folder)
    whole, stopped = (linked(tmp_path / name, folder) for name in ("whole", "stopped"))
    if stage is train_on_own:
        for one in (whole, stopped):
            train_generator(one, settings, Budget(steps=1))
    name = {train_generator: FILE_NAME, train_on_own: "self-context.pt"}[stage]
    stage(whole, settings, Budget(steps=NUM_STEPS))
    # Over its first steps the rate does not depend on the budget.
    stage(stopped, settings, Budget(steps=2))
    begun = weights(stopped, name)
    stage(stopped, settings, Budget(steps=NUM_STEPS))
    expected, got = weights(whole, name), weights(stopped, name)
    assert any(not torch.equal(begun[key], got[key]) for key in got)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=1e-7, rtol=0)


def test_a_written_checkpoint_makes_the_videos_of_the_trained_weights(tmp_path: Path, folder: Path):
    settings = small()
    training = linked(tmp_path / "training", folder)
    train_generator(training, scaled(settings, training), Budget(steps=2))
    out = tmp_path / "checkpoint"
    size = write_checkpoint(out, training, settings, FILE_NAME)
    assert size == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    values = json.loads((out / "config.json").read_text())
    assert len(values["vae"]["latents_std"]) == 4
    ids, mask = Tokenizer(out / "text_encoder", 24)("A red circle moving left on a blue background.")
    assert [VOCABULARY[number] for number in ids[0][:10]] == [
        *("a", "red", "circle", "moving", "left", "on", "a", "blue", "background", "</s>")
    ]
    assert mask.sum() == 10
    texts = [caption(random_scene(np.random.default_rng(seed))) for seed in (0, 0, 1)]
    read, trained = Sampler(load_networks(out)), Sampler(trained_networks(training, settings, FILE_NAME))
    frames = read(texts, 0)
    assert frames.shape == (33, 64, 64, 3)
    assert np.abs(frames.astype(int) - trained(texts, 0)).max() <= 8  # the weights were stored in float16
    assert not np.array_equal(frames, read(texts, 1))
