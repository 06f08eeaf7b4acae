"""`python -m deploy.triton` with a stand-in for tritonserver: its flags, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from filmstrip import triton_server
from tests.support.server import ROOT

# What `tritonserver --help` says, before 26.04 and since.
OLD_HELP = "--exit-timeout-secs <integer>"
NEW_HELP = f"{OLD_HELP} --allow-client-shm <boolean>"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "deploy.triton", *words]


@pytest.mark.parametrize(("says", "is_given"), [(OLD_HELP, False), (NEW_HELP, True)])
def test_client_shared_memory_is_allowed_where_triton_asks_for_it(tmp_path: Path, says: str, *, is_given: bool) -> None:
    """A stand-in that prints its flags: no Triton since 26.04 is to be had here."""
    server = tmp_path / "tritonserver"
    server.write_text(f'#!/bin/sh\n[ "$1" = --help ] && echo "{says}" >&2 && exit 1\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    words = command("start", f"--server={server}", "--shm-prefix=filmstrip-test-none-", "--models=/tmp", "--load=a")
    got = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    common = triton_server.flags(
        [Path("/tmp")],
        address="127.0.0.1",
        port=8001,
        shm_prefix="filmstrip-test-none-",
        exit_timeout_s=5,
        models=("a",),
    )
    assert got == common + ["--allow-client-shm=true"] * is_given
    assert not any("restricted" in flag for flag in got)


def test_an_empty_secret_file_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    words = command("start", "--server=true", f"--secret-file={tmp_path / 'secret'}")
    refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "secret is empty" in refused.stderr


def test_what_triton_would_fail_over_silently_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models" / "my model" / "1").mkdir(parents=True)
    for flag, message in {
        f"--models={tmp_path / 'models'}": "my model: the name of a model's folder may only have the letters",
        "--shm-prefix=my prefix": "--shm-prefix may only have the letters A-Z",
    }.items():
        words = command("start", "--server=true", f"--models={ROOT / 'model_repository'}", flag)
        refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert message in refused.stderr


def test_without_any_folder_of_models_it_says_so(tmp_path: Path) -> None:
    """The folders count that are there when it starts, not those of the checkout."""
    server = tmp_path / "tritonserver"
    server.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)

    def start() -> subprocess.CompletedProcess[str]:
        words = command("start", f"--server={server}", "--shm-prefix=filmstrip-test-none-")
        paths = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(words, cwd=tmp_path, env=paths, capture_output=True, text=True, check=False)

    refused = start()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "Error: there is no folder model_repository or models here: give --models\n"
    (tmp_path / "models").mkdir()
    assert [flag for flag in start().stdout.splitlines() if "--model-repository" in flag] == [
        "--model-repository=models"
    ]
