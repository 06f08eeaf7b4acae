"""Becomes tritonserver, which then ends with the server and hides its files and shared memory from other users.

A guard process stays behind and ends the models' processes when tritonserver ends.

Run as a script, as the leader of a process group: `launcher.py SERVER_PID TRITONSERVER FLAG...`.
"""

import contextlib
import ctypes
import os
import signal
import struct
import sys

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP = 317  # on x86-64, the only machine that the embedded Triton is made for
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4  # without it, some kernels slow down every process that has a filter
_IGNORE_FCHMOD_0644 = (  # BPF: code, where to jump if true and if false, operand
    (0x20, 0, 0, 4),  # load the architecture
    (0x15, 0, 5, 0xC000003E),  # x86-64?
    (0x20, 0, 0, 0),  # load the system call's number
    (0x15, 0, 3, 91),  # fchmod?
    (0x20, 0, 0, 24),  # load the mode
    (0x15, 0, 1, 0o644),
    (0x06, 0, 0, 0x00050000),  # do nothing, and return 0
    (0x06, 0, 0, 0x7FFF0000),  # make the call
)


def main() -> None:
    """Start the guard and become tritonserver."""
    server, command = int(sys.argv[1]), sys.argv[2:]
    triton = os.getpid()
    if os.fork() == 0:
        _guard(triton)
    else:
        _end_with(server)
        _keep_private()
        os.execv(command[0], command)  # noqa: S606 - the command is ours


def _guard(triton: int) -> None:
    """Wait until Triton ends, and kill what is left of its process group.

    A model's process watches Triton only once Triton has contacted it; before that, it would wait forever.
    """
    os.setsid()  # leave the group and the terminal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _end_with(triton)
    signal.sigwait({signal.SIGTERM})
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(triton, signal.SIGKILL)


def _keep_private() -> None:
    """Keep other users from reading anything that Triton and its models create, including shared memory.

    Boost, which creates the models' shared memory, ignores the umask: it sets mode 0644 once the file exists. Changing
    the mode back would be too late, as another user could have opened the file by then.
    """
    os.umask(0o077)
    program = b"".join(struct.pack("HBBI", *step) for step in _IGNORE_FCHMOD_0644)
    steps = ctypes.create_string_buffer(program)
    pointer = ctypes.create_string_buffer(struct.pack("@HP", len(_IGNORE_FCHMOD_0644), ctypes.addressof(steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, pointer):
        reason = os.strerror(ctypes.get_errno())
        print(
            f"warning: other users can read the models' shared memory: seccomp: {reason}", file=sys.stderr, flush=True
        )


def _end_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the signal was set up
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
