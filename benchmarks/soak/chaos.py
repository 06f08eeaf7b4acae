"""Faults at random times: what the server must get over by itself."""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from benchmarks.soak.client import Client, connect
from benchmarks.soak.generations import provoke
from benchmarks.soak.judge import RECOVERY_S, Judge
from benchmarks.soak.server import BODY_TIMEOUT_S, STOPPED_S, Server


class Chaos:
    """A thread that does harm while `raging` is open.

    Args:
        server: that it harms.
        judge: that is told of every fault.
        every_s: the time between faults, on average; from two thirds of it to four thirds.
        seed: of its random numbers.
        ttl_s: how long files live on the server.
    """

    def __init__(self, server: Server, judge: Judge, every_s: float, seed: int, ttl_s: float) -> None:
        self._server = server
        self._judge = judge
        self._every_s = every_s
        self._random = random.Random(f"{seed} chaos")  # noqa: S311 - must be repeatable
        self._client = Client(connect(server.url), judge, f"{seed} chaos", ttl_s, BODY_TIMEOUT_S)
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
    def raging(self) -> Iterator[None]:
        """Faults come; when it ends, no other comes."""
        self._stop.clear()
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(3 * RECOVERY_S)

    def _work(self) -> None:
        self._client.http = connect(self._server.url)
        with self._client.http:
            while not self._stop.wait(self._every_s * self._random.uniform(2 / 3, 4 / 3)):
                if not self._deck:
                    self._deck = list(self._faults)
                    self._random.shuffle(self._deck)
                name = self._deck.pop()
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended this moment, of another fault
                    self._recover(name, self._faults[name]())

    def _recover(self, name: str, lost: psutil.Process | None) -> None:
        began = time.monotonic()
        if not self._server.wait_whole(lost, RECOVERY_S):
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
        stubs = self._server.stubs()
        if not stubs:
            return None
        stub = self._random.choice(stubs)
        self._judge.note_fault("kill a model")
        stub.kill()
        return stub

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
            self._judge.fail(prompt, "", "there was never a place for it")
        self._judge.prolong_fault()
