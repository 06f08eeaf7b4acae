"""Previews: a small image of the newest frame after some of a generation's chunks, made in a process of its own.

The numbers of events depend on the request alone. So each chunk that has a preview gets one `preview` event before the
next event of any kind. An image that is not ready by then is left out: only the last event waits for an image.
"""

import asyncio
import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict, Field

from filmstrip.errors import StorageFull
from filmstrip.models import Event, Preview, Progress
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape

from . import preview_worker
from .events import EventSink
from .preview_worker import preview_size
from .schema import PreviewOptions
from .store import Store
from .tasks import FairSemaphore, run_to_end
from .workers import Limits, end_worker, start_worker

log = logging.getLogger(__name__)

_LIMITS = Limits(cpu_s=10, memory_bytes=2**29, niceness=10)
_START_S = 60.0
_ENCODE_S = 20.0
_LAST_S = 30.0
"""How long the last event waits for the last preview."""


class _Answer(BaseModel):
    """The worker's answer: an image and its size, or why there is none."""

    model_config = ConfigDict(extra="forbid")

    image: str = ""
    height: int = Field(0, ge=0)
    width: int = Field(0, ge=0)
    failed: str = ""


class PreviewEncoder:
    """Makes small images of frames, one at a time, in one process with low priority, which is started when needed."""

    def __init__(self) -> None:
        self._turns = FairSemaphore(1)
        self._process: asyncio.subprocess.Process | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Start the process, so that the first image does not have to wait for that."""
        async with self._turns.turn("", self, urgent=True):
            await run_to_end(self._start())

    async def encode(self, path: Path, offset: int, shape: VideoShape, max_width: int, client: str) -> _Answer | None:
        """A small image of a frame; None if there is none. Clients take turns.

        Args:
            path: of a file.
            offset: in the file, where the frame begins.
            shape: of the video.
            max_width: of the image.
            client: who asked for it.
        """
        frame = {"path": str(path), "offset": offset, "height": shape.height, "width": shape.width}
        line = json.dumps(frame | {"max_width": max_width}).encode() + b"\n"
        async with self._turns.turn(client, object()):
            # The answer is read even if nobody needs it any more: the next one follows it.
            answer = await run_to_end(self._ask(line))
        if answer is not None and answer.failed:
            log.warning("a preview could not be made: %s", answer.failed)
            return None
        return answer

    async def close(self) -> None:
        """End the process."""
        self._is_closed = True
        await self._end()
        async with self._turns.turn("", self, urgent=True):  # a process that was being started has ended, too
            pass

    async def _ask(self, line: bytes) -> _Answer | None:
        await self._start()
        process = self._process
        if process is None:
            return None
        answer = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENCODE_S):
                with contextlib.suppress(ConnectionError, RuntimeError):  # what uvloop raises if the process has ended
                    cast("asyncio.StreamWriter", process.stdin).write(line)
                    await cast("asyncio.StreamWriter", process.stdin).drain()
                answer = await cast("asyncio.StreamReader", process.stdout).readline()
        if answer.endswith(b"\n"):
            return _Answer.model_validate_json(answer)
        await self._end()
        if not self._is_closed:
            log.warning("the process that makes previews exited with status %s", process.returncode)
        return None

    async def _start(self) -> None:
        """Start the process unless it runs; on failure there is none."""
        if self._process is not None and self._process.returncode is not None:
            await self._end()
        if self._process is not None or self._is_closed:
            return
        self._process = process = await start_worker(preview_worker.__name__, _LIMITS, limit=2**17)
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                line = await cast("asyncio.StreamReader", process.stdout).readline()
        if line != preview_worker.READY or self._is_closed:
            await self._end()
            if not self._is_closed:
                log.warning("the process for previews did not start: status %s, output %r", process.returncode, line)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await end_worker(process)


class Previews:
    """The events of a generation with previews: passes events on and adds `preview` events.

    Args:
        options: how many previews, and how large.
        events: takes all events.
        encoder: makes the images.
        store: counts their bytes.
        client: whose they are.
        path: of the output, which has a header and the frames written so far.
        shape: of the output.
    """

    def __init__(
        self,
        options: PreviewOptions,
        events: EventSink,
        encoder: PreviewEncoder,
        store: Store,
        *,
        client: str,
        path: Path,
        shape: VideoShape,
    ) -> None:
        self._options = options
        self._events = events
        self._encoder = encoder
        self._store = store
        self._client = client
        self._path = path
        self._shape = shape
        self._num_frames = 0
        self._due: Preview | None = None
        self._starting = asyncio.create_task(encoder.start(), name="start the process for previews")
        self._making: asyncio.Task[None] | None = None

    def append(self, event: Event) -> None:
        """Take the next event; a preview that is due goes first."""
        if self._due is not None:
            self._append_due(self._due)
            if self._making is not None:
                self._making.cancel()
        self._events.append(event)
        if isinstance(event, Progress):
            self._num_frames += event.frames
            if event.chunk % self._options.every == 0:
                height, width = preview_size(self._shape.height, self._shape.width, self._options.width)
                self._due = Preview(event.chunk, self._num_frames, width, height)

    def on_written(self, num_frames: int) -> None:
        """Note how many frames are written; if they include those of the preview that is due, make its image."""
        if self._due is not None and self._due.frames == num_frames:
            self._making = asyncio.create_task(self._make(self._due), name="make a preview")

    async def finish(self) -> None:
        """Wait for the last preview, within a limit."""
        if self._due is not None and self._making is not None:
            await asyncio.wait([self._making], timeout=_LAST_S)

    async def _make(self, due: Preview) -> None:
        offset = VIDEO_HEADER_BYTES + (due.frames - 1) * self._shape.frame_bytes
        made = await self._encoder.encode(self._path, offset, self._shape, self._options.width, self._client)
        if made is None or self._due is not due:
            return
        try:
            self._store.count(len(made.image), self._client)
        except StorageFull as error:
            log.warning("no room for a preview: %s", error.message)
            return
        self._append_due(replace(due, image=made.image, height=made.height, width=made.width))

    def _append_due(self, preview: Preview) -> None:
        self._due = None
        self._events.append(preview)
