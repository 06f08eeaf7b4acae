"""Which generation runs next, and in which slot: a bounded, fair queue in front of the slots."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from . import metrics
from .generation import LiveGeneration, Slot
from .jobs import EntryPoint
from .model_registry import ModelRegistry

_TRITON_POLL_S = 1.0

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Hashable)
R = TypeVar("R")


class FairQueue(Generic[K, T]):
    """A queue that serves clients in turn, and each client's items in the order in which they came.

    The client whose item was taken goes to the end, so a client with one item waits for at most one of each other.

    Args:
        limits: how many items of each kind may wait.
    """

    def __init__(self, limits: Mapping[K, int]) -> None:
        self._limits = limits
        self._clients: OrderedDict[str, deque[T]] = OrderedDict()
        self._kinds: dict[T, K] = {}
        self._num: Counter[K] = Counter()

    def __len__(self) -> int:
        return len(self._kinds)

    def __iter__(self) -> Iterator[T]:
        """All items, the next one first, as they would be taken if no others came."""
        items = [deque(own) for own in self._clients.values()]
        while items:
            for own in items:
                yield own.popleft()
            items = [own for own in items if own]

    def has_room(self, kind: K) -> bool:
        """Whether another item of this kind may wait."""
        return self._num[kind] < self._limits[kind]

    def append(self, client: str, item: T, kind: K) -> None:
        """Add a client's item, whether there is room or not."""
        self._clients.setdefault(client, deque()).append(item)
        self._count(item, kind)

    def put_first(self, client: str, item: T, kind: K) -> None:
        """Add an item that is taken next, whether there is room or not."""
        self._clients.setdefault(client, deque()).appendleft(item)
        self._clients.move_to_end(client, last=False)
        self._count(item, kind)

    def pop(self, find: Callable[[T], R | None]) -> tuple[T, R] | None:
        """Take the next item for which `find` finds something, together with that; None if there is no such item."""
        for item in self:
            found = find(item)
            if found is not None:
                client = next(client for client, own in self._clients.items() if item in own)
                self.remove(client, item)
                if client in self._clients:
                    self._clients.move_to_end(client)
                return item, found
        return None

    def remove(self, client: str, item: T) -> bool:
        """Remove a client's item; False if it is not in the queue."""
        own = self._clients.get(client)
        if own is None or item not in own:
            return False
        own.remove(item)
        if not own:
            del self._clients[client]
        self._num[self._kinds.pop(item)] -= 1
        return True

    def position(self, item: T) -> int | None:
        """The place of an item, 1 for the next one; None if it is not in the queue."""
        return next((place for place, waiting in enumerate(self, 1) if waiting == item), None)

    def _count(self, item: T, kind: K) -> None:
        self._kinds[item] = kind
        self._num[kind] += 1


class Scheduler:
    """Gives slots to generations: at once, or in turn if they have to wait.

    Attributes:
        slots: one for each Triton.
        is_closed: nothing more is started.
        moved: set, and replaced, when places in the queue have changed.

    Args:
        slots: see above.
        limits: how many generations of each entry point may wait.
        start: starts a generation that has waited, in the slot that its run has taken.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        limits: Mapping[EntryPoint, int],
        start: Callable[[LiveGeneration, Slot], None],
    ) -> None:
        self.slots = tuple(slots)
        self.is_closed = False
        self.moved = asyncio.Event()
        self._queue: FairQueue[EntryPoint, LiveGeneration] = FairQueue(limits)
        self._start = start
        self._polls: set[asyncio.Task[None]] = set()
        for slot in self.slots:
            slot.on_free = self.dispatch

    def open(self) -> None:
        """Start what waits from the last run of the server, once Triton is ready."""
        for slot in self.slots:
            if len(self._queue):
                self.pause_until_ready(slot)
            elif self.has_several:
                self._poll(slot)

    def close(self) -> None:
        """Start nothing more."""
        self.is_closed = True
        self._queue_changed()

    async def stop(self) -> None:
        """Stop polling."""
        for poll in self._polls:
            poll.cancel()
        await asyncio.gather(*self._polls, return_exceptions=True)

    @property
    def has_several(self) -> bool:
        """There are several slots."""
        return len(self.slots) > 1

    # -- The queue ----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> Sequence[LiveGeneration]:
        """What waits, the next one first."""
        return list(self._queue)

    def has_room(self, entry_point: EntryPoint) -> bool:
        """Whether another generation of this entry point may wait."""
        return self._queue.has_room(entry_point)

    def add(self, live: LiveGeneration, *, first: bool = False) -> None:
        """Let a generation wait, whether there is room or not: as the last one of its client, or as the next one."""
        add = self._queue.put_first if first else self._queue.append
        add(live.record.client, live, live.record.entry_point)
        self._queue_changed()

    def remove(self, live: LiveGeneration) -> bool:
        """Take a generation out of the queue; False if it does not wait."""
        if not self._queue.remove(live.record.client, live):
            return False
        self._queue_changed()
        return True

    def position(self, live: LiveGeneration) -> int | None:
        """The place of a generation in the queue, 1 for the next one; None if it does not wait."""
        return self._queue.position(live)

    def _queue_changed(self) -> None:
        metrics.QUEUE_DEPTH.set(len(self._queue))
        self.moved.set()
        self.moved = asyncio.Event()

    # -- The slots ----------------------------------------------------------------------------------------------

    def free_slot(self, pipelines: Collection[str] = (), preferred: ModelRegistry | None = None) -> Slot | None:
        """A slot that can start a generation with these pipelines now.

        After `dispatch`, nothing that waits could start in it.
        """
        slots = [slot for slot in self.slots if slot.is_free and self._suits(slot, pipelines)]
        return min(slots, key=lambda slot: slot.registry is not preferred, default=None)

    def _suits(self, slot: Slot, pipelines: Collection[str]) -> bool:
        """Whether the slot's Triton is up and has the pipelines, as far as is known."""
        if not self.has_several:  # the check of a request has just asked it
            return not (slot.awaits_triton and len(self._queue))
        return not (slot.awaits_triton or slot.registry.is_interrupted) and set(pipelines) <= (
            slot.registry.names or set()
        )

    def best_first(self) -> Sequence[ModelRegistry]:
        """The Tritons in the order in which a request should try them."""
        return [slot.registry for slot in sorted(self.slots, key=lambda slot: (slot.awaits_triton, not slot.is_free))]

    def dispatch(self) -> None:
        """Start what waits, as far as slots are free."""
        while len(self._queue) and not self.is_closed:
            taken = self._queue.pop(lambda live: self.free_slot(live.record.pipelines))
            if taken is None:
                for slot in self.slots:
                    if self.has_several and slot.registry.is_interrupted:
                        self.pause_until_ready(slot)
                return
            live, slot = taken
            slot.take(live.run)
            self._start(live, slot)
            self._queue_changed()

    def pause_until_ready(self, slot: Slot) -> None:
        """Start nothing that waits in a slot until its Triton is ready."""
        if not slot.awaits_triton:
            slot.awaits_triton = True
            self._poll(slot)

    def _poll(self, slot: Slot) -> None:
        poll = asyncio.create_task(self._dispatch_when_ready(slot), name="wait for Triton")
        self._polls.add(poll)
        poll.add_done_callback(self._polls.discard)

    async def _dispatch_when_ready(self, slot: Slot) -> None:
        await asyncio.sleep(_TRITON_POLL_S)
        # Triton sends no events.
        while (readiness := await slot.registry.readiness()) is None or not readiness.can_generate:  # noqa: ASYNC110
            await asyncio.sleep(_TRITON_POLL_S)
        slot.awaits_triton = False
        self.dispatch()
