"""One client of the soak: its random numbers, connections and files, and how it follows a generation."""

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
"""The longest that any action may take."""
RESPONSE_TIMEOUT_S = 20.0
_MAX_FILES = 12
_CLOCK_S = 0.1  # file times have the resolution of the kernel's tick


class ClientLeft(Exception):
    """The client disconnects in the middle of a body."""


@dataclass
class StoredFile:
    """A file on the server whose content this client knows.

    Attributes:
        name: its name on the server.
        content: frames or bytes; None while it is not known.
        not_before: Unix time before which the file was not complete.
        not_after: Unix time by which it was.
        shape: shape of a video.
        origin: the request that created it, for people.
    """

    name: str
    content: Frames | bytes | None
    not_before: float
    not_after: float
    shape: tuple[int, ...] = ()
    origin: str = ""

    def may_have_expired(self, ttl_s: float) -> bool:
        """Whether it may have expired by now."""
        return time.time() > self.not_before + ttl_s - _CLOCK_S

    def has_expired(self, ttl_s: float) -> bool:
        """Whether it has certainly expired."""
        return time.time() > self.not_after + ttl_s + _CLOCK_S


@dataclass(frozen=True)
class SentRequest:
    """A request that was sent.

    Attributes:
        kind: kind of the action.
        description: what was sent, for people.
        files: stored files that it names.
        expired: names of those that had expired by then.
        began: monotonic time when it was sent.
    """

    kind: str
    description: str
    files: Sequence[StoredFile]
    expired: Sequence[str]
    began: float


@dataclass
class SoakClient:
    """One client; not thread-safe.

    Attributes:
        http: its connections.
        judge: checks every response.
        seed: seed of its random numbers.
        ttl_s: seconds until files expire on the server.
        body_timeout_s: how long the server waits for the next piece of a body.
        videos: videos that it uploaded.
        assets: images that it uploaded.
        outputs: videos that it generated.
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

    # -- Requests ---------------------------------------------------------------------------------------

    def send(
        self,
        kind: str,
        method: str,
        path: str,
        expected: Collection[int],
        *,
        files: Sequence[StoredFile] = (),
        **request: Any,
    ) -> httpx.Response | None:
        """Send a request and check its response; None if there was none or a wrong one, which is a failure.

        Args:
            kind: kind of the action.
            method: HTTP method.
            path: path and query.
            expected: expected statuses; 503 is also expected near a fault, and 404 for files that expire.
            files: stored files that the request names.
            request: arguments of httpx.
        """
        asked = self.record_request(kind, f"{method} {path} {describe(request)}", files)
        try:
            response = self.http.request(method, path, **request)
        except httpx.HTTPError as error:
            self.judge.fail(
                kind, asked.description, f"no response after {time.monotonic() - asked.began:.1f} s: {error!r}"
            )
            return None
        self.judge.count(self.judge.statuses, response.status_code)
        return response if self.is_right(asked, response, expected) else None

    def record_request(self, kind: str, description: str, files: Sequence[StoredFile]) -> SentRequest:
        """A record of a request that is sent now."""
        expired = [file.name for file in files if file.has_expired(self.ttl_s)]
        return SentRequest(kind, description, files, expired, time.monotonic())

    def is_right(self, asked: SentRequest, response: httpx.Response, expected: Collection[int]) -> bool:
        """Check a response whose body has been read."""
        status, files = response.status_code, asked.files
        wrong = None
        if files:
            expected = {*expected, 404}
        if status == 200 and response.request.url.path == GENERATE and _was_cancelled_in_check(_all_events(response)):
            return True
        if (
            response.request.method == "HEAD" or response.request.url.path == "/health"
        ):  # their errors have another format
            wrong = None if status in {*expected, 503} else f"status {status}"
        elif status not in expected or status >= 400:
            wrong = wrong_answer(status, response.content, expected, met_fault=self.judge.met_fault(asked.began))
        if wrong is None and files and status == 404 and not any(file.may_have_expired(self.ttl_s) for file in files):
            wrong = f"404 before the file expired: {response.text}"
        if wrong is None and asked.expired and status < 300:
            wrong = f"{status}, although these files had expired: {asked.expired}"
        if wrong is not None:
            self.judge.fail(asked.kind, asked.description, wrong)
        return wrong is None

    # -- Its files ------------------------------------------------------------------------------------

    def keep(self, files: list[StoredFile], file: StoredFile) -> StoredFile:
        """Remember a file; forget the oldest one if there are many."""
        files.append(file)
        del files[:-_MAX_FILES]
        return file

    def any_of(self, files: list[StoredFile]) -> StoredFile | None:
        """A random file of a list, if there is one."""
        return self.random.choice(files) if files else None

    def noise(self, *shape: int) -> Frames:
        """Random pixels."""
        return self.numbers.integers(0, 256, shape, np.uint8)

    def pieces(self, data: bytes, longest_pause_s: float = 0.0, leave_at: int | None = None) -> Iterator[bytes]:
        """A body in pieces of a random size, with pauses.

        Raises:
            ClientLeft: at byte `leave_at`.
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


def describe(request: dict[str, Any]) -> str:
    """What is sent, for people: JSON in full, bodies by their size and first bytes."""
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
    """A generation to run.

    Attributes:
        kind: kind of the action.
        request: the JSON body.
        outcome: the expected outcome.
        files: stored files that it names.
        frames: the expected video, as a function of each chunk's number of frames; None if only the shape is known.
        cancel_after_s: when to cancel it; None for never.
        leave_after_s: when to disconnect; None for never.
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
    """The part of a stream that was read."""

    began: float
    events: list[StreamEvent] = field(default_factory=list)
    wrong: str | None = None
    left: bool = False


def follow(client: SoakClient, case: GenerationCase) -> bool:
    """Run a generation; False if it could not start: slot taken, store full or Triton unavailable."""
    sent = describe({"json": case.request, "cancel": case.cancel_after_s, "leave": case.leave_after_s})
    not_before, asked = time.time(), client.record_request(case.kind, sent, case.files)
    timer = None
    if case.cancel_after_s is not None:
        timer = threading.Timer(case.cancel_after_s, _cancel, [client])
        timer.start()
    try:
        with client.http.stream("POST", GENERATE, json=case.request) as response:
            client.judge.count(client.judge.statuses, response.status_code)
            if response.status_code != 200:
                response.read()
                client.is_right(asked, response, {409, 507})
                return response.status_code not in {409, 503, 507}
            stream = _read(client, case, response, time.monotonic())
            if asked.expired and not _was_cancelled_in_check(stream.events):
                client.judge.fail(case.kind, sent, f"200, although these files had expired: {asked.expired}")
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
        http.post(str(client.http.base_url.join(CANCEL)), timeout=RESPONSE_TIMEOUT_S)
    except httpx.HTTPError as error:
        client.judge.fail("cancel", "", repr(error))


def _read(client: SoakClient, case: GenerationCase, response: httpx.Response, began: float) -> _Stream:
    stream = _Stream(began)
    leave_at = None if case.leave_after_s is None else began + case.leave_after_s
    for event in _events(response):
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


def _events(response: httpx.Response) -> Iterator[StreamEvent | None]:
    """The events, and None after every other line, so that the reader can check the time."""
    parser = EventParser()
    for line in response.iter_lines():
        event = parser.feed(line)
        if event is not None:
            yield StreamEvent(event.name, event.data)
        yield None


def _all_events(response: httpx.Response) -> list[StreamEvent]:
    return [event for event in _events(response) if event is not None]


def _was_cancelled_in_check(events: Sequence[StreamEvent]) -> bool:
    """Whether another client cancelled the generation while its request was checked, whatever is wrong with it."""
    return [event.name for event in events] == ["cancelled"] and events[0].data["chunk"] == 0


def _judge(client: SoakClient, case: GenerationCase, sent: str, stream: _Stream, not_before: float) -> None:
    description = f"{sent}; events: {[(event.name, event.data) for event in stream.events]}"
    if stream.wrong is None and not stream.left:
        met_fault = client.judge.met_fault(stream.began)
        stream.wrong = wrong_events(stream.events, case.outcome, met_fault=met_fault)
    if stream.wrong is not None:
        client.judge.count(client.judge.outcomes, "wrong")
        client.judge.fail(case.kind, description, stream.wrong)
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
    shape = tuple(last.data["video_shape"])
    output = StoredFile(last.data["output_path"], frames, not_before, time.time(), shape, description)
    fetch(client, f"{case.kind}: its video", client.keep(client.outputs, output))


def fetch(client: SoakClient, kind: str, output: StoredFile) -> None:
    """Download an output and compare it; content that is not known yet is remembered."""
    response = client.send(kind, "GET", DOWNLOAD, {200}, files=[output], params={"path": output.name})
    if response is None or response.status_code != 200:
        return
    frames = None if output.content is None or isinstance(output.content, bytes) else output.content
    wrong = wrong_video(response.content, output.shape, frames)
    if wrong is None and isinstance(output.content, bytes) and output.content != response.content:
        wrong = "different content than last time"
    if wrong is not None:
        client.judge.fail(kind, f"{output.name}, created by {output.origin}", wrong)
    output.content = response.content
