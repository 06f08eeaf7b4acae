"""The queue of generations that wait: bounded, and fair between clients."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Hashable)


class QueueIsFull(Exception):
    """As many items of this kind wait as the queue may hold."""


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

    def push(self, client: str, item: T, kind: K) -> None:
        """Add a client's item.

        Raises:
            QueueIsFull: there is no room.
        """
        if not self.has_room(kind):
            raise QueueIsFull
        self.append(client, item, kind)

    def append(self, client: str, item: T, kind: K) -> None:
        """Add a client's item, whether there is room or not."""
        self._clients.setdefault(client, deque()).append(item)
        self._count(item, kind)

    def put_first(self, client: str, item: T, kind: K) -> None:
        """Add an item that is taken next, whether there is room or not."""
        self._clients.setdefault(client, deque()).appendleft(item)
        self._clients.move_to_end(client, last=False)
        self._count(item, kind)

    def pop(self, can_be_taken: Callable[[T], bool] = lambda _: True) -> T:
        """Take the next item that can be taken.

        Raises:
            IndexError: there is none.
        """
        for item in self:
            if can_be_taken(item):
                client = next(client for client, own in self._clients.items() if item in own)
                self.remove(client, item)
                if client in self._clients:
                    self._clients.move_to_end(client)
                return item
        raise IndexError("no item can be taken")

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
