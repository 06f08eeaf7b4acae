"""`python -m tests`: every test, in two processes beside each other.

Tests with servers mostly wait. Those of networks and graphs only calculate, and do so in the time that is left.
"""

import shutil
import subprocess
import sys
import tempfile

CALCULATING = ("tests/models/export", "tests/models/runtime", "tests/research")
PYTEST = (sys.executable, "-m", "pytest")


def main() -> int:
    """Run both, show what the one prints, then what the other has printed; gives the exit code."""
    with tempfile.TemporaryFile("w+") as told:
        beside = subprocess.Popen(("nice", "-n", "10", *PYTEST, *CALCULATING), stdout=told, stderr=subprocess.STDOUT)
        try:
            others = subprocess.run((*PYTEST, *(f"--ignore={folder}" for folder in CALCULATING)), check=False)
            beside.wait()
        finally:
            beside.terminate()  # where this process was interrupted
            beside.wait()
            told.seek(0)
            shutil.copyfileobj(told, sys.stdout)
    return others.returncode or beside.returncode


if __name__ == "__main__":
    sys.exit(main())
