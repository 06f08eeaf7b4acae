"""Dry runs: the plan of a request, or the error that it would get, at a limited rate."""

import contextlib
import time
from collections import deque

from filmstrip.errors import TooManyRequests
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape

from .generation_schema import DryRunRequest, image_size
from .plan import Plan
from .request_check import RequestChecker, StandIns
from .schema import GenerateRequest
from .store import Store

_LIMIT = 60
_PERIOD_S = 60.0


class DryRuns:
    """Plans requests without a slot, without the queue and without their files."""

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
        while times and times[0] <= now - _PERIOD_S:
            times.popleft()
        if len(times) >= _LIMIT:
            error = TooManyRequests(f"at most {_LIMIT} dry runs a minute")
            error.headers = {"Retry-After": str(int(times[0] + _PERIOD_S - now) + 1)}
            raise error
        times.append(now)

    async def plan(self, client: str, request: GenerateRequest, body: DryRunRequest) -> Plan:
        """The plan of a request, with the sizes in the body in place of files.

        Raises:
            FilmstripError: the request cannot be served.
        """
        images = {
            name: size
            for spec in request.chunk_specs or ()
            for name in (spec.first_frame_image, spec.last_frame_image, *(spec.vace_ref_images or ()))
            if name is not None and (size := image_size(name)) is not None
        }
        uploads = body.uploads
        stand_ins = StandIns(
            input_shape=VideoShape(*uploads.input_shape) if uploads and uploads.input_shape else None,
            blob_bytes=uploads.blob_bytes if uploads else None,
            image_shapes={name: (*size, 3) for name, size in images.items()},
        )
        with contextlib.ExitStack() as uses:
            checked = await self._checker.check(request, "dry-run", client, uses, stand_ins=stand_ins)
        self._store.check_fits(VIDEO_HEADER_BYTES + checked.plan.output.num_bytes, owner=client)
        return checked.plan
