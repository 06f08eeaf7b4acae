"""One client of the soak: its random numbers, its connections, its files, and how it follows a generation."""

import json
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from tests.soak.judge import (
    END_AFTER_KILL_S,
    ExpectedOutcome,
    Frames,
    Judge,
    StreamEvent,
    wrong_answer,
    wrong_events,
    wrong_video,
)
from tests.support import http
from tests.support.http import CANCEL, DOWNLOAD, GENERATE
from tests.support.sse import EventParser

DEADLINE_S = 60.0
"""Longest that anything may take."""
_ANSWER_S = 20.0
_MOST_HELD = 12
_CLOCK_S = 0.1  # the times of files are those of the kernel's last tick


class ClientLeft(Exception):
    """The client goes away in the middle."""


@dataclass
class StoredFile:
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
class SentRequest:
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
    files: Sequence[StoredFile]
    gone: Sequence[str]
    began: float


@dataclass
class SoakClient:
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
    videos: list[StoredFile] = field(default_factory=list)
    assets: list[StoredFile] = field(default_factory=list)
    outputs: list[StoredFile] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.numbers = np.random.default_rng(self.random.getrandbits(64))

    # -- Asking -----------------------------------------------------------------------------------------

    def ask(
        self,
        kind: str,
        method: str,
        path: str,
        expected: Collection[int],
        *,
        files: Sequence[StoredFile] = (),
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

    def asking(self, kind: str, sent: str, files: Sequence[StoredFile]) -> SentRequest:
        """What to remember of a request that is sent now."""
        gone = [file.name for file in files if file.must_be_gone(self.ttl_s)]
        return SentRequest(kind, sent, files, gone, time.monotonic())

    def is_right(self, asked: SentRequest, answer: httpx.Response, expected: Collection[int]) -> bool:
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

    def keep(self, where: list[StoredFile], held: StoredFile) -> StoredFile:
        """Remember a file; the oldest is forgotten when there are many."""
        where.append(held)
        del where[:-_MOST_HELD]
        return held

    def any_of(self, held: list[StoredFile]) -> StoredFile | None:
        """One of its files, if it has any."""
        return self.random.choice(held) if held else None

    def noise(self, *shape: int) -> Frames:
        """Random pixels."""
        return self.numbers.integers(0, 256, shape, np.uint8)

    def pieces(self, data: bytes, longest_pause_s: float = 0.0, leave_at: int | None = None) -> Iterator[bytes]:
        """A body in pieces of random sizes, with pauses.

        Raises:
            ClientLeft: at the byte `leave_at`.
        """
        position = 0
        size = max(1, len(data) // self.random.randint(2, 12))
        while position < len(data):
            if leave_at is not None and position + size > leave_at:
                yield data[position:leave_at]
                raise ClientLeft
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


@dataclass(frozen=True)
class GenerationCase:
    """A generation that a client wants.

    Attributes:
        kind: of the action.
        request: its JSON.
        outcome: what it should come to.
        files: that it names.
        frames: of the whole video, from the frames that each chunk added; None where only the shape is known.
        cancel_after_s: when to cancel it, None for never.
        leave_after_s: when to go away, None for never.
    """

    kind: str
    request: dict[str, Any]
    outcome: ExpectedOutcome
    files: Sequence[StoredFile] = ()
    frames: Callable[[list[int]], Frames] | None = None
    cancel_after_s: float | None = None
    leave_after_s: float | None = None


@dataclass
class _Stream:
    """A stream as far as it was read."""

    began: float
    events: list[StreamEvent] = field(default_factory=list)
    wrong: str | None = None
    left: bool = False


def follow(client: SoakClient, case: GenerationCase) -> bool:
    """Run a generation; False when there was no place for it: another has the slot, the store is full, no Triton."""
    sent = describe({"json": case.request, "cancel": case.cancel_after_s, "leave": case.leave_after_s})
    not_before, asked = time.time(), client.asking(case.kind, sent, case.files)
    timer = None
    if case.cancel_after_s is not None:
        timer = threading.Timer(case.cancel_after_s, _cancel, [client])
        timer.start()
    try:
        with client.http.stream("POST", GENERATE, json=case.request) as answer:
            client.judge.count(client.judge.statuses, answer.status_code)
            if answer.status_code != 200:
                answer.read()
                client.is_right(asked, answer, {409, 507})
                return answer.status_code not in {409, 503, 507}
            if asked.gone:
                client.judge.fail(case.kind, sent, f"200, although these had expired: {asked.gone}")
            stream = _read(client, case, answer, time.monotonic())
    except (httpx.HTTPError, ValueError) as error:
        client.judge.fail(case.kind, sent, f"the stream broke after {time.monotonic() - asked.began:.1f} s: {error!r}")
        return True
    finally:
        if timer is not None:
            timer.join()
    _judge(client, case, sent, stream, not_before)
    return True


def _cancel(client: SoakClient) -> None:
    # Not with the client's own connections: this is another thread.
    try:
        http.post(str(client.http.base_url.join(CANCEL)), timeout=_ANSWER_S)
    except httpx.HTTPError as error:
        client.judge.fail("cancel", "", repr(error))


def _read(client: SoakClient, case: GenerationCase, answer: httpx.Response, began: float) -> _Stream:
    stream = _Stream(began)
    leave_at = None if case.leave_after_s is None else began + case.leave_after_s
    for event in _events(answer):
        now = time.monotonic()
        kill = client.judge.kill_since(began)
        if event is not None:
            stream.events.append(event)
        elif leave_at is not None and now > leave_at:
            stream.left = True
            break
        if kill is not None and now > kill + END_AFTER_KILL_S:
            stream.wrong = f"goes on {now - kill:.1f} s after Triton was killed"
            break
        if now > began + DEADLINE_S:
            stream.wrong = f"goes on after {DEADLINE_S:g} s"
            break
    return stream


def _events(answer: httpx.Response) -> Iterator[StreamEvent | None]:
    """The events; None after every line, so that the reader can look at the clock."""
    parser = EventParser()
    for line in answer.iter_lines():
        event = parser.feed(line)
        if event is not None:
            yield StreamEvent(event.name, event.data)
        yield None


def _judge(client: SoakClient, case: GenerationCase, sent: str, stream: _Stream, not_before: float) -> None:
    told = f"{sent}; events: {[(event.name, event.data) for event in stream.events]}"
    if stream.wrong is None and not stream.left:
        met_fault = client.judge.met_fault(stream.began)
        stream.wrong = wrong_events(stream.events, case.outcome, met_fault=met_fault)
    if stream.wrong is not None:
        client.judge.count(client.judge.outcomes, "wrong")
        client.judge.fail(case.kind, told, stream.wrong)
        return
    if stream.left:
        client.judge.count(client.judge.outcomes, "left")
        return
    last = stream.events[-1]
    client.judge.count(client.judge.outcomes, last.data["code"] if last.name == "error" else last.name)
    if "output_path" not in last.data:
        return
    counts = [event.data["frames"] for event in stream.events[:-1]]
    frames = None if case.frames is None else case.frames(counts)[: sum(counts)]
    held = StoredFile(last.data["output_path"], frames, not_before, time.time(), tuple(last.data["video_shape"]), told)
    fetch(client, f"{case.kind}: its video", client.keep(client.outputs, held))


def fetch(client: SoakClient, kind: str, output: StoredFile) -> None:
    """Download an output and compare it; what only its shape is known of is remembered."""
    answer = client.ask(kind, "GET", DOWNLOAD, {200}, files=[output], params={"path": output.name})
    if answer is None or answer.status_code != 200:
        return
    frames = None if output.content is None or isinstance(output.content, bytes) else output.content
    wrong = wrong_video(answer.content, output.shape, frames)
    if wrong is None and isinstance(output.content, bytes) and output.content != answer.content:
        wrong = "another content than the last time"
    if wrong is not None:
        client.judge.fail(kind, f"{output.name}, made by {output.made_by}", wrong)
    output.content = answer.content
