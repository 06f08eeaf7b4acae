"""The clients at work: which actions there are, how often each comes, and the threads that do them."""

import contextlib
import functools
import random
import threading
import time
from collections.abc import Callable, Iterator

import httpx

from benchmarks.soak import downloads, generations, uploads
from benchmarks.soak.client import DEADLINE_S, Client, connect
from benchmarks.soak.judge import Judge
from benchmarks.soak.refusals import REFUSALS, refused
from benchmarks.soak.server import BODY_TIMEOUT_S, Server

Action = Callable[[Client], bool | None]

ACTIONS: dict[str, tuple[int, Action]] = {
    # Times in a deck, and the action; it gives False when it came to nothing, as another generation runs.
    "video": (3, uploads.video),
    "video_in_pieces": (2, uploads.video_in_pieces),
    "blob": (2, uploads.blob),
    "asset": (2, uploads.asset),
    "left_upload": (3, uploads.left_upload),
    "stalled_upload": (1, uploads.stalled_upload),
    "exact_chain": (8, generations.exact_chain),
    "other_chain": (4, generations.other_chain),
    "own_videos": (6, generations.own_videos),
    "probe_video": (3, generations.probe_video),
    "probe_text": (5, generations.probe_text),
    "asleep": (2, generations.asleep),
    "cancelled": (5, generations.cancelled),
    "left": (5, generations.left),
    "failing": (3, generations.failing),
    "vace": (5, generations.vace),
    "whole_download": (3, downloads.whole),
    "range": (4, downloads.in_ranges),
    "head": (1, downloads.head),
    "broken_off_download": (3, downloads.broken_off),
    "cancel": (1, downloads.cancel),
    "look": (8, downloads.look),
    "load": (1, downloads.load),
    **{name: (1, functools.partial(refused, kind=name)) for name in REFUSALS},
}


class Deck:
    """The actions in random order, each as often as its weight; shuffled anew when all were drawn.

    The first time around each comes once, so that all were done after a short while. What was never done yet is put
    back when it came to nothing.
    """

    def __init__(self, seed: int, done: Callable[[str], bool]) -> None:
        self._random = random.Random(seed)  # noqa: S311 - must be repeatable
        self._done = done
        self._cards = list(ACTIONS)
        self._random.shuffle(self._cards)
        self._lock = threading.Lock()

    def draw(self) -> str:
        """The next action."""
        with self._lock:
            if not self._cards:
                self._cards = [name for name, (weight, _) in ACTIONS.items() for _ in range(weight)]
                self._random.shuffle(self._cards)
            return self._cards.pop()

    def put_back(self, name: str) -> None:
        """It came to nothing."""
        if not self._done(name):
            with self._lock:
                self._cards.insert(self._random.randint(0, len(self._cards)), name)


class Traffic:
    """Several clients, each in a thread of its own while `flowing` is open.

    Args:
        server: that they use.
        judge: of the answers.
        num_clients: how many.
        rate: actions a second of all of them together, at most.
        seed: of all random numbers.
        ttl_s: how long files live on the server.
    """

    def __init__(self, server: Server, judge: Judge, *, num_clients: int, rate: float, seed: int, ttl_s: float) -> None:
        self._judge = judge
        self._pause_s = num_clients / rate
        self._deck = Deck(seed, lambda name: judge.actions[name] > 0)
        self._stop = threading.Event()
        self._url = server.url
        self._clients = [
            Client(connect(server.url), judge, f"{seed} {number}", ttl_s, BODY_TIMEOUT_S)
            for number in range(num_clients)
        ]

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """The clients do things; when it ends they have stopped and closed their connections."""
        self._stop.clear()
        threads = [threading.Thread(target=self._work, args=[client], daemon=True) for client in self._clients]
        try:
            for thread in threads:
                thread.start()
            yield
        finally:
            self._stop.set()
            deadline = time.monotonic() + DEADLINE_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    self._judge.fail("traffic", "", f"a client hangs for more than {DEADLINE_S:g} s")

    def _work(self, client: Client) -> None:
        client.http = connect(self._url)
        with client.http:
            while not self._stop.wait(client.random.uniform(0, 2 * self._pause_s)):
                act(client, self._deck)


def act(client: Client, deck: Deck) -> None:
    """Draw an action and do it."""
    kind = deck.draw()
    _, action = ACTIONS[kind]
    began = time.monotonic()
    try:
        came_to_nothing = action(client) is False
    except httpx.HTTPError as error:
        client.judge.fail(kind, "", repr(error))
        return
    except Exception as error:  # noqa: BLE001 - a fault of the soak itself must not end the client unseen
        client.judge.fail(kind, "", f"the soak's own fault: {error!r}")
        return
    took_s = time.monotonic() - began
    if took_s > DEADLINE_S:
        client.judge.fail(kind, "", f"it took {took_s:.0f} s")
    if came_to_nothing:
        deck.put_back(kind)
    else:
        client.judge.count(client.judge.actions, kind)
