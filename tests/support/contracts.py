"""What every implementation of `Jobs` and of `Blobs` has to pass: a test class inherits it and has the fixture."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from filmstrip.errors import FilmstripError, IdTaken, InUse, InvalidField, NotFound, NotReady, QueueFull, UnknownPath
from filmstrip.models import State
from filmstrip.wire import VideoShape, pack_video_header
from frontend.blobs import Blobs
from frontend.events import NumberedEvent
from frontend.jobs import Followed, Jobs, QueuedEvent, Submission
from frontend.schema import GenerateRequest, OnDisconnect
from frontend.store import Kind

CLIENT, OTHER = "alice", "bob"
SILENCE_S = 60.0
QUEUE_LENGTH = 2
REATTACH_S = 0.5


def submission(
    id: str | None = "a",
    client: str = CLIENT,
    *,
    key: str | None = None,
    on_disconnect: OnDisconnect = "continue",
    **fields: object,
) -> Submission:
    """Three chunks of the probe, unless the fields say otherwise."""
    values = {"pipeline_id": "probe", "prompt": "x", "num_frames": 33} | fields
    return Submission(
        client, id, GenerateRequest.model_validate(values), idempotency_key=key, on_disconnect=on_disconnect
    )


def sleeper(id: str = "a", client: str = CLIENT) -> Submission:
    return submission(id, client, prompt="!sleep 60")


async def followed(jobs: Jobs, id: str = "a", *, after: int = 0, client: str = CLIENT) -> list[Followed]:
    async with asyncio.timeout(60), jobs.follow(client, id, after=after, silence_s=SILENCE_S) as events:
        return [event async for event in events]


async def numbered(jobs: Jobs, id: str = "a", *, after: int = 0) -> list[NumberedEvent]:
    return [event for event in await followed(jobs, id, after=after) if isinstance(event, NumberedEvent)]


async def state_of(jobs: Jobs, id: str, client: str = CLIENT) -> State:
    return (await jobs.get(client, id)).record.state


class JobsContract:
    """Needs a fixture `jobs`: one slot, a queue of `QUEUE_LENGTH`, `reattach_s` of `REATTACH_S`, the probe's Triton."""

    async def test_a_generation_runs_to_its_end(self, jobs: Jobs) -> None:
        submitted = await jobs.submit(submission(seed=5))
        assert submitted.is_new
        assert [event.name for event in await numbered(jobs)] == ["progress"] * 3 + ["complete"]
        assert [event.number for event in await numbered(jobs, after=2)] == [3, 4]
        view = await jobs.get(CLIENT, "a")
        record = view.record
        assert (record.state, record.chunk, record.frames, record.seed) == (State.COMPLETE, 3, 33, 5)
        assert record.video_shape == VideoShape(33, 64, 96, 3)
        assert view.request is not None
        assert GenerateRequest.model_validate_json(view.request).seed == 5
        assert submitted.generation.request == view.request

    async def test_the_same_submission_is_the_same_generation(self, jobs: Jobs) -> None:
        submissions = [jobs.submit(sleeper()) for _ in range(5)]
        assert sorted(found.is_new for found in await asyncio.gather(*submissions)) == [False] * 4 + [True]
        with pytest.raises(IdTaken):
            await jobs.submit(submission(seed=1))
        assert (await jobs.submit(sleeper(client=OTHER))).is_new
        assert len((await jobs.list(CLIENT)).generations) == 1

    async def test_a_key_stands_for_an_id(self, jobs: Jobs) -> None:
        first, again = [await jobs.submit(submission(None, key="k")) for _ in range(2)]
        assert (first.is_new, again.is_new) == (True, False)
        assert first.generation.record.id == again.generation.record.id
        assert (await jobs.submit(submission(None))).generation.record.id != first.generation.record.id
        with pytest.raises(IdTaken):
            await jobs.submit(submission(None, key="k", seed=1))

    async def test_what_is_refused_leaves_nothing(self, jobs: Jobs) -> None:
        for fields in ({"pipeline_id": "nothing"}, {"height": 72, "width": 71}, {"input_path": "video-" + "0" * 32}):
            with pytest.raises(FilmstripError):
                await jobs.submit(submission(**fields))
        with pytest.raises(InvalidField):
            await asyncio.gather(*(jobs.submit(submission(width=65)) for _ in range(3)))
        assert (await jobs.list(CLIENT)).generations == []
        assert (await jobs.submit(submission())).is_new

    async def test_the_queue_is_bounded_and_tells_places(self, jobs: Jobs) -> None:
        for name in ("runs", "w1", "w2"):
            await jobs.submit(sleeper(name))
        assert QUEUE_LENGTH == 2
        with pytest.raises(QueueFull):
            await jobs.submit(sleeper("w3"))
        places = [(await jobs.get(CLIENT, name)).position for name in ("runs", "w1", "w2")]
        assert places in ([None, 1, 2], [None] * 3)
        async with jobs.follow(CLIENT, "w2", silence_s=SILENCE_S) as events:
            first = await anext(events)
            assert first is None or first == QueuedEvent(2)
            assert await jobs.cancel(CLIENT, "w1") == "cancelled"
            assert await jobs.cancel(CLIENT, "w2") == "cancelled"
            rest = [event async for event in events if isinstance(event, NumberedEvent)]
        assert [(event.number, event.name) for event in rest] == [(1, "cancelled")]
        assert await state_of(jobs, "w2") is State.CANCELLED

    async def test_what_waits_starts_when_the_slot_is_free(self, jobs: Jobs) -> None:
        await jobs.submit(sleeper("runs"))
        await jobs.submit(submission("waits"))
        assert await state_of(jobs, "waits") is State.QUEUED
        await jobs.delete(CLIENT, "runs")
        assert (await numbered(jobs, "waits"))[-1].name == "complete"

    async def test_a_cancel_keeps_what_is_made(self, jobs: Jobs) -> None:
        await jobs.submit(submission(prompt="!sleep 0.3"))
        async with jobs.follow(CLIENT, "a", silence_s=SILENCE_S) as events:
            await anext(events)
            assert await jobs.cancel(CLIENT, "a") == "cancelling"
            *_, last = [event async for event in events]
        assert isinstance(last, NumberedEvent)
        assert last.name == "cancelled"
        record = (await jobs.get(CLIENT, "a")).record
        assert (record.state, record.output_path is not None) == (State.CANCELLED, True)
        assert await jobs.cancel(CLIENT, "a") == "idle"

    async def test_followers_do_not_wait_for_each_other(self, jobs: Jobs) -> None:
        await jobs.submit(submission(prompt="!sleep 0.1"))
        async with jobs.follow(CLIENT, "a", silence_s=SILENCE_S) as slow:
            first = await anext(slow)
            whole = await numbered(jobs)
            assert [first, *[event async for event in slow]] == whole

    async def test_a_silence_is_told(self, jobs: Jobs) -> None:
        await jobs.submit(sleeper())
        async with jobs.follow(CLIENT, "a", silence_s=0.05) as events:
            assert [await anext(events) for _ in range(2)] == [None, None]

    async def test_one_that_nobody_follows_is_cancelled_if_it_asked_for_that(self, jobs: Jobs) -> None:
        await jobs.submit(submission(prompt="!sleep 0.05", num_frames=9_000, on_disconnect="cancel"))
        async with jobs.follow(CLIENT, "a", silence_s=SILENCE_S) as events:
            await anext(events)
            await asyncio.sleep(3 * REATTACH_S)
            assert await state_of(jobs, "a") is State.RUNNING
        async with asyncio.timeout(60):
            while await state_of(jobs, "a") is State.RUNNING:  # noqa: ASYNC110  it is not followed
                await asyncio.sleep(0.05)
        assert await state_of(jobs, "a") is State.CANCELLED

    async def test_deleting_ends_it_and_frees_its_name(self, jobs: Jobs) -> None:
        await jobs.submit(sleeper())
        await jobs.delete(CLIENT, "a")
        with pytest.raises(NotFound):
            await jobs.get(CLIENT, "a")
        assert (await jobs.submit(submission())).is_new
        assert (await numbered(jobs))[-1].name == "complete"

    async def test_others_do_not_know_it(self, jobs: Jobs) -> None:
        await jobs.submit(sleeper())
        for asked in (jobs.get(OTHER, "a"), jobs.cancel(OTHER, "a"), jobs.delete(OTHER, "a")):
            with pytest.raises(NotFound):
                await asked
        with pytest.raises(NotFound):
            await followed(jobs, client=OTHER)
        with pytest.raises(NotFound):
            async with jobs.frames(OTHER, "a"):
                pass
        assert (await jobs.list(OTHER)).generations == []
        assert not await jobs.cancel_streams(CLIENT)

    async def test_lists_are_in_pages(self, jobs: Jobs) -> None:
        for name in ("a", "b", "c"):
            await jobs.submit(submission(name, num_frames=9))
            await numbered(jobs, name)
        first = await jobs.list(CLIENT, limit=2)
        second = await jobs.list(CLIENT, limit=2, after=first.next)
        names = [view.record.id for page in (first, second) for view in page.generations]
        assert (names, second.next) == (["c", "b", "a"], None)
        assert (await jobs.list(CLIENT, state=State.QUEUED)).generations == []
        with pytest.raises(NotFound):
            await jobs.list(CLIENT, after="unknown")

    async def test_frames_are_there_as_soon_as_they_are_made(self, jobs: Jobs) -> None:
        await jobs.submit(submission(seed=5, chunk_specs=[{"chunk": 1, "text": "!sleep 2"}]))
        async with jobs.follow(CLIENT, "a", silence_s=SILENCE_S) as events:
            with pytest.raises(NotReady):
                async with jobs.frames(CLIENT, "a"):
                    pass
            await anext(events)
            await asyncio.sleep(0.3)  # frames are written after their event
            async with jobs.frames(CLIENT, "a") as frames:
                assert frames.shape == VideoShape(9, 64, 96, 3)
                early = await joined(frames.read(2, 9))
            async for _ in events:
                pass
        async with jobs.frames(CLIENT, "a") as frames:
            assert frames.shape.frames == 33
            assert await joined(frames.read(2, 9)) == early


async def joined(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


class BlobsContract:
    """Needs a fixture `blobs`, whose files expire after `TTL_S`."""

    TTL_S = 3.0
    SHAPE = VideoShape(2, 4, 6)
    VIDEO = pack_video_header(SHAPE) + bytes(range(144))

    async def put(self, blobs: Blobs, kind: Kind = Kind.VIDEO, data: bytes = VIDEO, owner: str = CLIENT) -> str:
        async with await blobs.draft(kind, len(data), owner=owner) as draft:
            await draft.append(data[:50], memoryview(data)[50:60])
            await draft.append(data[60:])
            return (await draft.commit()).name

    async def test_what_was_written_is_read(self, blobs: Blobs) -> None:
        found = await blobs.find(await self.put(blobs), Kind.BLOB, Kind.VIDEO, owner=CLIENT)
        assert (found.owner, found.size_bytes, found.shape) == (CLIENT, 164, self.SHAPE)
        for start, stop in ((0, 164), (20, 21), (160, 164), (7, 7)):
            async with blobs.open_range(found, start, stop) as pieces:
                assert await joined(pieces) == self.VIDEO[start:stop]

    async def test_others_and_other_kinds_do_not_find_it(self, blobs: Blobs) -> None:
        name = await self.put(blobs)
        for kind, owner in ((Kind.OUTPUT, CLIENT), (Kind.VIDEO, OTHER), (Kind.VIDEO, "")):
            with pytest.raises(UnknownPath):
                await blobs.find(name, kind, owner=owner)
        with pytest.raises(UnknownPath):
            await blobs.delete(name, OTHER)

    async def test_a_draft_that_is_not_committed_leaves_nothing(self, blobs: Blobs) -> None:
        async with await blobs.draft(Kind.BLOB, owner=CLIENT) as draft:
            await draft.append(b"x")
            assert draft.path.read_bytes() == b"x"
        assert not draft.path.exists()

    async def test_names_cannot_be_guessed_and_do_not_repeat(self, blobs: Blobs) -> None:
        names = {await self.put(blobs) for _ in range(5)}
        assert len(names) == 5
        assert all(len(name.removeprefix("video-")) == 32 for name in names)

    async def test_a_file_that_is_read_cannot_be_deleted(self, blobs: Blobs) -> None:
        name = await self.put(blobs)
        found = await blobs.find(name, Kind.VIDEO, owner=CLIENT)
        async with blobs.open_range(found, 0, 164) as pieces:
            with pytest.raises(InUse):
                await blobs.delete(name, CLIENT)
            assert await joined(pieces) == self.VIDEO
        await blobs.delete(name, CLIENT)
        with pytest.raises(UnknownPath):
            await blobs.find(name, Kind.VIDEO, owner=CLIENT)
        with pytest.raises(UnknownPath):
            async with blobs.open_range(found, 0, 164):
                pass

    async def test_files_expire(self, blobs: Blobs) -> None:
        name = await self.put(blobs)
        await blobs.expire()
        await blobs.find(name, Kind.VIDEO, owner=CLIENT)
        await asyncio.sleep(self.TTL_S + 0.2)
        await blobs.expire()
        with pytest.raises(UnknownPath):
            await blobs.find(name, Kind.VIDEO, owner=CLIENT)
