"""The frontend with a sampler in its event loop: `python -m benchmarks.loop_sampler SAMPLES [frontend options]`.

The sampler sleeps two milliseconds at a time and writes down when it woke and by how much it overslept: for so
long the loop served nobody. With `--idle` in place of flags it samples a loop that has nothing else to do, which is
what the machine itself does to a loop. The times at which Triton's answers came are written down too.
"""

import array
import asyncio
import functools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

PERIOD_S = 0.002
_STALL, _ANSWER = 0.0, 1.0


class Recorder:
    """Appends records of three doubles to a file: kind, time of the monotonic clock, seconds."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, kind: float, at: float, seconds: float = 0.0) -> None:
        """Write one record, at once: some microseconds."""
        os.write(self._fd, array.array("d", (kind, at, seconds)).tobytes())

    async def sample(self) -> None:
        """Sample the running loop for ever."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(PERIOD_S)
            now = time.monotonic()
            self.add(_STALL, now, max(0.0, now - before - PERIOD_S))
            before = now


def _records(path: Path, kind: float, begin: float, end: float) -> list[tuple[float, float]]:
    values = array.array("d")
    data = path.read_bytes()
    values.frombytes(data[: len(data) // 24 * 24])
    triples = zip(values[0::3], values[1::3], values[2::3], strict=True)
    return [(at, seconds) for this, at, seconds in triples if this == kind and begin <= at <= end]


def waits(path: Path, begin: float, end: float) -> list[float]:
    """How long something that comes at any moment waits for the loop, in seconds, for evenly spread moments.

    A stall of 50 ms hides the samples that would have been taken within it; they are put back in, as waits of 48,
    46, 44... ms, so that percentiles are of time and not of samples.
    """
    found = []
    for _, seconds in _records(path, _STALL, begin, end):
        found.append(seconds)
        found.extend(seconds - step * PERIOD_S for step in range(1, int(seconds / PERIOD_S) + 1))
    return found


def answers(path: Path, begin: float, end: float) -> list[float]:
    """When Triton's answers to chunks came, by the monotonic clock."""
    return [at for at, _ in _records(path, _ANSWER, begin, end)]


def _serve(recorder: Recorder) -> None:
    from frontend import __main__ as server  # noqa: PLC0415 - an idle loop needs none of it
    from frontend.app import create_app  # noqa: PLC0415
    from frontend.triton import ModelSequence  # noqa: PLC0415

    call: Callable[..., Awaitable[Any]] = ModelSequence.chunk
    tasks = []

    def sampled(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)

        @app.before_serving
        async def begin() -> None:
            tasks.append(asyncio.create_task(recorder.sample(), name="stall sampler"))

        return app

    @functools.wraps(call)
    async def timed(*args: Any, **kwargs: Any) -> Any:
        answer = await call(*args, **kwargs)
        recorder.add(_ANSWER, time.monotonic())
        return answer

    vars(server)["create_app"] = sampled
    ModelSequence.chunk = timed  # type: ignore[method-assign]
    server.main()


def main() -> None:
    """Take the file's name from the arguments and leave the rest to the frontend."""
    recorder = Recorder(Path(sys.argv.pop(1)))
    if sys.argv[1:] == ["--idle"]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(recorder.sample())
    else:
        _serve(recorder)


if __name__ == "__main__":
    main()
