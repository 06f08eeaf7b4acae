"""The tests can be collected where only `make setup` was run: what needs more is skipped with its reason."""

import subprocess
import sys

from tests.support.server import ROOT


def test_all_tests_are_collected_without_what_the_export_installs() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "tests.support.hide_optional_packages",
        "tests",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "torch is not installed" in done.stdout  # the plugin did hide it
