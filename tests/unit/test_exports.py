"""The exports that run beside the tests: what has failed says so, what nobody waits for any more is ended."""

import time
from pathlib import Path

import psutil
import pytest

from tests.support.exports import Exports


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that exports nothing: it fails in a folder `broken`, else it has a child that takes a minute."""
    (tmp_path / "export_of_nothing.py").write_text(
        "import subprocess, sys\n"
        "assert not sys.argv[1].endswith('broken'), 'nothing was made'\n"
        f"subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)', '{tmp_path}'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tests.support.exports.MODULES", {"one": "export_of_nothing"})
    return tmp_path


def command(process: psutil.Process) -> set[str]:
    """Its arguments; none of one that has ended."""
    try:
        return set(process.cmdline())
    except psutil.Error:
        return set()


def test_what_an_export_says_of_its_failure_reaches_the_test_that_waits(fake: Path):
    with Exports({"one": fake / "broken"}) as exports, pytest.raises(AssertionError, match="nothing was made"):
        exports.repository("one")


def test_an_export_ends_with_the_tests_and_so_does_what_it_has_started(fake: Path):
    def children() -> list[psutil.Process]:
        return [one for one in psutil.Process().children(recursive=True) if {"-c", str(fake)} <= command(one)]

    with Exports({"one": fake}):
        deadline = time.monotonic() + 20
        while not (found := children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    psutil.wait_procs(found, timeout=5)
    assert not any(map(command, found))
