"""The one place for a generation: who takes it, how it is checked, how it is given back."""

import asyncio
import functools
import logging
import math
import secrets
from collections.abc import Iterator

import structlog

from filmstrip.errors import Busy, ClientGone, FilmstripError, InternalError, InvalidField, ShuttingDown
from filmstrip.events import Cancelled, Complete, ErrorEvent
from filmstrip.geometry import VIDEO_HEADER_BYTES
from frontend import metrics
from frontend.arrays import Source, Uploads
from frontend.generate import Generation, Job
from frontend.media import Image, resolve_image
from frontend.plan import Chain, make_plan
from frontend.schema import GenerateRequest
from frontend.settings import Settings
from frontend.store import Store
from frontend.stored import Kind
from frontend.tasks import in_thread
from frontend.triton import Triton

log = logging.getLogger(__name__)

MAX_IMAGES = 256
MAX_IMAGE_BYTES = 512 * 2**20  # decoded; each image is decoded twice, and the slot is taken meanwhile


class Slot:
    """One generation at a time."""

    def __init__(self, settings: Settings, server: Triton, store: Store) -> None:
        self._settings = settings
        self._server = server
        self._store = store
        self._task: asyncio.Task[Complete | Cancelled] | None = None
        self.is_closed = False
        self.current: Generation | None = None

    async def start(self, request: GenerateRequest, client: str = "") -> Generation:
        """Take the slot for a client, check the request and begin.

        Raises:
            Busy: another generation has the slot.
            FilmstripError: the request cannot be served; the slot is free again.
        """
        self._check_open()
        if self.current is not None:
            raise Busy("another generation runs")
        # Taken before anything is awaited: of two requests that come together one finds it taken.
        generation = self.current = Generation(secrets.token_hex(8), client)
        metrics.SLOT_IN_USE.set(1)
        structlog.contextvars.bind_contextvars(generation=generation.id)
        try:
            job = await self._checked(request, client)
            generation.unused = job.plan.unused
        except BaseException:
            self._free()
            raise
        log.info("%d frames of %s in %d chunks", request.num_frames, request.pipeline_id, len(job.plan.chunks))
        self._task = asyncio.create_task(generation.run(job, self._server, self._store), name="generation")
        self._task.add_done_callback(functools.partial(self._ended, generation, job))
        return generation

    def _check_open(self) -> None:
        if self.is_closed:
            raise ShuttingDown("the server is stopping")

    def cancel(self, client: str = "") -> bool:
        """End a client's generation after its chunk under way; False when none of it runs."""
        if self.current is None or self.current.client != client:
            return False
        self.current.cancel()
        return True

    def abandon(self, generation: Generation) -> None:
        """End a generation as soon as the model lets go, because nobody waits for it any more."""
        if self.current is generation and self._task is not None:
            log.info("the client is gone")
            self._task.cancel()

    async def close(self, timeout_s: float) -> None:
        """End the generation and accept no other."""
        self.is_closed = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=timeout_s)

    def _ended(self, generation: Generation, job: Job, task: asyncio.Task[Complete | Cancelled]) -> None:
        """The one end of every generation, also of one that was cancelled before it began.

        Whatever fails here, the slot is freed and the last event is sent.
        """
        last: Complete | Cancelled | ErrorEvent = ErrorEvent(
            "the server failed; its log tells more", InternalError.code
        )
        try:
            last = self._last_event(task)
            outcome = {Complete: "complete", Cancelled: "cancelled"}.get(type(last), getattr(last, "code", ""))
            metrics.GENERATIONS.labels(outcome).inc()
            log.info("ended: %s", outcome)
            self._store.drop(job.output)
        except Exception:
            log.exception("cleaning up after a generation failed")
        finally:
            self._free()
            generation.events.append(last)

    def _last_event(self, task: asyncio.Task[Complete | Cancelled]) -> Complete | Cancelled | ErrorEvent:
        if task.cancelled():
            gone = ShuttingDown("the server is stopping") if self.is_closed else ClientGone("the client is gone")
            return ErrorEvent(gone.message, gone.code)
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, FilmstripError):
            log.warning("%s: %s", error.code, error.message)
            return ErrorEvent(error.message, error.code)
        log.error("a generation failed", exc_info=error)
        return ErrorEvent("the server failed; its log tells more", InternalError.code)

    def _free(self) -> None:
        self.current = self._task = None
        metrics.SLOT_IN_USE.set(0)

    # -- What is checked before the stream starts -------------------------------------------------------

    async def _checked(self, request: GenerateRequest, client: str) -> Job:
        names = ("pipeline_id", "pre_processor_id", "post_processor_id")
        facts = await self._server.facts(**{name: getattr(request, name) for name in names})
        chain = Chain(facts["pipeline_id"], facts.get("pre_processor_id"), facts.get("post_processor_id"))
        files = {}
        for source, kind in ((Source.INPUT, Kind.VIDEO), (Source.BLOB, Kind.BLOB)):
            name = getattr(request, source)
            if name is not None:
                files[source] = self._store.find(name, kind, owner=client, field=source)
        images: dict[str, Image] = {}
        for field, name in _image_fields(request):
            if name not in images:
                if len(images) == MAX_IMAGES:
                    raise InvalidField(f"{field}: more than {MAX_IMAGES} images", field)
                images[name] = await in_thread(resolve_image, name, field, self._store, client)
                if sum(math.prod(image.shape) for image in images.values()) > MAX_IMAGE_BYTES:
                    raise InvalidField(f"{field}: the request's images have more than {MAX_IMAGE_BYTES} bytes", field)
        uploads = Uploads(
            input_shape=files[Source.INPUT].shape if Source.INPUT in files else None,
            blob_bytes=files[Source.BLOB].size_bytes if Source.BLOB in files else None,
            image_shapes={name: image.shape for name, image in images.items()},
        )
        plan = await in_thread(make_plan, request, chain, uploads, self._settings.chunk_bytes)
        self._check_open()
        output = self._store.draft(Kind.OUTPUT, VIDEO_HEADER_BYTES + plan.output.num_bytes, owner=client)
        return Job(plan, files, images, output)


def _image_fields(request: GenerateRequest) -> Iterator[tuple[str, str]]:
    """Every image that a request names, with the field that names it."""
    for position, spec in enumerate(request.chunk_specs or ()):
        for field in ("first_frame_image", "last_frame_image"):
            name = getattr(spec, field)
            if name is not None:
                yield f"chunk_specs[{position}].{field}", name
        for name in spec.vace_ref_images or ():
            yield f"chunk_specs[{position}].vace_ref_images", name
