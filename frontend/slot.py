"""One generation at a time: who has the slot, and when it is free again."""

import logging
from collections.abc import Callable

from filmstrip.wire import VIDEO_HEADER_BYTES

from . import metrics
from .generation import Generation
from .request_check import CheckedRequest
from .store import Kind, Store
from .triton import TritonClient

log = logging.getLogger(__name__)


class Slot:
    """Holds at most one generation.

    Attributes:
        current: the generation that has the slot; it may not have been started yet.
        on_free: called when the slot has become free.
    """

    def __init__(self, triton: TritonClient, store: Store) -> None:
        self._triton = triton
        self._store = store
        self.current: Generation | None = None
        self.on_free: Callable[[], None] = lambda: None

    @property
    def is_free(self) -> bool:
        """No generation has the slot."""
        return self.current is None

    def take(self, generation: Generation) -> None:
        """Give the slot to a generation."""
        if self.current is not None:
            raise RuntimeError("another generation has the slot")
        self.current = generation
        metrics.SLOTS_IN_USE.inc()

    def start(self, generation: Generation, request: CheckedRequest) -> None:
        """Start a generation, which takes the slot unless it has it already and releases it at its end.

        Args:
            generation: to start.
            request: to serve.

        Raises:
            StorageFull: the output does not fit; nothing has changed then.
        """
        plan = request.plan
        output = self._store.draft(Kind.OUTPUT, VIDEO_HEADER_BYTES + plan.output.num_bytes, owner=generation.client)
        if self.current is not generation:
            self.take(generation)
        log.info("%d frames of %s in %d chunks", plan.output.frames, plan.chain.pipeline.id, len(plan.chunks))
        generation.start(request, output, self._triton, self._store, on_end=self.release)

    def release(self) -> None:
        """Free the slot."""
        self.current = None
        metrics.SLOTS_IN_USE.dec()
        self.on_free()
