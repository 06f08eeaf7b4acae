"""The event log and its stream: what is appended is what any follower reads, to the last event and no further."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.models import Cancelled, Complete, ErrorEvent, Event, Preview, Progress, parse_event
from filmstrip.wire import VideoShape
from frontend.events import KEEP_ALIVE, EventLog, NumberedEvent

COUNTS = st.integers(0, 2**31)
SECONDS = st.floats(0, 1e6)
SHAPES = st.builds(VideoShape, *(st.integers(1, 2**32 - 1) for _ in range(4)))
SEEDS = st.integers(0, 2**64 - 1)
UNUSED = st.lists(st.text(), max_size=3).map(tuple)
PROGRESS = st.builds(Progress, COUNTS, COUNTS, COUNTS, SECONDS, SECONDS)
PREVIEW = st.builds(Preview, COUNTS, COUNTS, COUNTS, COUNTS, st.none() | st.text())
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


class MemoryArchive:
    """Writes at once, unless it is slow; reports after that."""

    def __init__(self, *, is_slow: bool = False, fails: bool = False) -> None:
        self.events: list[NumberedEvent] = []
        self.waiting: list[tuple[NumberedEvent, Callable[[bool], None]]] = []
        self.is_slow, self.fails = is_slow, fails
        self.num_reads = 0

    def add(self, event: NumberedEvent, done: Callable[[bool], None]) -> None:
        self.waiting.append((event, done))
        if not self.is_slow:
            self.write()

    def write(self) -> None:
        for event, done in self.waiting:
            if not self.fails:
                self.events.append(event)
            done(not self.fails)
        self.waiting.clear()

    async def read(self, after: int, limit: int) -> list[NumberedEvent]:
        self.num_reads += 1
        return [event for event in self.events if event.number > after][:limit]


def encode_event(number: int, event: Event) -> bytes:
    return NumberedEvent.of(number, event).encode()


def new_log() -> EventLog:
    return EventLog(MemoryArchive())


def log_of(*events: Event) -> EventLog:
    log = new_log()
    for event in events:
        log.append(event)
    return log


def on_wire(event: NumberedEvent | None) -> bytes:
    return KEEP_ALIVE if event is None else event.encode()


async def follow(log: EventLog, silence_s: float, after: int = 0) -> AsyncIterator[bytes]:
    async for event in log.follow(after=after, silence_s=silence_s):
        yield on_wire(event)


async def read(stream: AsyncIterator[bytes]) -> list[bytes]:
    return [part async for part in stream]


@given(st.lists(PROGRESS | PREVIEW, max_size=5), ENDS)
def test_a_stream_is_read_back_as_the_events_that_were_appended(chunks: list[Progress], end: Event) -> None:
    events = [*chunks, end]
    stream = b"".join(asyncio.run(read(follow(log_of(*events), LONG_S))))
    found = decoded(stream)
    assert [parse_event(event.event, event.data) for event in found] == events
    assert [event.id for event in found] == [str(number) for number in range(1, len(events) + 1)]


@given(st.integers(1, 10**6), PROGRESS | PREVIEW | ENDS)
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
    assert log.num_events == 2
    assert await read(follow(log, LONG_S)) == [encode_event(1, FIRST), encode_event(2, end)]


@pytest.mark.parametrize("after", range(5))
async def test_following_from_an_event_on(after: int) -> None:
    parts = await read(follow(log_of(FIRST, SECOND, LAST), LONG_S, after))
    assert parts == [encode_event(number, event) for number, event in ((1, FIRST), (2, SECOND), (3, LAST))][after:]


async def test_an_event_is_sent_as_soon_as_it_is_there() -> None:
    log = new_log()
    stream = follow(log, LONG_S)
    for number, event in ((1, FIRST), (2, SECOND)):
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        log.append(event)
        assert await asyncio.wait_for(waiting, 5) == encode_event(number, event)
    log.append(LAST)
    assert await read(stream) == [encode_event(3, LAST)]


async def test_several_followers_at_their_own_pace_read_the_same() -> None:
    log = new_log()

    async def follower(pause_s: float, start_s: float) -> list[bytes]:
        await asyncio.sleep(start_s)
        parts = []
        async for part in follow(log, LONG_S):
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
    log = new_log()
    reading = asyncio.ensure_future(read(follow(log, LONG_S)))
    await asyncio.sleep(0.01)
    for event in (FIRST, SECOND, LAST):
        log.append(event)
    assert len(await asyncio.wait_for(reading, 5)) == 3


async def test_a_follower_that_goes_away_disturbs_no_other() -> None:
    log = new_log()
    gone, stays = (asyncio.ensure_future(read(follow(log, LONG_S))) for _ in range(2))
    await asyncio.sleep(0.01)
    gone.cancel()
    log.append(LAST)
    assert await asyncio.wait_for(stays, 5) == [encode_event(1, LAST)]
    assert gone.cancelled()


async def test_long_silences_are_filled_with_comments() -> None:
    log = new_log()
    stream = follow(log, 0.01)
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


async def test_an_event_is_sent_when_it_is_written() -> None:
    archive = MemoryArchive(is_slow=True)
    log = EventLog(archive)
    waiting = asyncio.ensure_future(anext(follow(log, LONG_S)))
    log.append(FIRST)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert log.num_events == 0
    archive.write()
    assert await asyncio.wait_for(waiting, 5) == encode_event(1, FIRST)


async def test_events_that_cannot_be_written_are_sent_all_the_same() -> None:
    log = EventLog(MemoryArchive(fails=True))
    for _ in range(500):
        log.append(FIRST)
    log.append(LAST)
    parts = await read(follow(log, LONG_S))
    assert parts == [*(encode_event(number, FIRST) for number in range(1, 501)), encode_event(501, LAST)]


async def test_memory_holds_the_newest_events_and_the_archive_the_others() -> None:
    archive = MemoryArchive()
    log = EventLog(archive)
    for _ in range(1000):
        log.append(FIRST)
    log.append(LAST)
    assert len(log._tail) < 100
    near_the_end = await read(follow(log, LONG_S, 990))
    assert (len(near_the_end), archive.num_reads) == (11, 0)
    assert [part.partition(b"\n")[0] for part in await read(follow(log, LONG_S))] == [
        b"id: %d" % number for number in range(1, 1002)
    ]


async def test_a_log_is_read_back_from_its_archive() -> None:
    archive = MemoryArchive()
    first = EventLog(archive)
    for event in (FIRST, SECOND, LAST):
        first.append(event)
    again = EventLog(archive, first.num_events, is_complete=True)
    assert await read(follow(again, LONG_S)) == await read(follow(first, LONG_S))
    archive.events.clear()  # the generation has been deleted meanwhile
    assert await read(follow(again, LONG_S)) == []


async def test_a_second_attempt_repeats_the_numbers_and_sends_nothing_twice() -> None:
    archive = MemoryArchive()
    first = EventLog(archive)
    for event in (FIRST, SECOND):
        first.append(event)
    second = EventLog(archive, first.num_events)
    stream = follow(second, LONG_S, 1)
    assert await anext(stream) == encode_event(2, SECOND)
    for event in (FIRST, SECOND, FIRST, LAST):
        second.append(event)
    assert await read(stream) == [encode_event(3, FIRST), encode_event(4, LAST)]


async def test_the_last_event_of_a_shorter_second_attempt_has_a_number_of_its_own() -> None:
    archive = MemoryArchive()
    first = EventLog(archive)
    for event in (FIRST, SECOND):
        first.append(event)
    second = EventLog(archive, first.num_events)
    second.append(LAST)
    assert await read(follow(second, LONG_S, 2)) == [encode_event(3, LAST)]


async def test_closing_ends_the_readers_without_a_last_event() -> None:
    log = log_of(FIRST)
    reading = asyncio.ensure_future(read(follow(log, LONG_S)))
    await asyncio.sleep(0.01)
    log.close()
    assert await asyncio.wait_for(reading, 5) == [encode_event(1, FIRST)]
