"""A checkpoint becomes the states that it was written from, and training goes on from them."""

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from export.errors import BadCheckpoint
from research.autoencoder import scaled, train_decoder
from research.checkpoint_folder import trained_networks, write_checkpoint
from research.checkpoints import Budget
from research.generator import CLIPS_FOLDER, FILE_NAME, train_generator
from research.lora import train_lora, trained_lora
from research.restore import restore
from research.vace import train_vace
from tests.research.small import linked, small


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = linked(tmp_path_factory.mktemp("restore") / "trained", folder)
    settings = scaled(small(), made)
    train_generator(made, settings, Budget(steps=2))
    for train in (train_vace, train_lora):
        train(made, settings, Budget(steps=2), base_state=FILE_NAME)
    return made


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    out = trained.parent / "checkpoint"
    write_checkpoint(out, trained, small(), FILE_NAME)
    return out


def test_all_weights_come_back(tmp_path: Path, trained: Path, checkpoint: Path):
    names = {path.name for path in restore(tmp_path, checkpoint, small())}
    assert names == {"autoencoder.pt", "generator.pt", "vace.pt", "lora.pt"}
    before, after = (trained_networks(folder, small(), FILE_NAME) for folder in (trained, tmp_path))
    for name in ("transformer", "text_kv", "vace", "vace_text_kv", "vae_encoder", "vae_decoder", "text_encoder"):
        expected = getattr(before, name).state_dict()
        for key, value in getattr(after, name).state_dict().items():
            torch.testing.assert_close(value, expected[key], atol=2e-3, rtol=2e-3)
    expected = trained_lora(trained, small())
    assert any(value.abs().max() > 0 for key, value in expected.items() if "lora_B" in key)
    for key, value in trained_lora(tmp_path, small()).items():
        torch.testing.assert_close(value, expected[key])


def test_each_stage_goes_on_from_there(tmp_path: Path, trained: Path, checkpoint: Path):
    restore(tmp_path, checkpoint, small())
    (tmp_path / CLIPS_FOLDER).symlink_to(trained / CLIPS_FOLDER)
    settings = scaled(small(), tmp_path)
    assert train_decoder(tmp_path, small(), Budget(steps=1)).step == 1
    training = train_generator(tmp_path, settings, Budget(steps=1))
    assert training.step == 1
    weights = trained_networks(trained, small(), FILE_NAME).transformer.state_dict()
    for key, value in training.modules["transformer"].state_dict().items():
        assert (value - weights[key]).abs().max() < 0.05  # one step away, not new weights
    for train in (train_vace, train_lora):
        assert train(tmp_path, settings, Budget(steps=1), base_state=FILE_NAME).step == 1


def test_a_branch_that_goes_on_shares_todays_transformer(tmp_path: Path, trained: Path, checkpoint: Path):
    restore(tmp_path, checkpoint, small())
    (tmp_path / CLIPS_FOLDER).symlink_to(trained / CLIPS_FOLDER)
    settings = scaled(small(), tmp_path)
    base = train_generator(tmp_path, settings, Budget(steps=2)).averages("transformer")
    branch = train_vace(tmp_path, settings, Budget(steps=1), base_state=FILE_NAME).modules["vace"].branch
    shared = [name for name, _ in branch.named_parameters() if not name.startswith("vace_")]
    assert "patch_embedding.weight" in shared
    for name in shared:
        assert torch.equal(branch.get_parameter(name), base[name]), name


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, checkpoint: Path):
    (tmp_path / "clips").mkdir()  # of another autoencoder
    with pytest.raises(FileExistsError, match="not empty"):
        restore(tmp_path, checkpoint, small())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, checkpoint: Path):
    settings = small()
    others = (
        replace(settings, checkpoint_values=settings.checkpoint_values | {"num_layers": 4}),
        replace(settings, text_encoder_values=settings.text_encoder_values | {"d_ff": 24}),
        replace(settings, vace_values=settings.vace_values | {"vace_layers": [0]}),
        replace(settings, lora=replace(settings.lora, rank=2)),
    )
    for other in others:
        with pytest.raises(BadCheckpoint, match="is not of these settings"):
            restore(tmp_path / "states", checkpoint, other)
        assert not (tmp_path / "states").exists()
