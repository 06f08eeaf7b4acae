import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# A parent that starts a watched child and waits; the child tells its pid and would sleep on.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), flush=True)
child.wait()
"""
CHILD = """
import os, sys, time
sys.path.append(sys.argv[1])
from filmstrip.runtime.triton_model import exit_with_parent
exit_with_parent(period_s=0.05)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def gone(pid: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_a_child_goes_with_its_parent_and_not_before():
    pytriton = importlib.util.find_spec("pytriton")
    assert pytriton is not None
    assert pytriton.origin is not None
    backend = Path(pytriton.origin).parent / "tritonserver" / "backends" / "python"  # its own module for models
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(backend)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert not gone(child, within_s=0.5)
        parent.send_signal(signal.SIGKILL)
        assert gone(child, within_s=5)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        if not gone(child, within_s=0.1):
            os.kill(child, signal.SIGKILL)
