"""Room on a disk that is set aside for files of known size."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmstrip.errors import DiskFull, StorageFull
from frontend import store as store_module
from frontend.settings import Settings
from frontend.store import Kind, Store, preallocate, release

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(Settings(data_dir=tmp_path / "data"))
    opened.open()
    yield opened
    opened.close()


def on_disk(path: Path) -> int:
    """Bytes that a file takes up."""
    return path.stat().st_blocks * 512


def test_space_is_reserved_and_released_while_the_size_counts_written_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert preallocate(fd, 8 * MIB)
    assert (path.stat().st_size, on_disk(path)) == (0, 8 * MIB)
    os.write(fd, bytes(MIB))
    assert (path.stat().st_size, on_disk(path)) == (MIB, 8 * MIB)
    release(fd, MIB, 8 * MIB)
    assert (path.stat().st_size, on_disk(path)) == (MIB, MIB)
    os.close(fd)


def test_more_room_than_there_is(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match=r"space|large") as caught:
        preallocate(file.fileno(), 2**60)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)


def test_a_file_that_cannot_have_any(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="seek"):
        preallocate(writing, 1)
    os.close(reading)
    os.close(writing)


async def test_a_draft_takes_its_room_at_once_and_keeps_what_it_used(store: Store) -> None:
    with store.draft(Kind.OUTPUT, 20 + 4 * MIB) as draft:
        await draft.append(bytes(20))
        assert on_disk(draft.path) >= 4 * MIB
        await draft.append(bytes(12))
        draft.write_header(shape := store_module.VideoShape(1, 2, 2, 3))
        file = draft.commit()
    assert file.shape == shape
    assert file.path.stat().st_size == 32
    assert on_disk(file.path) < MIB


async def test_room_set_aside_counts_once(tmp_path: Path) -> None:
    """It is missing in what is free, and is ours."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    opened = Store(Settings(data_dir=tmp_path / "data", store_bytes=2**60, store_disk_share=0.5))
    opened.open()
    with opened.draft(Kind.BLOB, free // 5) as first:
        await first.append(b"x")
        assert first.preallocated_bytes == free // 5
        with opened.draft(Kind.BLOB, free // 5), pytest.raises(StorageFull):
            opened.draft(Kind.BLOB, free // 5)
    opened.close()


async def test_a_file_system_that_sets_nothing_aside(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """None that would be here by chance; what it answers is what preallocate makes of EOPNOTSUPP."""
    monkeypatch.setattr(store_module, "preallocate", lambda *_: False)
    with store.draft(Kind.BLOB, MIB) as draft:
        await draft.append(bytes(MIB))
        assert draft.preallocated_bytes == 0
        assert store.find(draft.commit().name, Kind.BLOB).size_bytes == MIB


async def test_no_room_is_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, num_bytes: int) -> bool:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(store_module, "preallocate", full)
    with pytest.raises(DiskFull), store.draft(Kind.BLOB, MIB) as draft:
        await draft.append(b"x")
