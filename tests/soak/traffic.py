"""The clients at work, each in a thread, and the faults injected at random times."""

import contextlib
import functools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import psutil

from tests.soak import actions
from tests.soak.actions import provoke
from tests.soak.client import DEADLINE_S, RESPONSE_TIMEOUT_S, SoakClient
from tests.soak.judge import RECOVERY_S, Judge
from tests.soak.refusals import REFUSALS, refused
from tests.soak.server import BODY_TIMEOUT_S, STOPPED_S, SoakServer
from tests.support.http import connect

Action = Callable[[SoakClient], bool | None]

ACTIONS: dict[str, tuple[int, Action]] = {
    # The weight, and the action, which returns False if it could not run because another generation did.
    "video": (3, actions.video),
    "video_in_pieces": (2, actions.video_in_pieces),
    "blob": (2, actions.blob),
    "asset": (2, actions.asset),
    "left_upload": (3, actions.left_upload),
    "stalled_upload": (1, actions.stalled_upload),
    "exact_chain": (8, actions.exact_chain),
    "other_chain": (4, actions.other_chain),
    "own_videos": (6, actions.own_videos),
    "probe_video": (3, actions.probe_video),
    "probe_text": (5, actions.probe_text),
    "asleep": (2, actions.asleep),
    "cancelled": (5, actions.cancelled),
    "left": (5, actions.left),
    "failing": (3, actions.failing),
    "vace": (5, actions.vace),
    "whole_download": (3, actions.whole),
    "range": (4, actions.in_ranges),
    "head": (1, actions.head),
    "broken_off_download": (3, actions.broken_off),
    "cancel": (1, actions.cancel),
    "look": (8, actions.look),
    "load": (1, actions.load),
    **{name: (1, functools.partial(refused, kind=name)) for name in REFUSALS},
}


class Deck:
    """The actions in random order, each as often as its weight; reshuffled when all were drawn.

    The first deck has each action once, so that a short soak does them all. An action that could not run is put back
    until it has run once.
    """

    def __init__(self, seed: int, done: Callable[[str], bool]) -> None:
        self._random = random.Random(seed)
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
        """Put an action back that could not run, if it has never run."""
        if not self._done(name):
            with self._lock:
                self._cards.insert(self._random.randint(0, len(self._cards)), name)


class Traffic:
    """Several clients, each in a thread of its own while `running` is open.

    Args:
        server: the server under test.
        judge: checks the responses.
        num_clients: number of clients.
        rate: maximum actions per second of all clients together.
        seed: seed of all random numbers.
        ttl_s: seconds until files expire on the server.
    """

    def __init__(
        self, server: SoakServer, judge: Judge, *, num_clients: int, rate: float, seed: int, ttl_s: float
    ) -> None:
        self._judge = judge
        self._pause_s = num_clients / rate
        self._deck = Deck(seed, lambda name: judge.actions[name] > 0)
        self._stop = threading.Event()
        self._url = server.url
        self._clients = [
            SoakClient(connect(server.url, RESPONSE_TIMEOUT_S), judge, f"{seed} {number}", ttl_s, BODY_TIMEOUT_S)
            for number in range(num_clients)
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the clients; after the block they have stopped and closed their connections."""
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

    def _work(self, client: SoakClient) -> None:
        client.http = connect(self._url, RESPONSE_TIMEOUT_S)
        with client.http:
            while not self._stop.wait(client.random.uniform(0, 2 * self._pause_s)):
                act(client, self._deck)


def act(client: SoakClient, deck: Deck) -> None:
    """Draw an action and run it."""
    kind = deck.draw()
    _, action = ACTIONS[kind]
    began = time.monotonic()
    try:
        could_not_run = action(client) is False
    except httpx.HTTPError as error:
        client.judge.fail(kind, "", repr(error))
        return
    except Exception as error:  # noqa: BLE001 - an error of the soak itself must not end the client silently
        client.judge.fail(kind, "", f"error of the soak itself: {error!r}")
        return
    took_s = time.monotonic() - began
    if took_s > DEADLINE_S:
        client.judge.fail(kind, "", f"it took {took_s:.0f} s")
    if could_not_run:
        deck.put_back(kind)
    else:
        client.judge.count(client.judge.actions, kind)


class FaultInjector:
    """A thread that injects faults while `running` is open.

    Args:
        server: the server under test.
        judge: records every fault.
        every_s: average time between faults; each takes two thirds to four thirds of it.
        seed: seed of its random numbers.
        ttl_s: seconds until files expire on the server.
    """

    def __init__(self, server: SoakServer, judge: Judge, every_s: float, seed: int, ttl_s: float) -> None:
        self._server = server
        self._judge = judge
        self._every_s = every_s
        self._random = random.Random(f"{seed} chaos")
        self._client = SoakClient(
            connect(server.url, RESPONSE_TIMEOUT_S), judge, f"{seed} chaos", ttl_s, BODY_TIMEOUT_S
        )
        self._stop = threading.Event()
        self._deck: list[str] = []
        self.longest_recovery_s = 0.0
        self._faults: dict[str, Callable[[], psutil.Process | None]] = {
            "kill Triton": self._kill_triton,
            "kill a model": self._kill_model,
            "stop the frontend": self._stop_frontend,
            "!die": lambda: self._provoke("!die", "model_died"),
            "!hang": lambda: self._provoke("!hang", "chunk_timeout"),
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inject faults until the block ends."""
        self._stop.clear()
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(3 * RECOVERY_S)

    def _work(self) -> None:
        self._client.http = connect(self._server.url, RESPONSE_TIMEOUT_S)
        with self._client.http:
            while not self._stop.wait(self._every_s * self._random.uniform(2 / 3, 4 / 3)):
                if not self._deck:
                    self._deck = list(self._faults)
                    self._random.shuffle(self._deck)
                name = self._deck.pop()
                with contextlib.suppress(psutil.NoSuchProcess):  # another fault has just ended it
                    self._recover(name, self._faults[name]())

    def _recover(self, name: str, lost: psutil.Process | None) -> None:
        began = time.monotonic()
        if not self._server.wait_recovered(lost, RECOVERY_S):
            self._judge.fail(name, "", f"not healthy with all models {RECOVERY_S:g} s later")
        self.longest_recovery_s = max(self.longest_recovery_s, time.monotonic() - began)

    # -- Faults -----------------------------------------------------------------------------------------

    def _kill_triton(self) -> psutil.Process | None:
        triton = self._server.triton()
        if triton is not None:
            self._judge.note_fault("kill Triton", kills_triton=True)
            triton.kill()
        return triton

    def _kill_model(self) -> psutil.Process | None:
        processes = self._server.model_processes()
        if not processes:
            return None
        process = self._random.choice(processes)
        self._judge.note_fault("kill a model")
        process.kill()
        return process

    def _stop_frontend(self) -> None:
        frontend = self._server.process()
        self._judge.note_fault("stop the frontend")
        frontend.send_signal(signal.SIGSTOP)
        try:
            time.sleep(STOPPED_S)
        finally:
            frontend.send_signal(signal.SIGCONT)

    def _provoke(self, prompt: str, code: str) -> None:
        self._judge.note_fault(prompt)
        if not provoke(self._client, prompt, code):
            self._judge.fail(prompt, "", "the slot was never free")
        self._judge.prolong_fault()
