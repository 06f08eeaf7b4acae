"""The one place for a generation: who takes it, how it is checked, how it is given back."""

import asyncio
import contextlib
import functools
import logging
import math
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from filmstrip.errors import Busy, ClientGone, FilmstripError, InternalError, InvalidField, ShuttingDown
from filmstrip.models import Cancelled, Complete, ErrorEvent
from filmstrip.wire import VIDEO_HEADER_BYTES

from . import logs, metrics
from .array_plan import Source, Uploads
from .generation import Generation, Job
from .images import ImageDecoder, Requester, RequestImage, resolve_image
from .model_registry import ModelRegistry
from .plan import Chain, Plan, make_plan
from .schema import GenerateRequest
from .settings import Settings
from .store import Kind, Store, StoredFile
from .tasks import FairSemaphore, in_thread

log = logging.getLogger(__name__)

MAX_IMAGES = 256
MAX_IMAGE_BYTES = 512 * 2**20  # decoded
_UNREAD = (1, 1, 3)  # shape of an image of a request that is cancelled: the plan is only counted
_FACTS_S = 1.0  # how long a cancelled request waits for its pipelines, to tell how many chunks it would have had
_PLANS_AT_ONCE = 1  # Python runs one at a time anyway


class Slot:
    """One generation at a time."""

    def __init__(self, settings: Settings, models: ModelRegistry, store: Store, decoder: ImageDecoder) -> None:
        self._settings = settings
        self._models = models
        self._store = store
        self._decoder = decoder
        self._planning = FairSemaphore(_PLANS_AT_ONCE)
        self._checks: dict[Generation, _Found] = {}
        self._task: asyncio.Task[Complete | Cancelled] | None = None
        self.is_closed = False
        self.current: Generation | None = None

    async def start(self, request: GenerateRequest, client: str = "") -> Generation:
        """Check a client's request, take the slot and begin.

        The slot is not held while a request is checked. Of several that are checked at once, the first to be done
        takes it. A request that its client cancels meanwhile gives a generation whose only event is `cancelled`.

        Raises:
            Busy: another generation has the slot, before the check or after it.
            FilmstripError: the request cannot be served.
        """
        self._check_is_free()
        generation = Generation(secrets.token_hex(8), client)
        logs.name_generation(generation.id)
        with contextlib.ExitStack() as uses:
            checked = await self._check(generation, request, uses)
            generation.unused = checked.plan.unused if checked is not None else ()
            if checked is None or generation.cancel_requested:
                metrics.GENERATIONS.labels("cancelled").inc()
                log.info("cancelled before it began")
                num_chunks = len(checked.plan.chunks) if checked is not None else 0
                generation.events.append(Cancelled(0, num_chunks, 0, seed=request.seed, unused=generation.unused))
                return generation
            self._check_is_free()  # nothing is awaited from here on: one of several finds it free
            num_bytes = VIDEO_HEADER_BYTES + checked.plan.output.num_bytes
            output = self._store.draft(Kind.OUTPUT, num_bytes, owner=client)
            generation_uses = uses.pop_all()
        job = Job(checked.plan, checked.files, checked.images, output)
        self.current = generation
        metrics.SLOT_IN_USE.set(1)
        log.info("%d frames of %s in %d chunks", request.num_frames, request.pipeline_id, len(job.plan.chunks))
        self._task = asyncio.create_task(generation.run(job, self._models.client, self._store), name="generation")
        self._task.add_done_callback(lambda _: generation_uses.close())
        self._task.add_done_callback(functools.partial(self._ended, generation, job))
        return generation

    def _check_is_free(self) -> None:
        if self.is_closed:
            raise ShuttingDown("the server is stopping")
        if self.current is not None:
            raise Busy("another generation runs")

    def cancel(self, client: str = "") -> bool:
        """End a client's generation after its chunk under way, or else its checks; False when it has neither."""
        if self.current is not None and self.current.client == client:
            self.current.cancel()
            return True
        checks = [generation for generation in self._checks if generation.client == client]
        for generation in checks:
            generation.cancel()
            self._end_check(generation, _FACTS_S)
        return bool(checks)

    def _end_check(self, generation: Generation, facts_s: float = 0.0) -> None:
        """Stop finding what a request names; its pipelines may take `facts_s` seconds more to be known."""
        found = self._checks[generation]
        if found.task is None:
            return
        if found.chain is None:
            asyncio.get_running_loop().call_later(facts_s, found.task.cancel)
        else:
            found.task.cancel()

    def abandon(self, generation: Generation) -> None:
        """End a generation as soon as the model lets go, because nobody waits for it any more."""
        if self.current is generation and self._task is not None:
            with logs.named(generation.id):  # called by the connection, which serves other requests too
                log.info("the client is gone")
            self._task.cancel()

    async def close(self, timeout_s: float) -> None:
        """End the generation and all checks, and accept no other."""
        self.is_closed = True
        for generation in self._checks:
            self._end_check(generation)
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=timeout_s)

    def _ended(self, generation: Generation, job: Job, task: asyncio.Task[Complete | Cancelled]) -> None:
        """The one end of every generation, also of one that was cancelled before it began.

        Whatever fails here, the slot is freed and the last event is sent.
        """
        last: Complete | Cancelled | ErrorEvent = ErrorEvent("internal error; see the server's log", InternalError.code)
        try:
            last = self._last_event(task)
            outcome = {Complete: "complete", Cancelled: "cancelled"}.get(type(last), getattr(last, "code", ""))
            metrics.GENERATIONS.labels(outcome).inc()
            log.info("ended: %s", outcome)
            self._store.discard(job.output)
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
        return ErrorEvent("internal error; see the server's log", InternalError.code)

    def _free(self) -> None:
        self.current = self._task = None
        metrics.SLOT_IN_USE.set(0)

    # -- What is checked before the stream starts -------------------------------------------------------

    async def _check(
        self, generation: Generation, request: GenerateRequest, uses: contextlib.ExitStack
    ) -> "_Checked | None":
        """What a request asks for; None where its client cancels it before its pipelines are known."""
        found = self._checks[generation] = _Found(files={}, images={})
        try:
            await self._prepare_unless_cancelled(generation, request, found, uses)
            if found.chain is None:
                return None
            images, files = found.images, found.files
            # A request that is cancelled is only planned, so the images that were not read may have any shape.
            shapes = {name: images[name].shape if name in images else _UNREAD for _, name in _image_fields(request)}
            uploads = Uploads(
                input_shape=files[Source.INPUT].shape if Source.INPUT in files else None,
                blob_bytes=files[Source.BLOB].size_bytes if Source.BLOB in files else None,
                image_shapes=shapes,
            )
            async with self._planning.turn(generation.client, generation):
                plan = await in_thread(make_plan, request, found.chain, uploads, self._settings.chunk_bytes)
            return _Checked(plan, files, images)
        finally:
            del self._checks[generation]

    async def _prepare_unless_cancelled(
        self, generation: Generation, request: GenerateRequest, found: "_Found", uses: contextlib.ExitStack
    ) -> None:
        """Find everything that a plan needs, or as much as there was time for until the client cancelled.

        Raises:
            ShuttingDown: the slot was closed meanwhile.
        """
        task = asyncio.create_task(self._prepare(generation, request, found, uses), name="prepare a generation")
        found.task = task
        try:
            await task
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if waiting is not None and waiting.cancelling():  # the client is gone
                raise
            if not generation.cancel_requested:
                raise ShuttingDown("the server is stopping") from None
        finally:
            found.task = None

    async def _prepare(
        self, generation: Generation, request: GenerateRequest, found: "_Found", uses: contextlib.ExitStack
    ) -> None:
        names = ("pipeline_id", "pre_processor_id", "post_processor_id")
        infos = await self._models.pipeline_infos(**{name: getattr(request, name) for name in names})
        for source, kind in ((Source.INPUT, Kind.VIDEO), (Source.BLOB, Kind.BLOB)):
            name = getattr(request, source)
            if name is not None:
                found.files[source] = self._store.find(name, kind, owner=generation.client, field=source)
                uses.enter_context(self._store.holding(found.files[source]))
        found.chain = Chain(infos["pipeline_id"], infos.get("pre_processor_id"), infos.get("post_processor_id"))
        if not generation.cancel_requested:
            await self._resolve_images(generation, request, found.images, uses)

    async def _resolve_images(
        self,
        generation: Generation,
        request: GenerateRequest,
        images: dict[str, RequestImage],
        uses: contextlib.ExitStack,
    ) -> None:
        requester = Requester(generation.client, generation)
        num_bytes = 0
        for field, name in _image_fields(request):
            if name in images:
                continue
            if len(images) == MAX_IMAGES:
                raise InvalidField(f"{field}: more than {MAX_IMAGES} images", field)
            images[name] = await resolve_image(name, field, self._store, self._decoder, requester, uses=uses)
            num_bytes += math.prod(images[name].shape)
            if num_bytes > MAX_IMAGE_BYTES:
                raise InvalidField(f"{field}: the request's images have more than {MAX_IMAGE_BYTES} bytes", field)


@dataclass
class _Found:
    """What has been found of all that a request names; a chain comes with all files, but not with all images."""

    files: dict[Source, StoredFile]
    images: dict[str, RequestImage]
    chain: Chain | None = None
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class _Checked:
    """A request that can be served."""

    plan: Plan
    files: Mapping[Source, StoredFile]
    images: Mapping[str, RequestImage]


def _image_fields(request: GenerateRequest) -> Iterator[tuple[str, str]]:
    """Every image that a request names, with the field that names it."""
    for position, spec in enumerate(request.chunk_specs or ()):
        for field in ("first_frame_image", "last_frame_image"):
            name = getattr(spec, field)
            if name is not None:
                yield f"chunk_specs[{position}].{field}", name
        for name in spec.vace_ref_images or ():
            yield f"chunk_specs[{position}].vace_ref_images", name
