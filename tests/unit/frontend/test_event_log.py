"""The event log and its stream: what is appended is what any follower reads, to the last event and no further."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.models import Cancelled, Complete, ErrorEvent, Event, Progress, parse_event
from filmstrip.wire import VideoShape
from frontend.events import KEEP_ALIVE, EventLog, encode_event

COUNTS = st.integers(0, 2**31)
SECONDS = st.floats(0, 1e6)
SHAPES = st.builds(VideoShape, *(st.integers(1, 2**32 - 1) for _ in range(4)))
SEEDS = st.integers(0, 2**64 - 1)
UNUSED = st.lists(st.text(), max_size=3).map(tuple)
PROGRESS = st.builds(Progress, COUNTS, COUNTS, COUNTS, SECONDS, SECONDS)
ENDS = st.one_of(
    st.builds(Complete, st.text(), SHAPES, COUNTS, COUNTS, COUNTS, SEEDS, UNUSED),
    st.builds(Cancelled, COUNTS, COUNTS, COUNTS),
    st.builds(Cancelled, COUNTS, COUNTS, COUNTS, st.text(), SHAPES, SEEDS, UNUSED),
    st.builds(ErrorEvent, st.text(), st.text()),
)
FIRST, SECOND = Progress(1, 2, 9, 0.5, 18.0), Progress(2, 2, 3, 0.25, 12.0)
LAST = Complete("output-1", VideoShape(12, 4, 6), 12, 2, 12, 2**64 - 1, ("seed",))
LONG_S = 60.0


def decoded(stream: bytes) -> list[ServerSentEvent]:
    answer = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream)
    return list(EventSource(answer).iter_sse())


def log_of(*events: Event) -> EventLog:
    log = EventLog()
    for event in events:
        log.append(event)
    return log


async def read(stream: AsyncIterator[bytes]) -> list[bytes]:
    return [part async for part in stream]


@given(st.lists(PROGRESS, max_size=5), ENDS)
def test_a_stream_is_read_back_as_the_events_that_were_appended(chunks: list[Progress], end: Event) -> None:
    events = [*chunks, end]
    stream = b"".join(asyncio.run(read(log_of(*events).follow(LONG_S))))
    found = decoded(stream)
    assert [parse_event(event.event, event.data) for event in found] == events
    assert [event.id for event in found] == [str(number) for number in range(1, len(events) + 1)]


@given(st.integers(1, 10**6), PROGRESS | ENDS)
def test_an_event_is_three_lines_and_an_empty_one(number: int, event: Event) -> None:
    lines = encode_event(number, event).split(b"\n")
    assert [line.partition(b": ")[0] for line in lines] == [b"id", b"event", b"data", b"", b""]
    assert lines[0] == b"id: %d" % number
    assert b"\r" not in encode_event(number, event)


@pytest.mark.parametrize(
    ("event", "line", "data"),
    [
        (FIRST, "progress", '{"chunk": 1, "total_chunks": 2, "frames": 9, "latency": 0.5, "fps": 18.0}'),
        (
            LAST,
            "complete",
            '{"output_path": "output-1", "video_shape": [12, 4, 6, 3], "num_frames": 12, "num_chunks": 2, '
            '"chunk_size": 12, "seed": 18446744073709551615, "unused": ["seed"]}',
        ),
        (
            Cancelled(0, 2, 0, seed=42),
            "cancelled",
            '{"chunk": 0, "total_chunks": 2, "frames_completed": 0, "seed": 42, "unused": []}',
        ),
        (
            Cancelled(1, 2, 9, "output-1", VideoShape(9, 4, 6), 7, ("seed",)),
            "cancelled",
            '{"chunk": 1, "total_chunks": 2, "frames_completed": 9, "output_path": "output-1", '
            '"video_shape": [9, 4, 6, 3], "seed": 7, "unused": ["seed"]}',
        ),
        (ErrorEvent("it\nbroke", "model_error"), "error", r'{"error": "it\nbroke", "code": "model_error"}'),
    ],
)
def test_events_on_the_wire(event: Event, line: str, data: str) -> None:
    assert encode_event(7, event).decode() == f"id: 7\nevent: {line}\ndata: {data}\n\n"


@pytest.mark.parametrize("end", [LAST, Cancelled(0, 1, 0), ErrorEvent("x", "y")])
async def test_nothing_follows_a_last_event(end: Event) -> None:
    log = log_of(FIRST)
    assert not log.is_complete
    log.append(end)
    assert log.is_complete
    for event in (FIRST, end):
        with pytest.raises(RuntimeError):
            log.append(event)
    assert log.last is end
    assert await read(log.follow(LONG_S)) == [encode_event(1, FIRST), encode_event(2, end)]


async def test_an_empty_log_has_no_last_event() -> None:
    log = EventLog()
    assert log.last is None
    assert not log.is_complete
    log.append(FIRST)
    assert log.last is FIRST


@pytest.mark.parametrize("after", range(5))
async def test_following_from_an_event_on(after: int) -> None:
    parts = await read(log_of(FIRST, SECOND, LAST).follow(LONG_S, after))
    assert parts == [encode_event(number, event) for number, event in ((1, FIRST), (2, SECOND), (3, LAST))][after:]


async def test_an_event_is_sent_as_soon_as_it_is_there() -> None:
    log = EventLog()
    stream = log.follow(LONG_S)
    for number, event in ((1, FIRST), (2, SECOND)):
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        log.append(event)
        assert await asyncio.wait_for(waiting, 5) == encode_event(number, event)
    log.append(LAST)
    assert await read(stream) == [encode_event(3, LAST)]


async def test_several_followers_at_their_own_pace_read_the_same() -> None:
    log = EventLog()

    async def follower(pause_s: float, start_s: float) -> list[bytes]:
        await asyncio.sleep(start_s)
        parts = []
        async for part in log.follow(LONG_S):
            parts.append(part)
            await asyncio.sleep(pause_s)
        return parts

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(follower(pause, start)) for pause, start in ((0, 0), (0.02, 0), (0, 0.03), (0, 0))]
        for event in (FIRST, SECOND, LAST):
            await asyncio.sleep(0.01)
            log.append(event)
    expected = [encode_event(1, FIRST), encode_event(2, SECOND), encode_event(3, LAST)]
    assert [reader.result() for reader in readers] == [expected] * 4


async def test_events_that_come_at_once_are_all_read() -> None:
    log = EventLog()
    reading = asyncio.ensure_future(read(log.follow(LONG_S)))
    await asyncio.sleep(0.01)
    for event in (FIRST, SECOND, LAST):
        log.append(event)
    assert len(await asyncio.wait_for(reading, 5)) == 3


async def test_a_follower_that_goes_away_disturbs_no_other() -> None:
    log = EventLog()
    gone, stays = (asyncio.ensure_future(read(log.follow(LONG_S))) for _ in range(2))
    await asyncio.sleep(0.01)
    gone.cancel()
    log.append(LAST)
    assert await asyncio.wait_for(stays, 5) == [encode_event(1, LAST)]
    assert gone.cancelled()


async def test_long_silences_are_filled_with_comments() -> None:
    log = EventLog()
    stream = log.follow(0.01)
    assert [await anext(stream) for _ in range(3)] == [KEEP_ALIVE] * 3
    log.append(FIRST)
    assert await anext(stream) == encode_event(1, FIRST)
    assert await anext(stream) == KEEP_ALIVE
    log.append(LAST)
    assert await read(stream) == [encode_event(2, LAST)]


async def test_comments_are_no_events_to_a_client() -> None:
    assert KEEP_ALIVE == b": keep-alive\n\n"
    stream = KEEP_ALIVE + encode_event(1, FIRST) + KEEP_ALIVE + encode_event(2, LAST)
    events = [parse_event(event.event, event.data) for event in decoded(stream)]
    assert [event for event in events if event is not None] == [FIRST, LAST]
