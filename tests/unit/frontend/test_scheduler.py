"""The queue: bounded, fair between clients, in order for each of them."""

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from frontend.scheduler import FairQueue

CLIENTS = st.sampled_from(["", "alice", "bob", "carol"])
LIMITS = {"few": 2, "many": 1000, "none": 0}
Item = tuple[str, int]
Queue = FairQueue[str, Item]


def taken(queue: Queue) -> Item:
    """The next item, whichever it is."""
    popped = queue.pop(lambda item: item)
    assert popped is not None
    return popped[0]


class Queueing(RuleBasedStateMachine):
    """The queue against a plain list of what waits, in the order in which each client's items are served."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: Queue = FairQueue(LIMITS)
        self.waiting: list[Item] = []
        self.kinds: dict[Item, str] = {}

    def new(self, client: str, kind: str) -> Item:
        item = (client, len(self.kinds))
        self.kinds[item] = kind
        return item

    def num(self, kind: str) -> int:
        return sum(self.kinds[item] == kind for item in self.waiting)

    @rule(client=CLIENTS, kind=st.sampled_from(list(LIMITS)))
    def push(self, client: str, kind: str) -> None:
        item = self.new(client, kind)
        if self.num(kind) >= LIMITS[kind]:
            assert not self.queue.has_room(kind)
        else:
            self.queue.append(client, item, kind)
            self.waiting.append(item)

    @rule(client=CLIENTS, kind=st.sampled_from(list(LIMITS)))
    def put_first(self, client: str, kind: str) -> None:
        item = self.new(client, kind)
        self.queue.put_first(client, item, kind)
        self.waiting.insert(0, item)
        assert self.queue.position(item) == 1

    @precondition(lambda self: self.waiting)
    @rule()
    def pop(self) -> None:
        promised = next(iter(self.queue))
        item = taken(self.queue)
        assert item == promised == next(waiting for waiting in self.waiting if waiting[0] == item[0])
        self.waiting.remove(item)

    @rule(rest=st.integers(0, 2))
    def pop_one_that_can_be_taken(self, rest: int) -> None:
        expected = next((item for item in self.queue if item[1] % 3 == rest), None)
        popped = self.queue.pop(lambda item: item[1] if item[1] % 3 == rest else None)
        if expected is None:
            assert popped is None
            return
        assert popped == (expected, expected[1])
        clients = list(dict.fromkeys(item[0] for item in self.queue))
        assert expected[0] not in clients[:-1]  # its turn comes last now
        self.waiting.remove(expected)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        assert not self.queue.remove("mallory", item)
        assert self.queue.remove(item[0], item)
        assert not self.queue.remove(item[0], item)
        assert self.queue.position(item) is None
        self.waiting.remove(item)

    @invariant()
    def everything_has_its_place(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert sorted(self.queue) == sorted(self.waiting)
        assert [self.queue.position(item) for item in self.queue] == list(range(1, len(self.waiting) + 1))
        assert all(self.queue.has_room(kind) == (self.num(kind) < limit) for kind, limit in LIMITS.items())


TestQueueing = Queueing.TestCase


@given(st.lists(CLIENTS, min_size=1))
def test_a_client_waits_for_at_most_one_item_of_each_other_client(clients: list[str]) -> None:
    queue: Queue = FairQueue(LIMITS)
    for number, client in enumerate(clients):
        queue.append(client, (client, number), "many")
    expected = list(queue)
    served = [taken(queue) for _ in clients]
    assert served == expected
    for client in set(clients):
        own = [index for index, item in enumerate(served) if item[0] == client]
        for first, second in zip([-1, *own], own, strict=False):
            between = [item[0] for item in served[first + 1 : second]]
            assert len(between) == len(set(between))


def test_clients_take_turns() -> None:
    queue: Queue = FairQueue(LIMITS)
    for number in range(50):
        queue.append("alice", ("alice", number), "many")
    queue.append("bob", ("bob", 0), "many")
    assert [taken(queue)[0] for _ in range(3)] == ["alice", "bob", "alice"]
    queue.append("bob", ("bob", 1), "many")
    assert [client for client, _ in groupby(item[0] for item in queue)] == ["alice", "bob", "alice"]


def test_an_empty_queue_has_nothing_to_give() -> None:
    queue: Queue = FairQueue(LIMITS)
    assert list(queue) == []
    assert queue.pop(lambda item: item) is None
