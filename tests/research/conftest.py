"""A training's folder that tests begin from."""

from pathlib import Path

import pytest


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training of few steps, autoencoder and clips."""
    pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
    # They import torch.
    from research.autoencoder import scaled, train_autoencoder, trained_autoencoder  # noqa: PLC0415
    from research.checkpoints import Budget  # noqa: PLC0415
    from research.encoded import encode_clips  # noqa: PLC0415
    from research.generator import CLIPS_FOLDER  # noqa: PLC0415
    from tests.research.small import small  # noqa: PLC0415

    made = tmp_path_factory.mktemp("training")
    train_autoencoder(made, small(), Budget(steps=2))
    settings = scaled(small(), made)
    encoder, _ = trained_autoencoder(made, settings)
    encode_clips(made / CLIPS_FOLDER, encoder, settings.clips, settings.checkpoint.text_len)
    return made
