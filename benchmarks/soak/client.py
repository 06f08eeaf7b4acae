"""One client of the soak: its own random numbers, its own connections, and what it has uploaded and made."""

import json
import random
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.soak.judge import Frames, Judge, wrong_answer

DEADLINE_S = 60.0
"""Longest that anything may take."""
_ANSWER_S = 20.0
_MOST_HELD = 12
_CLOCK_S = 0.1  # the times of files are those of the kernel's last tick


class Left(Exception):
    """The client goes away in the middle."""


@dataclass
class Held:
    """A file on the server that this client knows the content of.

    Attributes:
        name: the server's.
        content: what is in it: frames or bytes; None while that is not known.
        shape: of a video.
        not_before: the file was not whole before this moment of the Unix clock.
        not_after: it was by this one.
    """

    name: str
    content: Frames | bytes | None
    not_before: float
    not_after: float
    shape: tuple[int, ...] = ()
    made_by: str = ""

    def may_be_gone(self, ttl_s: float) -> bool:
        """It may have expired by now."""
        return time.time() > self.not_before + ttl_s - _CLOCK_S

    def must_be_gone(self, ttl_s: float) -> bool:
        """It has expired."""
        return time.time() > self.not_after + ttl_s + _CLOCK_S


@dataclass(frozen=True)
class Asked:
    """A request that was sent.

    Attributes:
        kind: of the action.
        sent: what was sent, for people.
        files: that it names.
        gone: names of those that had expired by then.
        began: when, by the monotonic clock.
    """

    kind: str
    sent: str
    files: Sequence[Held]
    gone: Sequence[str]
    began: float


@dataclass
class Client:
    """See the module. Not for several threads.

    Attributes:
        http: its connections.
        judge: to whom every answer goes.
        seed: of its random numbers.
        ttl_s: how long files live on the server.
        body_timeout_s: how long the server waits for the next piece of a body.
        videos: that it uploaded.
        assets: likewise.
        outputs: that it made.
    """

    http: httpx.Client
    judge: Judge
    seed: str
    ttl_s: float
    body_timeout_s: float
    videos: list[Held] = field(default_factory=list)
    assets: list[Held] = field(default_factory=list)
    outputs: list[Held] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - must be repeatable
        self.numbers = np.random.default_rng(self.random.getrandbits(64))

    # -- Asking -----------------------------------------------------------------------------------------

    def ask(
        self,
        kind: str,
        method: str,
        path: str,
        expected: Collection[int],
        *,
        files: Sequence[Held] = (),
        **request: Any,
    ) -> httpx.Response | None:
        """Send a request and judge its answer; None where none came or a wrong one did, which is a failure.

        Args:
            kind: of the action.
            method: of HTTP.
            path: where to.
            expected: statuses that are right; 503 is, too, near a fault, and 404 for files that expire.
            files: that the request names.
            request: as httpx takes it.
        """
        asked = self.asking(kind, f"{method} {path} {describe(request)}", files)
        try:
            answer = self.http.request(method, path, **request)
        except httpx.HTTPError as error:
            self.judge.fail(kind, asked.sent, f"no answer after {time.monotonic() - asked.began:.1f} s: {error!r}")
            return None
        self.judge.count(self.judge.statuses, answer.status_code)
        return answer if self.is_right(asked, answer, expected) else None

    def asking(self, kind: str, sent: str, files: Sequence[Held]) -> Asked:
        """What to remember of a request that is sent now."""
        gone = [file.name for file in files if file.must_be_gone(self.ttl_s)]
        return Asked(kind, sent, files, gone, time.monotonic())

    def is_right(self, asked: Asked, answer: httpx.Response, expected: Collection[int]) -> bool:
        """Judge an answer whose body was read."""
        status, files = answer.status_code, asked.files
        wrong = None
        if files:
            expected = {*expected, 404}
        if answer.request.method == "HEAD" or answer.request.url.path == "/health":  # no error in the one shape
            wrong = None if status in {*expected, 503} else f"status {status}"
        elif status not in expected or status >= 400:
            wrong = wrong_answer(status, answer.content, expected, met_fault=self.judge.met_fault(asked.began))
        if wrong is None and files and status == 404 and not any(file.may_be_gone(self.ttl_s) for file in files):
            wrong = f"404 before its time: {answer.text}"
        if wrong is None and asked.gone and status < 300:
            wrong = f"{status}, although these had expired: {asked.gone}"
        if wrong is not None:
            self.judge.fail(asked.kind, asked.sent, wrong)
        return wrong is None

    # -- What it has ------------------------------------------------------------------------------------

    def keep(self, where: list[Held], held: Held) -> Held:
        """Remember a file; the oldest is forgotten when there are many."""
        where.append(held)
        del where[:-_MOST_HELD]
        return held

    def any_of(self, held: list[Held]) -> Held | None:
        """One of its files, if it has any."""
        return self.random.choice(held) if held else None

    def noise(self, *shape: int) -> Frames:
        """Random pixels."""
        return self.numbers.integers(0, 256, shape, np.uint8)

    def pieces(self, data: bytes, longest_pause_s: float = 0.0, leave_at: int | None = None) -> Iterator[bytes]:
        """A body in pieces of random sizes, with pauses.

        Raises:
            Left: at the byte `leave_at`.
        """
        position = 0
        size = max(1, len(data) // self.random.randint(2, 12))
        while position < len(data):
            if leave_at is not None and position + size > leave_at:
                yield data[position:leave_at]
                raise Left
            yield data[position : position + size]
            position += size
            if longest_pause_s:
                time.sleep(self.random.uniform(0, longest_pause_s))


def connect(url: str) -> httpx.Client:
    """Connections to a server; idle ones are given up long before the server (5 s) does, so that none breaks in use."""
    limits = httpx.Limits(keepalive_expiry=1.0)
    return httpx.Client(base_url=url, timeout=_ANSWER_S, limits=limits, trust_env=False)


def describe(request: dict[str, Any]) -> str:
    """What is sent, for people: JSON as it is, bodies by their size."""
    parts = []
    for name, value in request.items():
        if isinstance(value, bytes):
            parts.append(f"{name}: {len(value)} bytes {value[:60]!r}")
        elif name == "json":
            parts.append(f"{name}: {json.dumps(value, default=repr)}")
        else:
            parts.append(f"{name}: {value!r}")
    return ", ".join(parts)
