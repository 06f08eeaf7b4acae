"""Muon, a training that was stopped, and the checkpoint that comes of one."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

import numpy as np
from torch import nn

from export.checkpoint import load_networks, read_weights
from export.lora import attach, read_adapter
from export.modules.layers import Linear
from filmstrip.runtime.text import Tokenizer
from research.autoencoder import scaled, train_decoder, trained_autoencoder
from research.checkpoint_folder import trained_networks, write_checkpoint
from research.checkpoints import Budget
from research.encoded import tokens_of
from research.generator import FILE_NAME, new_generator, train_generator
from research.lora import train_lora
from research.muon import Muon, orthogonalised
from research.samples import Sampler
from research.self_context import train_on_own
from research.vace import train_vace
from tests.research.small import linked, small
from tests.support.toyworld.grammar import VOCABULARY, caption, random_scene


def weights(folder: Path, name: str = FILE_NAME) -> dict[str, torch.Tensor]:
    state = torch.load(folder / name, weights_only=True)
    network = next(iter(state["modules"]))
    parts = {"now": state["modules"][network], "average": state["averages"][network]}
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


def vace(*args, **more):
    return train_vace(*args, base_state=FILE_NAME, **more)


def lora(*args, **more):
    return train_lora(*args, base_state=FILE_NAME, **more)


STATES = {train_generator: FILE_NAME, train_on_own: "self-context.pt", vace: "vace.pt", lora: "lora.pt"}


@pytest.mark.parametrize("stage", STATES)
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stage
):
    monkeypatch.setattr("research.self_context._CLIPS_A_ROLLOUT", 2)
    settings = scaled(small(), folder)
    whole, stopped = (linked(tmp_path / name, folder) for name in ("whole", "stopped"))
    if stage is not train_generator:
        for one in (whole, stopped):
            train_generator(one, settings, Budget(steps=1))
    name = STATES[stage]
    stage(whole, settings, Budget(steps=2))
    # Over its first steps the rate does not depend on the budget.
    stage(stopped, settings, Budget(steps=1))
    begun = weights(stopped, name)
    stage(stopped, settings, Budget(steps=2))
    expected, got = weights(whole, name), weights(stopped, name)
    assert any(not torch.equal(begun[key], got[key]) for key in got)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=1e-7, rtol=0)


def test_a_new_text_encoder_tells_whose_colour_is_whose():
    texts = ["a red circle moving up on a blue background", "a blue circle moving up on a red background"]
    tokens = tokens_of(texts, 24)
    encoder = new_generator(small(), 0).text_encoder
    first, second = (encoder(*(torch.from_numpy(part)[None] for part in tokens[text]))[0] for text in texts)
    red, same_red = first[1], second[7]
    assert (red - same_red).norm() > 0.1 * red.norm()


def test_a_decoder_is_trained_on_and_the_latents_stay(tmp_path: Path, folder: Path):
    training = linked(tmp_path / "training", folder)
    encoder, decoder = trained_autoencoder(training, small())
    train_decoder(training, small(), Budget(steps=2))
    same, other = trained_autoencoder(training, small())
    pixels = torch.zeros(1, 3, 9, 64, 64)
    with torch.inference_mode():
        latents = encoder(pixels)[0]
        assert torch.equal(same(pixels)[0], latents)
        assert not torch.equal(other(latents)[0], decoder(latents)[0])


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


def test_a_written_checkpoint_has_the_branch_and_the_lora_of_the_stages(tmp_path: Path, folder: Path):
    settings = small()
    training = linked(tmp_path / "training", folder)
    for train in (train_generator, vace, lora):
        train(training, scaled(settings, training), Budget(steps=2))
    out = tmp_path / "checkpoint"
    write_checkpoint(out, training, settings, FILE_NAME)
    read, trained = load_networks(out), trained_networks(training, settings, FILE_NAME)
    assert read.vace is not None
    assert trained.vace is not None
    expected = trained.vace.state_dict()
    assert expected["vace_blocks.0.after_proj.weight"].abs().max() > 0
    for name, value in read.vace.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=2e-3, rtol=2e-3)
    layers = [name for name, layer in read.transformer.named_modules() if isinstance(layer, Linear)]
    adapter = read_adapter("outlines", read_weights(out / "loras" / "outlines.safetensors"), layers)
    assert len(adapter.layers) == 3 * 8
    assert any(part.up.abs().max() > 0 for part in adapter.layers.values())
    attach([adapter], read.transformer)
