"""A checkpoint becomes the states that it was written from, and training goes on from them."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from tests.training.small import linked, small
from training.autoencoder import scaled, train_decoder
from training.checkpoint_folder import trained_networks, write_checkpoint
from training.checkpoints import Budget
from training.generator import CLIPS_FOLDER, FILE_NAME, train_generator
from training.lora import train_lora, trained_lora
from training.restore import restore
from training.vace import train_vace


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


def test_states_that_are_there_are_not_overwritten(tmp_path: Path, checkpoint: Path):
    restore(tmp_path, checkpoint, small())
    with pytest.raises(FileExistsError, match=r"generator\.pt"):
        restore(tmp_path, checkpoint, small())
