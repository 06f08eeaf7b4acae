"""What the watch over the models' processes makes of dead ones; tests/faults has it at work on a real Triton."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import cast

import psutil
import pytest

from frontend.triton import Triton
from frontend.watch import STUB, ModelWatch, MustRestart
from tests.faults.aftermath import eventually


class QuietTriton:
    """Has not had a generation for long: a good moment for a new start."""

    quiet_s = 1000.0

    def loading(self) -> set[str]:
        return set()

    async def heal(self) -> None:
        pass


async def look() -> None:
    """Take this process for a Triton, whose children are its models' processes."""
    async with ModelWatch(os.getpid(), cast("Triton", QuietTriton())) as watch:
        await watch.look()


@pytest.mark.parametrize(("name", "starts_anew"), [(STUB, True), ("python", False)])
def test_triton_is_started_anew_for_a_dead_model_alone(tmp_path: Path, name: str, *, starts_anew: bool) -> None:
    """Another dead child of it, the guard, holds no memory."""
    program = tmp_path / name
    program.symlink_to(str(shutil.which("true")))
    with subprocess.Popen([program]) as dead:
        eventually(lambda: psutil.Process(dead.pid).status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(MustRestart) if starts_anew else contextlib.nullcontext():
            asyncio.run(look())
