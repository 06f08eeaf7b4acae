"""The jobs of one machine keep the contract of all jobs, on a real Triton."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filmstrip.models import State
from filmstrip.wire import VideoShape, pack_video_header
from frontend.local_jobs import LocalJobs
from frontend.store import Kind
from tests.support.contracts import (
    CLIENT,
    QUEUE_LENGTH,
    REATTACH_S,
    JobsContract,
    numbered,
    sleeper,
    state_of,
    submission,
)
from tests.support.jobs import local_jobs
from tests.support.server import Frontend


class TestLocalJobs(JobsContract):
    @pytest.fixture
    async def jobs(self, server: Frontend, tmp_path: Path) -> AsyncIterator[LocalJobs]:
        settings = {"queue_length": QUEUE_LENGTH, "reattach_s": REATTACH_S}
        async with local_jobs(server.triton_url, tmp_path / "data", **settings) as jobs:
            yield jobs


async def test_two_slots_run_two_generations(server: Frontend, tmp_path: Path) -> None:
    """Nothing above the slots relies on there being one."""
    shape = VideoShape(9, 64, 96)
    async with local_jobs(server.triton_url, tmp_path / "data", num_slots=2) as jobs:
        await jobs.submit(sleeper("a"))
        with jobs._store.draft(Kind.VIDEO, owner=CLIENT) as draft:
            await draft.append(pack_video_header(shape), bytes(shape.num_bytes))
            video = draft.commit().name
        for name in ("b", "c"):  # the probe has one sequence, so the others use another model
            await jobs.submit(submission(name, pipeline_id="passthrough", num_frames=9, input_path=video))
            assert (await numbered(jobs, name))[-1].name == "complete"
        assert await state_of(jobs, "a") is State.RUNNING
