"""`python -m export longlive`, from a checkpoint on disk to a model's folder that the runtime loads."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")

from click.testing import CliRunner, Result

from export.command import main
from tests.export.checkpoints import WHOLE

ALL = {
    *("text_encoder", "text_kv", "transformer", "vace_text_kv", "vace"),
    *("vae_encoder_image", "vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"),
}
SMALL = {"vace_layers": [], "vae": {**WHOLE["vae"], "type": "tae", "base_dim": 8, "latents_mean": 0, "latents_std": 1}}


def run(checkpoint: Path, repository: Path, *more: str) -> Result:
    """Give the command in this process."""
    given = ["--checkpoint", str(checkpoint), "--id", "tiny", "--size", "32x48", "--repository", str(repository)]
    return CliRunner().invoke(main, ["longlive", *given, *more])
