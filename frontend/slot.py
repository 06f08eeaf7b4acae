"""One generation at a time: who gets the slot, and when it is free again."""

import contextlib
import logging
import secrets

from filmstrip.errors import Busy, ClientGone, ShuttingDown
from filmstrip.models import Cancelled
from filmstrip.wire import VIDEO_HEADER_BYTES

from . import logs, metrics
from .generation import Generation
from .images import ImageDecoder
from .model_registry import ModelRegistry
from .request_check import CheckCancelled, RequestChecker
from .schema import GenerateRequest
from .settings import Settings
from .store import Kind, Store

log = logging.getLogger(__name__)


class Slot:
    """Holds at most one generation.

    Attributes:
        current: the generation that runs.
        is_closed: the server is stopping.
    """

    def __init__(self, settings: Settings, models: ModelRegistry, store: Store, decoder: ImageDecoder) -> None:
        self._triton = models.client
        self._store = store
        self._checker = RequestChecker(settings, models, store, decoder)
        self.is_closed = False
        self.current: Generation | None = None

    async def start(self, request: GenerateRequest, client: str = "") -> Generation:
        """Check a client's request, take the slot and start the generation.

        The slot is not held during the check: of several requests that are checked at once, the first to pass takes
        it. A request that its client cancels meanwhile gives a generation whose only event is `cancelled`.

        Raises:
            Busy: another generation has the slot, before the check or after it.
            FilmstripError: the request cannot be served.
        """
        self._check_is_free()
        generation = Generation(secrets.token_hex(8), client)
        logs.name_generation(generation.id)
        with contextlib.ExitStack() as uses:
            try:
                checked = await self._checker.check(request, generation.id, client, uses)
            except CheckCancelled as cancelled:
                metrics.GENERATIONS.labels("cancelled").inc()
                log.info("cancelled before it started")
                generation.unused, num_chunks = (), 0
                if cancelled.plan is not None:
                    generation.unused, num_chunks = cancelled.plan.unused, len(cancelled.plan.chunks)
                generation.events.append(Cancelled(0, num_chunks, 0, seed=request.seed, unused=generation.unused))
                return generation
            self._check_is_free()  # nothing is awaited from here on, so only one of several requests finds it free
            num_bytes = VIDEO_HEADER_BYTES + checked.plan.output.num_bytes
            output = self._store.draft(Kind.OUTPUT, num_bytes, owner=client)
            log.info("%d frames of %s in %d chunks", request.num_frames, request.pipeline_id, len(checked.plan.chunks))
            generation.start(checked, output, self._triton, self._store, uses=uses.pop_all(), on_end=self._release)
        self.current = generation
        metrics.SLOT_IN_USE.set(1)
        return generation

    def cancel(self, client: str = "") -> bool:
        """End a client's generation after its current chunk, or cancel its checks; False if it has neither."""
        if self.current is not None and self.current.client == client:
            self.current.cancel()
            return True
        return self._checker.cancel(client)

    def abandon(self, generation: Generation) -> None:
        """End a generation as soon as the model stops, because its client is gone."""
        if self.current is generation:
            with logs.named(generation.id):  # called by the connection, which serves other requests too
                log.info("the client is gone")
            generation.abort(ClientGone("the client is gone"))

    async def close(self, timeout_s: float) -> None:
        """End the generation and all checks, and accept no others."""
        self.is_closed = True
        self._checker.close()
        if self.current is not None:
            self.current.abort(ShuttingDown("the server is stopping"))
            await self.current.wait(timeout_s)

    def _check_is_free(self) -> None:
        if self.is_closed:
            raise ShuttingDown("the server is stopping")
        if self.current is not None:
            raise Busy("another generation runs")

    def _release(self) -> None:
        self.current = None
        metrics.SLOT_IN_USE.set(0)
