"""The images of a request, which are assets or data URLs: checked and decoded in worker processes."""

import asyncio
import contextlib
import functools
import json
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pydantic import BaseModel

from filmstrip.errors import BadImage, InternalError, InvalidField, ShuttingDown

from . import image_worker
from .inference import FileSlice
from .schema import ChunkSpec, GenerateRequest
from .store import Kind, Store
from .tasks import FairSemaphore, run_to_end
from .workers import Limits, end_worker, start_worker

log = logging.getLogger(__name__)

_NUM_WORKERS = 2
_WALL_S = 120.0  # for one image; the worker's limit on CPU time is reached first, unless the machine is overloaded
_START_S = 60.0
_LIMITS = Limits(cpu_s=10, memory_bytes=2**30)  # the slowest image within the worker's own limits takes a few seconds
_WHITESPACE = "".join(map(chr, range(0x21)))
_IMAGE_FIELDS = ("first_frame_image", "last_frame_image", "vace_ref_images")
_KEPT_CHARACTERS = 40  # of a data URL, in a record
MAX_IMAGES = 256
"""Most images of a request."""

ImageFile = Path | str
"""The file of an asset, or a data URL."""


@dataclass(frozen=True)
class Requester:
    """Whom an image is decoded for: clients take turns, and so do the requests of each client."""

    client: str = ""
    request: object = field(default_factory=object)


class _Answer(BaseModel):
    """A worker's answer: the image's shape [H, W, 3], or why it was refused."""

    shape: tuple[int, ...] = ()
    refused: str | None = None


class ImageDecoder:
    """Decodes images in worker processes that inherit nothing from us: no sockets, settings or secrets.

    A process is started when it is first needed, decodes one image at a time, and is killed if nobody waits for that
    image any more.
    """

    def __init__(self) -> None:
        self._turns = FairSemaphore(_NUM_WORKERS)
        self._idle: list[asyncio.subprocess.Process] = []
        self._all: set[asyncio.subprocess.Process] = set()
        self._is_closed = False

    async def shape(self, image: ImageFile, requester: Requester) -> tuple[int, ...]:
        """Decode an image and return its shape, [H, W, 3].

        Raises:
            BadImage: it is not an image, is damaged, or exceeds a limit.
        """
        return await self._decode({}, image, requester, urgent=False)

    async def save(self, url: str, requester: Requester, path: Path) -> None:
        """Write the file that a data URL holds to an existing file; whether it is an image is not checked.

        Raises:
            BadImage: it is not a data URL of an image.
        """
        await self._decode({"save": str(path)}, url, requester, urgent=False)

    async def write(self, image: ImageFile, requester: Requester, shape: tuple[int, ...], place: FileSlice) -> None:
        """Decode an image again and write its pixels, uint8 [H, W, 3], into a file.

        Raises:
            InternalError: its shape is no longer `shape`, or it can no longer be decoded; the message says why.
        """
        job = {"into": str(place.path), "offset": place.offset, "shape": list(shape)}
        try:
            await self._decode(job, image, requester, urgent=True)
        except BadImage as error:
            log.warning("an image that passed its check cannot be decoded any more: %s", error.message)
            raise InternalError(error.message) from error

    async def close(self) -> None:
        """End all processes."""
        self._is_closed = True
        await asyncio.gather(*map(self._end, list(self._all)))

    async def _decode(
        self, job: dict[str, object], image: ImageFile, requester: Requester, *, urgent: bool
    ) -> tuple[int, ...]:
        data = b""
        if isinstance(image, Path):
            job["path"] = str(image)
        else:
            data = image.encode(errors="replace")
        async with self._turns.turn(requester.client, requester.request, urgent=urgent):
            # Not by pydantic, which refuses paths that are not UTF-8.
            answer = await self._ask(json.dumps(job | {"num_bytes": len(data)}).encode() + b"\n", data)
        if answer.refused is not None:
            raise BadImage(answer.refused)
        return answer.shape

    async def _ask(self, job: bytes, data: bytes) -> _Answer:
        """The answer to a job, from a second process if the first one ended for another reason than its limits."""
        for _ in range(2):
            process = await self._take()
            try:
                async with asyncio.timeout(_WALL_S):
                    line = await _exchange(process, job, data)
            except TimeoutError:
                await self._end(process)
                raise BadImage("the image takes too long to decode") from None
            except BaseException:  # nobody waits for it any more
                await self._end(process)
                raise
            if line.endswith(b"\n"):
                self._idle.append(process)
                return _Answer.model_validate_json(line)
            await self._end(process)
            if process.returncode == -signal.SIGXCPU:
                raise BadImage("the image takes too long to decode")
            await self._end_idle()  # they may have ended for the same reason: the second attempt gets a new process
        log.warning("the process that decoded an image exited with status %s", process.returncode)
        raise BadImage("the image cannot be decoded within the limits on time and memory")

    async def _take(self) -> asyncio.subprocess.Process:
        while True:
            while not self._idle:
                await run_to_end(self._start())
            process = self._idle.pop()
            if process.returncode is None and not cast("asyncio.StreamWriter", process.stdin).is_closing():
                return process
            await self._end(process)

    async def _end_idle(self) -> None:
        idle, self._idle = self._idle, []
        for process in idle:
            await self._end(process)

    async def _start(self) -> None:
        """Start a process and add it to the idle ones; if it ends before it is ready, another one."""
        for _ in range(2):
            process = await start_worker(image_worker.__name__, _LIMITS)
            self._all.add(process)
            try:
                async with asyncio.timeout(_START_S):
                    line = await cast("asyncio.StreamReader", process.stdout).readline()
            except TimeoutError:
                line = b""
            if line == image_worker.READY and not self._is_closed:
                self._idle.append(process)
                return
            await self._end(process)
            if self._is_closed:
                raise ShuttingDown("the server is stopping")
            log.warning("a process to decode images did not start: status %s, output %r", process.returncode, line)
        raise InternalError("the process that decodes images does not start; see the server's log")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        self._all.discard(process)
        await end_worker(process)


async def _exchange(process: asyncio.subprocess.Process, job: bytes, data: bytes) -> bytes:
    """Send a job and read its answer, which is incomplete if the process has ended."""
    jobs, answers = cast("asyncio.StreamWriter", process.stdin), cast("asyncio.StreamReader", process.stdout)
    with contextlib.suppress(ConnectionError, RuntimeError):  # what uvloop raises if the process has ended
        jobs.write(job)
        jobs.write(data)
        await jobs.drain()
    return await answers.readline()


# -- The images of a request ----------------------------------------------------------------------------------------


def image_fields(request: GenerateRequest) -> Iterator[tuple[str, str]]:
    """Each image that a request names, after the field that names it."""
    for position, spec in enumerate(request.chunk_specs or ()):
        for field_name, name in (
            ("first_frame_image", spec.first_frame_image),
            ("last_frame_image", spec.last_frame_image),
        ):
            if name is not None:
                yield f"chunk_specs[{position}].{field_name}", name
        for name in spec.vace_ref_images or ():
            yield f"chunk_specs[{position}].vace_ref_images", name


@dataclass(frozen=True)
class RequestImage:
    """An image of a request; its pixels are decoded when a chunk needs them.

    Attributes:
        shape: [H, W, 3].
        write: decodes it again and writes its pixels into a file.
    """

    shape: tuple[int, ...]
    write: Callable[[FileSlice], Awaitable[None]]


async def resolve_image(
    name: str,
    field_name: str,
    store: Store,
    decoder: ImageDecoder,
    requester: Requester,
    *,
    held_files: contextlib.ExitStack,
    allow_expired: bool = False,
) -> RequestImage:
    """The image that a field of a request names.

    Args:
        name: that of an asset of the requester's client, or a data URL.
        field_name: the field, for messages.
        store: the store that holds assets.
        decoder: decodes the image.
        requester: whom it is for.
        held_files: closing it allows the asset to be deleted again.
        allow_expired: the asset may have expired.

    Raises:
        UnknownPath: there is no such asset.
        InvalidField: it is not an image.
    """
    image: ImageFile = name.lstrip(_WHITESPACE)
    if not is_data_url(name):
        file = store.find(name, Kind.ASSET, owner=requester.client, field=field_name, allow_expired=allow_expired)
        held_files.enter_context(store.holding(file))
        image = file.path
    try:
        shape = await decoder.shape(image, requester)
    except BadImage as error:
        raise InvalidField(f"{field_name}: {error.message}", field_name) from None
    return RequestImage(shape, functools.partial(decoder.write, image, requester, shape))


def is_data_url(name: str) -> bool:
    """Whether an image of a request is a data URL, and not the name of an asset."""
    return name.lstrip(_WHITESPACE)[:5].lower() == "data:"


async def data_urls_to_assets(
    request: GenerateRequest, client: str, store: Store, decoder: ImageDecoder
) -> tuple[GenerateRequest, tuple[str, ...]]:
    """Store the images that a request holds.

    What is not an image stays in the request, whose check refuses it.

    Returns:
        The request with the names of assets in place of data URLs, and these names; the caller removes the assets.

    Raises:
        StorageFull: the stored files would exceed their limits.
    """
    urls = list(dict.fromkeys(name for _, name in image_fields(request) if is_data_url(name)))
    if not urls or len(urls) > MAX_IMAGES:
        return request, ()
    requester = Requester(client)
    names: dict[str, str] = {}
    try:
        for url in urls:
            with store.draft(Kind.ASSET, len(url) * 3 // 4, owner=client) as draft:
                try:
                    await decoder.save(url, requester, draft.path)
                except BadImage:
                    continue
                names[url] = draft.commit().name
    except BaseException:
        for name in names.values():
            store.remove(name)
        raise
    replaced = await asyncio.to_thread(_with_images, request, lambda name: names.get(name, name))
    return replaced, tuple(names.values())


def without_data_urls(request: GenerateRequest) -> GenerateRequest:
    """The request with only the start of each data URL."""

    def shortened(name: str) -> str:
        return name.lstrip(_WHITESPACE)[:_KEPT_CHARACTERS] + "..." if is_data_url(name) else name

    return _with_images(request, shortened)


def _with_images(request: GenerateRequest, replace: Callable[[str], str]) -> GenerateRequest:
    if not any(is_data_url(name) for _, name in image_fields(request)):
        return request

    def replaced(spec: ChunkSpec) -> ChunkSpec:
        values = {name: getattr(spec, name) for name in _IMAGE_FIELDS if getattr(spec, name) is not None}
        changes = {
            name: list(map(replace, value)) if isinstance(value, list) else replace(value)
            for name, value in values.items()
        }
        return spec.model_copy(update=changes) if changes else spec

    return request.model_copy(update={"chunk_specs": [replaced(spec) for spec in request.chunk_specs or ()]})
