"""Worker processes: how the server starts and ends them, and the limits that they set for themselves.

A worker runs one module of this package. It inherits no sockets, settings or secrets, so that a hostile file can harm
this process only. What the workers for videos are asked is here too, because they alone load FFmpeg.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import filmstrip

from .tasks import run_to_end, spawn

_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")  # no settings and no secrets
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_CODE = str(Path(filmstrip.__file__).parents[1])


@dataclass(frozen=True)
class Limits:
    """What a worker may use.

    Attributes:
        cpu_s: CPU time of one job; the process ends by SIGXCPU after it.
        memory_bytes: address space beyond what the interpreter has at the start.
        niceness: added to ours, so that the server's own work goes first.
    """

    cpu_s: int
    memory_bytes: int
    niceness: int = 5


async def start_worker(
    module: str, limits: Limits, *arguments: str, pass_fds: Sequence[int] = (), **options: Any
) -> asyncio.subprocess.Process:
    """Start a module of this package, with pipes for its standard input and output.

    Args:
        module: its full name; its `main` calls `enter_worker` first.
        limits: what it may use.
        arguments: its arguments.
        pass_fds: open files that it inherits, under the same numbers.
        options: of `asyncio.create_subprocess_exec`.
    """
    search_path = [_CODE, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return await spawn(
        sys.executable,
        *(
            "-P",
            "-W",
            "ignore",
            "-X",
            "faulthandler",
            "-m",
            module,
            str(os.getpid()),
            *map(str, astuple(limits)),
            *arguments,
        ),
        env={name: os.environ[name] for name in _INHERITED if name in os.environ}
        | _ONE_THREAD
        | {"PYTHONPATH": os.pathsep.join(search_path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=pass_fds,
        **options,
    )


@contextlib.asynccontextmanager
async def running_worker(
    module: str, limits: Limits, *arguments: str, pass_fds: Sequence[int] = (), **options: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker that is killed when the context ends; see `start_worker`."""
    started: list[asyncio.subprocess.Process] = []

    async def start() -> None:
        started.append(await start_worker(module, limits, *arguments, pass_fds=pass_fds, **options))

    try:
        await run_to_end(start())
        yield started[0]
    finally:
        for process in started:
            await end_worker(process)


async def end_worker(process: asyncio.subprocess.Process) -> None:
    """Kill a worker, if it still runs, and wait until it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await run_to_end(process.wait())


# -- What video_worker.py is asked -------------------------------------------------------------------------------------

VIDEO_WORKER = f"{__package__}.video_worker"


@dataclass(frozen=True)
class EncodeJob:
    """What to encode.

    Attributes:
        fd: number of the open file with the frames.
        height: of a frame.
        width: likewise.
        into: path of the file to write.
        growing_into: path of a fragmented MP4 that is written while the frames arrive; empty if there is none.
        format: mp4, webm, gif or png.
        fps: frames per second, as a fraction.
        crf: quality of mp4 and webm.
        scale: how many times to enlarge the frames.
        frame: index of the frame for a PNG; None is a contact sheet.
    """

    fd: int
    height: int
    width: int
    into: str
    growing_into: str
    format: str
    fps: str
    crf: int | None
    scale: int
    frame: int | None


@dataclass(frozen=True)
class DecodeJob:
    """What to decode.

    Attributes:
        path: path of the video file.
        start: in seconds, as a fraction; frames before it are dropped.
        end: likewise; empty is the end of the video.
        fps: frames per second, as a fraction; empty is the file's own rate.
        max_frames: most frames; None for no limit.
        height: of the result; None follows from the width, or is the video's own.
        width: likewise.
        fit: how a video of another shape fills height and width: `cover` or `contain`.
        limit_bytes: most bytes of frames.
    """

    path: str
    start: str
    end: str
    fps: str
    max_frames: int | None
    height: int | None
    width: int | None
    fit: str
    limit_bytes: int


# -- In the worker's process ---------------------------------------------------------------------------------------


def enter_worker() -> tuple[Limits, list[str]]:
    """Apply the limits, all but that on CPU time; returns them and the worker's own arguments."""
    parent, cpu_s, memory_bytes, niceness, *arguments = sys.argv[1:]
    limits = Limits(int(cpu_s), int(memory_bytes), int(niceness))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as statm:
        own = int(statm.read().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, own + limits.memory_bytes)
    os.nice(limits.niceness)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: the server ends its processes itself
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the signal was set up
        sys.exit(1)
    return limits, arguments


def limit_cpu(limits: Limits) -> None:
    """Let SIGXCPU end the process if the job that starts now takes too long."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_s)


def _lower(limit: int, value: int) -> None:
    """Set a soft limit, at most to the hard limit that the process was started with."""
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
