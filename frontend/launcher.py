"""Becomes tritonserver, so that it ends with the frontend, and leaves a guard that ends the models' processes with it.

Run as a script and as the leader of a process group: `launcher.py FRONTEND_PID TRITONSERVER FLAG...`.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def main() -> None:
    """Leave the guard, and become tritonserver."""
    frontend, command = int(sys.argv[1]), sys.argv[2:]
    triton = os.getpid()
    if os.fork() == 0:
        _guard(triton)
    else:
        _end_with(frontend)
        os.execv(command[0], command)  # noqa: S606 - the command is ours


def _guard(triton: int) -> None:
    """Wait for Triton's end, and end what is left of its group.

    A model's process watches Triton only after it has been spoken to: one that has not would wait for ever.
    """
    os.setsid()  # out of the group, and of the terminal's reach
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _end_with(triton)
    signal.sigwait({signal.SIGTERM})
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(triton, signal.SIGKILL)


def _end_with(parent: int) -> None:
    """Let SIGTERM come when the parent ends, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended before it could be told
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
