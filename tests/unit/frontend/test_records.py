"""The records of generations: written in order, read back after any end of the process, off the event loop."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filmstrip.errors import DiskFull
from filmstrip.models import State
from filmstrip.wire import VideoShape
from frontend.events import NumberedEvent
from frontend.jobs import EntryPoint, Record
from frontend.records import FILE_NAME, Records


def record(seq: int = 1, **fields: object) -> Record:
    values = {
        "seq": seq,
        "client": "alice",
        "id": f"g{seq}",
        "entry_point": EntryPoint.RESOURCE,
        "state": State.RUNNING,
        "digest": "d",
        "seed": 2**64 - 1,
        "created_at": 1.5,
        "total_chunks": 3,
        "num_frames": 33,
    }
    return Record.model_validate(values | fields)


def event(number: int) -> NumberedEvent:
    return NumberedEvent(number, "progress", f'{{"chunk": {number}}}')


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    records = Records(tmp_path)
    assert records.open() == []
    yield records
    await records.close()


async def add(records: Records, to: Record, *numbers: int) -> list[bool]:
    """Write events; gives what was reported, in order."""
    reports: list[bool] = []
    for number in numbers:
        records.add_event(to.seq, event(number), to, reports.append)
    await records.get([])  # after all of them
    await asyncio.sleep(0.01)
    return reports


async def test_what_was_written_is_read_back_in_order(records: Records, tmp_path: Path) -> None:
    first, second = record(1), record(2, client="", seed=3)
    await records.written(records.insert(first, '{"a": "\u00e9"}'))
    records.insert(second, "{}")
    assert await add(records, first, 1, 2, 3) == [True] * 3
    ended = record(
        1, state=State.COMPLETE, output_path="output-1", video_shape=VideoShape(33, 64, 96), unused=("seed",)
    )
    assert await add(records, ended, 4) == [True]
    assert await records.get([1, 2, 9]) == {1: ended, 2: second}
    assert await records.request(1) == '{"a": "\u00e9"}'
    assert await records.request(9) is None
    assert await records.events(1, 1, 2) == [event(2), event(3)]
    assert await records.events(1, 4, 10) == []
    await records.close()
    again = Records(tmp_path)
    assert again.open() == [(ended, 4), (second, 0)]
    assert await again.events(1, 0, 10) == [event(number) for number in range(1, 5)]
    await again.close()


def test_a_record_of_an_earlier_version_can_be_read() -> None:
    values = record(video_fps=16.0).model_dump(mode="json")
    values["door"] = values.pop("entry_point")
    assert Record.model_validate_json(json.dumps(values)) == record(video_fps=16.0)


async def test_deleted_records_take_their_events_along(records: Records, tmp_path: Path) -> None:
    for seq in (1, 2):
        records.insert(record(seq), "{}")
        await add(records, record(seq), 1)
    records.delete([1])
    assert await records.get([1, 2]) == {2: record(2)}
    assert await records.events(1, 0, 10) == []
    assert await records.events(2, 0, 10) == [event(1)]


async def test_a_write_that_fails_is_reported(records: Records, caplog: pytest.LogCaptureFixture) -> None:
    await records.written(records.insert(record(), "{}"))
    with pytest.raises(DiskFull):
        await records.written(records.insert(record(), "{}"))  # the number is taken
    assert await add(records, record(), 1, 1, 2) == [True, False, True]
    assert "cannot be written" in caplog.text


async def test_what_was_reported_survives_a_kill(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, sys
from pathlib import Path
from tests.unit.frontend.test_records import Records, add, record
async def main():
    records = Records(Path({str(tmp_path)!r}))
    records.open()
    await records.written(records.insert(record(), "{{}}"))
    await add(records, record(), 1, 2)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    command = [sys.executable, "-c", program]
    process = await asyncio.to_thread(subprocess.run, command, env=os.environ, check=False, timeout=60)
    assert process.returncode == -signal.SIGKILL
    records = Records(tmp_path)
    assert records.open() == [(record(), 2)]
    await records.close()


@pytest.mark.parametrize("content", [b"no database" * 1000, b""])
async def test_a_file_that_cannot_be_read_is_put_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    records = Records(tmp_path)
    assert records.open() == []
    await records.written(records.insert(record(), "{}"))
    await records.close()
    assert ("cannot be read" in caplog.text) == bool(content)
    assert (tmp_path / "generations.bad").exists() == bool(content)


async def test_a_file_of_another_format_is_put_aside(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    records = Records(tmp_path)
    assert records.open() == []
    assert (tmp_path / "generations.bad").exists()
    await records.close()


async def test_only_its_owner_can_read_the_file(records: Records, tmp_path: Path) -> None:
    await records.written(records.insert(record(), "{}"))
    files = await asyncio.to_thread(lambda: list(tmp_path.glob(f"{FILE_NAME}*")))
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


async def test_a_slow_disk_does_not_stop_the_event_loop(records: Records) -> None:
    disk = threading.Event()
    waiting = asyncio.ensure_future(records._call(disk.wait))
    await asyncio.sleep(0)  # it begins
    reports: list[bool] = []
    try:
        records.insert(record(), "{}")
        for number in range(1, 101):
            records.add_event(1, event(number), None, reports.append)
        await asyncio.sleep(0.05)
        assert (waiting.done(), reports) == (False, [])
    finally:
        disk.set()
    await waiting
    await records.get([])
    await asyncio.sleep(0.01)
    assert reports == [True] * 100
