"""Follows one generation from its request to its last event, and judges it."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.soak.client import DEADLINE_S, Client, Held, describe
from benchmarks.soak.downloads import fetch
from benchmarks.soak.judge import END_AFTER_KILL_S, Event, Frames, Wanted, wrong_events

GENERATE, CANCEL = "/api/v1/generate", "/api/v1/generate/cancel"


@dataclass(frozen=True)
class Order:
    """A generation that a client wants.

    Attributes:
        kind: of the action.
        request: its JSON.
        wanted: what it should come to.
        files: that it names.
        frames: of the whole video, from the frames that each chunk added; None where only the shape is known.
        cancel_after_s: when to cancel it, None for never.
        leave_after_s: when to go away, None for never.
    """

    kind: str
    request: dict[str, Any]
    wanted: Wanted
    files: Sequence[Held] = ()
    frames: Callable[[list[int]], Frames] | None = None
    cancel_after_s: float | None = None
    leave_after_s: float | None = None


@dataclass
class _Stream:
    """A stream as far as it was read."""

    began: float
    events: list[Event] = field(default_factory=list)
    wrong: str | None = None
    left: bool = False


def follow(client: Client, order: Order) -> bool:
    """Run a generation; False when there was no place for it: another has the slot, the store is full, no Triton."""
    sent = describe({"json": order.request, "cancel": order.cancel_after_s, "leave": order.leave_after_s})
    not_before, asked = time.time(), client.asking(order.kind, sent, order.files)
    timer = None
    if order.cancel_after_s is not None:
        timer = threading.Timer(order.cancel_after_s, _cancel, [client])
        timer.start()
    try:
        with client.http.stream("POST", GENERATE, json=order.request) as answer:
            client.judge.count(client.judge.statuses, answer.status_code)
            if answer.status_code != 200:
                answer.read()
                client.is_right(asked, answer, {409, 507})
                return answer.status_code not in {409, 503, 507}
            if asked.gone:
                client.judge.fail(order.kind, sent, f"200, although these had expired: {asked.gone}")
            stream = _read(client, order, answer, time.monotonic())
    except httpx.HTTPError as error:
        client.judge.fail(order.kind, sent, f"the stream broke after {time.monotonic() - asked.began:.1f} s: {error!r}")
        return True
    finally:
        if timer is not None:
            timer.join()
    _judge(client, order, sent, stream, not_before)
    return True


def _cancel(client: Client) -> None:
    # Not with the client's own connections: this is another thread.
    try:
        httpx.post(client.http.base_url.join(CANCEL), timeout=20, trust_env=False)
    except httpx.HTTPError as error:
        client.judge.fail("cancel", "", repr(error))


def _read(client: Client, order: Order, answer: httpx.Response, began: float) -> _Stream:
    stream = _Stream(began)
    leave_at = None if order.leave_after_s is None else began + order.leave_after_s
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


def _events(answer: httpx.Response) -> Iterator[Event | None]:
    """The events; None after every line, so that the reader can look at the clock."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if line and not line.startswith(":"):
            fields[name] = value
        elif fields:
            yield Event(fields["event"], json.loads(fields["data"]))
            fields = {}
        yield None


def _judge(client: Client, order: Order, sent: str, stream: _Stream, not_before: float) -> None:
    told = f"{sent}; events: {[(event.name, event.data) for event in stream.events]}"
    if stream.wrong is None and not stream.left:
        met_fault = client.judge.met_fault(stream.began)
        stream.wrong = wrong_events(stream.events, order.wanted, met_fault=met_fault)
    if stream.wrong is not None:
        client.judge.count(client.judge.outcomes, "wrong")
        client.judge.fail(order.kind, told, stream.wrong)
        return
    if stream.left:
        client.judge.count(client.judge.outcomes, "left")
        return
    last = stream.events[-1]
    client.judge.count(client.judge.outcomes, last.data["code"] if last.name == "error" else last.name)
    if "output_path" not in last.data:
        return
    counts = [event.data["frames"] for event in stream.events[:-1]]
    frames = None if order.frames is None else order.frames(counts)[: sum(counts)]
    held = Held(last.data["output_path"], frames, not_before, time.time(), tuple(last.data["video_shape"]), told)
    fetch(client, f"{order.kind}: its video", client.keep(client.outputs, held))
