"""The tiny checkpoint, exported by the command as a user gives it: `python -m tests.models.export.exported FOLDER`."""

import subprocess
import sys
from pathlib import Path

from tests.models.export.checkpoints import WHOLE, write_checkpoint, write_lora
from tests.support.server import ROOT

SIZES = ("64x64", "96x64")
SIDES = ((64, 64), (64, 96))
"""Heights and widths of these sizes."""
LORAS = ("ink", "neon")
FEW_LAYERS = {
    "num_layers": 2,
    "vace_layers": [0],
    "vae": {**WHOLE["vae"], "dim_mult": [1, 2, 2], "temporal_downsample": [True, True]},
    "patch_size": [1, 4, 4],  # a token has 16 x 16 pixels, as with Wan's own
    "vace_in_dim": 24,  # 4 + 4 latent channels and 4 x 4 of the mask
}
"""Each layer takes seconds to translate; one of the two gets hints and the other LoRAs."""


def export_tiny(folder: Path) -> Path:
    """Write `checkpoint/` and LoRAs into a folder and export them into `repository/` beside them, which is returned."""
    write_checkpoint(folder / "checkpoint", **FEW_LAYERS)
    given = ["--checkpoint", str(folder / "checkpoint"), "--id", "tiny", "--repository", str(folder / "repository")]
    for size in SIZES:
        given += ["--size", size]
    for seed, name in enumerate(LORAS):
        given += ["--lora", f"{name}={write_lora(folder / f'{name}.pt', 10 * seed)}"]
    command = [sys.executable, "-m", "export", "longlive", *given]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "export.log").write_text(done.stderr)
    return folder / "repository"


if __name__ == "__main__":
    export_tiny(Path(sys.argv[1]))
