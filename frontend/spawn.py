"""Processes of our own, which take nothing of ours with them."""

import asyncio
import contextlib
import os
from typing import Any

_FIRST_OWN_FD = 3  # after the three standard streams


async def spawn(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec`, whose process inherits the three standard streams and no other file.

    Hypercorn makes its listening socket inheritable, and uvloop leaves open in a child what is: our port would stay
    taken, and take connections that nobody answers, for as long as the child outlives us.
    """
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        if fd >= _FIRST_OWN_FD:
            with contextlib.suppress(OSError):  # it was closed meanwhile, as the listing's own is
                os.set_inheritable(fd, False)
    return await asyncio.create_subprocess_exec(*command, **options)
