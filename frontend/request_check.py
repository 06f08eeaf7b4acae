"""The check of a request before its stream starts: find what it names, then plan it. A dry run is the check alone."""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from filmstrip.errors import InvalidField, ShuttingDown, TooManyRequests
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape

from . import logs
from .array_plan import InputSizes, UploadField
from .images import MAX_IMAGES, ImageDecoder, Requester, RequestImage, image_fields, resolve_image
from .model_registry import ModelRegistry, Registries
from .plan import Chain, Plan, make_plan
from .schema import DryRunRequest, GenerateRequest, image_size
from .settings import Settings
from .store import Kind, Store, StoredFile, is_name
from .tasks import FairSemaphore, in_thread

log = logging.getLogger(__name__)

MAX_IMAGE_BYTES = 512 * 2**20  # decoded
_UNREAD_SHAPE = (1, 1, 3)  # stands for an image of a cancelled request, whose plan only counts its chunks
_INFO_TIMEOUT_S = 1.0  # how long a cancelled request waits for its pipelines, to report how many chunks it would have
_PLANS_AT_ONCE = 1  # Python runs one at a time anyway
_DRY_RUNS_LIMIT = 60
_DRY_RUNS_PERIOD_S = 60.0


@dataclass(frozen=True)
class CheckedRequest:
    """A request that can be served.

    Attributes:
        plan: its chunks.
        files: the uploads that the plan reads.
        images: the images that the plan names.
        registry: of the models of the Triton that has its pipelines.
    """

    plan: Plan
    files: Mapping[UploadField, StoredFile]
    images: Mapping[str, RequestImage]
    registry: ModelRegistry

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of all stored files that it reads."""
        return (*(file.name for file in self.files.values()), *filter(is_name, self.images))


class CheckCancelled(Exception):
    """The client cancelled its request during the check; `plan` is None if its pipelines were not known by then."""

    def __init__(self, plan: Plan | None) -> None:
        super().__init__()
        self.plan = plan


@dataclass(eq=False)
class _Check:
    """A check in progress. Once `chain` is set all files are found, but perhaps not all images."""

    generation_id: str
    client: str
    stand_ins: InputSizes
    allow_expired: bool
    candidates: Sequence[ModelRegistry]
    registry: ModelRegistry | None = None
    files: dict[UploadField, StoredFile] = field(default_factory=dict)
    images: dict[str, RequestImage] = field(default_factory=dict)
    chain: Chain | None = None
    task: asyncio.Task[None] | None = None
    is_cancelled: bool = False

    def stop(self, info_timeout_s: float = 0.0) -> None:
        """Stop the search. While the pipelines are not known yet, it may go on for `info_timeout_s`."""
        if self.task is None:
            return
        if self.chain is None:
            asyncio.get_running_loop().call_later(info_timeout_s, self.task.cancel)
        else:
            self.task.cancel()


class RequestChecker:
    """Checks requests, any number at a time."""

    def __init__(self, settings: Settings, registries: Registries, store: Store, decoder: ImageDecoder) -> None:
        self._max_chunk_bytes = settings.chunk_bytes
        self._registries = registries
        self._store = store
        self._decoder = decoder
        self._planning = FairSemaphore(_PLANS_AT_ONCE)
        self._checks: set[_Check] = set()

    async def check(
        self,
        request: GenerateRequest,
        generation_id: str,
        client: str,
        held_files: contextlib.ExitStack,
        *,
        stand_ins: InputSizes | None = None,
        allow_expired: bool = False,
        candidates: Sequence[ModelRegistry] = (),
    ) -> CheckedRequest:
        """Check a request.

        Args:
            request: to check.
            generation_id: for logs.
            client: who sent it.
            held_files: keeps the files that the request names from being deleted until it is closed.
            stand_ins: sizes of files and images in place of these; only the plan of the result can be used then.
            allow_expired: the files may have expired; somebody has held them meanwhile.
            candidates: the Tritons to choose from, the best one first; empty means all.

        Raises:
            CheckCancelled: `cancel` was called for this generation meanwhile.
            ShuttingDown: `close` was called meanwhile.
            FilmstripError: the request cannot be served.
        """
        check = _Check(generation_id, client, stand_ins or InputSizes(), allow_expired, candidates)
        self._checks.add(check)
        try:
            await self._find_unless_cancelled(request, check, held_files)
            if check.chain is None or check.registry is None:
                raise CheckCancelled(None)
            files, images, stand_ins = check.files, check.images, check.stand_ins
            shapes = {name: _UNREAD_SHAPE for _, name in image_fields(request)} | dict(stand_ins.image_shapes)
            shapes |= {name: image.shape for name, image in images.items()}
            inputs = InputSizes(
                input_shape=files[UploadField.INPUT].shape if UploadField.INPUT in files else stand_ins.input_shape,
                blob_bytes=files[UploadField.BLOB].size_bytes if UploadField.BLOB in files else stand_ins.blob_bytes,
                image_shapes=shapes,
            )
            async with self._planning.turn(client, check):
                plan = await in_thread(make_plan, request, check.chain, inputs, self._max_chunk_bytes)
            if check.is_cancelled:
                raise CheckCancelled(plan)
            return CheckedRequest(plan, files, images, check.registry)
        finally:
            self._checks.discard(check)

    def cancel(self, client: str, generation_id: str) -> bool:
        """Cancel the check of a client's generation; False if there is none."""
        checks = [check for check in self._checks if (check.client, check.generation_id) == (client, generation_id)]
        for check in checks:
            with logs.named(check.generation_id):  # called by another request
                log.info("cancel requested")
            check.is_cancelled = True
            check.stop(_INFO_TIMEOUT_S)
        return bool(checks)

    def close(self) -> None:
        """Stop all checks."""
        for check in self._checks:
            check.stop()

    async def _find_unless_cancelled(
        self, request: GenerateRequest, check: _Check, held_files: contextlib.ExitStack
    ) -> None:
        """Find everything that a plan needs, or as much as there was time for until the client cancelled.

        Raises:
            ShuttingDown: the checker was closed meanwhile.
        """
        check.task = asyncio.create_task(self._find(request, check, held_files), name="check a request")
        try:
            await check.task
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if waiting is not None and waiting.cancelling():  # the client is gone
                raise
            if not check.is_cancelled:
                raise ShuttingDown("the server is stopping") from None
        finally:
            check.task = None

    async def _find(self, request: GenerateRequest, check: _Check, held_files: contextlib.ExitStack) -> None:
        names = ("pipeline_id", "pre_processor_id", "post_processor_id")
        check.registry, specs = await self._registries.load_pipelines(
            check.candidates, **{name: getattr(request, name) for name in names}
        )
        is_stored = {
            UploadField.INPUT: check.stand_ins.input_shape is None,
            UploadField.BLOB: check.stand_ins.blob_bytes is None,
        }
        for upload, kind in ((UploadField.INPUT, Kind.VIDEO), (UploadField.BLOB, Kind.BLOB)):
            name = getattr(request, upload)
            if name is not None and is_stored[upload]:
                check.files[upload] = self._store.find(
                    name, kind, owner=check.client, field=upload, allow_expired=check.allow_expired
                )
                held_files.enter_context(self._store.holding(check.files[upload]))
        check.chain = Chain(specs["pipeline_id"], specs.get("pre_processor_id"), specs.get("post_processor_id"))
        if not check.is_cancelled:
            await self._find_images(request, check, held_files)

    async def _find_images(self, request: GenerateRequest, check: _Check, held_files: contextlib.ExitStack) -> None:
        requester = Requester(check.client, check)
        images = check.images
        shapes: dict[str, tuple[int, ...]] = {}
        num_bytes = 0
        for field_name, name in image_fields(request):
            if name in shapes:
                continue
            if len(shapes) == MAX_IMAGES:
                raise InvalidField(f"{field_name}: more than {MAX_IMAGES} images", field_name)
            if name in check.stand_ins.image_shapes:
                shapes[name] = check.stand_ins.image_shapes[name]
            else:
                images[name] = await resolve_image(
                    name,
                    field_name,
                    self._store,
                    self._decoder,
                    requester,
                    held_files=held_files,
                    allow_expired=check.allow_expired,
                )
                shapes[name] = images[name].shape
            num_bytes += math.prod(shapes[name])
            if num_bytes > MAX_IMAGE_BYTES:
                message = f"{field_name}: the request's images have more than {MAX_IMAGE_BYTES} bytes"
                raise InvalidField(message, field_name)


class DryRuns:
    """Plans requests without a slot, without the queue and without their files, at a limited rate."""

    def __init__(self, checker: RequestChecker, store: Store) -> None:
        self._checker = checker
        self._store = store
        self._times: dict[str, deque[float]] = {}

    def count(self, client: str) -> None:
        """Count a dry run of a client.

        Raises:
            TooManyRequests: it had 60 within a minute.
        """
        now = time.monotonic()
        times = self._times.setdefault(client, deque())
        while times and times[0] <= now - _DRY_RUNS_PERIOD_S:
            times.popleft()
        if len(times) >= _DRY_RUNS_LIMIT:
            error = TooManyRequests(f"at most {_DRY_RUNS_LIMIT} dry runs a minute")
            error.headers = {"Retry-After": str(int(times[0] + _DRY_RUNS_PERIOD_S - now) + 1)}
            raise error
        times.append(now)

    async def plan(self, client: str, request: GenerateRequest, body: DryRunRequest) -> Plan:
        """The plan of a request, with the sizes in the body in place of files.

        Raises:
            FilmstripError: the request cannot be served.
        """
        images = {name: size for _, name in image_fields(request) if (size := image_size(name)) is not None}
        uploads = body.uploads
        stand_ins = InputSizes(
            input_shape=VideoShape(*uploads.input_shape) if uploads and uploads.input_shape else None,
            blob_bytes=uploads.blob_bytes if uploads else None,
            image_shapes={name: (*size, 3) for name, size in images.items()},
        )
        with contextlib.ExitStack() as held_files:
            checked = await self._checker.check(request, "dry-run", client, held_files, stand_ins=stand_ins)
        self._store.check_fits(VIDEO_HEADER_BYTES + checked.plan.output.num_bytes, owner=client)
        return checked.plan
