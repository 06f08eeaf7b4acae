"""The store on real files: names nobody can make up, whole files only, limits, expiry, and what a crash leaves."""

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.errors import InUse, StorageFull, UnknownPath
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape, pack_video_header
from frontend.settings import Settings
from frontend.store import SHM_DIR, Draft, Kind, Store, StoredFile
from tests.support.recovery import eventually, open_files_in

SHAPE = VideoShape(2, 3, 5)
VIDEO = pack_video_header(SHAPE) + bytes(range(90))
OpenStore = Callable[..., Store]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[OpenStore]:
    """Open stores on one folder, one after the other; their files in shared memory are removed in the end."""
    opened: list[Store] = []

    def open_(**settings: Any) -> Store:
        for store in opened:
            store.close()
        opened.append(Store(Settings(data_dir=tmp_path / "data", **settings)))
        opened[-1].open()
        return opened[-1]

    yield open_
    for store in opened:
        store.close()
        for path in in_shm(store):
            path.unlink()


def in_shm(store: Store) -> list[Path]:
    """Every file in shared memory that is the store's, whole or temporary."""
    return sorted(SHM_DIR.glob(store.shm_prefix("x").removesuffix("-x-") + "*"))


def on_disk(tmp_path: Path) -> list[str]:
    data = tmp_path / "data"
    return sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file() and path.name != "lock")


async def put(
    store: Store, kind: Kind = Kind.BLOB, data: bytes = b"data", expected_bytes: int = 0, owner: str = ""
) -> StoredFile:
    with store.draft(kind, expected_bytes, owner=owner) as draft:
        await draft.append(data)
        return draft.commit()


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


# -- Writing and finding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "shape"),
    [(Kind.VIDEO, VIDEO, SHAPE), (Kind.OUTPUT, VIDEO, SHAPE), (Kind.BLOB, b"abc", None), (Kind.ASSET, VIDEO, None)],
)
async def test_a_file_is_found_by_its_name_with_its_facts(
    open_store: OpenStore, kind: Kind, data: bytes, shape: VideoShape | None
) -> None:
    store = open_store(store_ttl_s=100)
    file = await put(store, kind, data)
    assert store.find(file.name, kind) == file
    assert (file.kind, file.size_bytes, file.shape, file.in_shm) == (kind, len(data), shape, False)
    assert file.path.read_bytes() == data
    assert file.name.startswith(f"{kind}-")
    assert file.expires_at == pytest.approx(time.time() + 100, abs=5)


async def test_a_file_has_no_name_before_it_is_whole(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    with store.draft(Kind.OUTPUT) as draft:
        await draft.append(bytes(VIDEO_HEADER_BYTES))
        for part in (VIDEO[20:60], VIDEO[60:]):
            await draft.append(part)
            assert [name.split("/")[0] for name in on_disk(tmp_path)] == ["partial"]
        draft.write_header(SHAPE)
        file = draft.commit()
        assert on_disk(tmp_path) == [f"outputs/{file.name}"]
    assert file.path.read_bytes() == VIDEO
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(draft.fd)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
async def test_a_draft_that_ends_in_an_exception_is_removed(
    open_store: OpenStore, tmp_path: Path, error: type[BaseException]
) -> None:
    store = open_store(store_files=1, store_bytes=100)
    for _ in range(3):  # its place and its bytes are given back too
        with pytest.raises(error), store.draft(Kind.BLOB, 100) as draft:  # noqa: PT012
            await draft.append(bytes(100))
            raise error
        assert on_disk(tmp_path) == []
        eventually(lambda: not open_files_in(tmp_path / "data" / "partial"), 5)  # a thread closes it


async def test_a_committed_file_survives_an_exception_after_it(open_store: OpenStore) -> None:
    store = open_store()
    names = []
    with pytest.raises(ValueError, match="late"), store.draft(Kind.BLOB) as draft:  # noqa: PT012
        await draft.append(b"data")
        names.append(draft.commit().name)
        raise ValueError("late")
    assert store.find(names[0], Kind.BLOB).path.read_bytes() == b"data"


@pytest.mark.parametrize("data", [b"", VIDEO[:19], VIDEO[:-1], VIDEO + b"x", bytes(len(VIDEO))])
async def test_a_video_that_is_not_whole_gets_no_name(open_store: OpenStore, tmp_path: Path, data: bytes) -> None:
    store = open_store()
    with pytest.raises(RuntimeError):
        await put(store, Kind.VIDEO, data)
    assert on_disk(tmp_path) == []
    assert await put(store)


# -- Names --------------------------------------------------------------------------------------------------


async def forged(store: Store) -> list[str]:
    names = [(await put(store, kind, VIDEO)).name for kind in Kind]
    made = ["", ".", "..", "/", "\0", "lock", "../lock", "partial", "/etc/passwd", "video-", "video-" + "0" * 32]
    for name in names:
        kind, _, number = name.partition("-")
        made += [name[:-1], name + "0", name.upper(), number, f"{kind}{number}", f"{name}\n", f"\n{name}", f" {name}"]
        made += [f"{kind}s/{name}", f"../{kind}s/{name}", f"./{name}", f"{name}/", f"{name}/.", f"{name}\0", f"x{name}"]
        made += [f"{other}-{number}" for other in Kind if other != kind]
        made += [str(store.find(name, *Kind).path), f"{kind}-{number[::-1]}", f"{kind}-{number.translate(WIDE)}"]
    return made


WIDE = {ord(digit): ord(digit) - ord("0") + 0xFF10 for digit in "0123456789"}


async def test_a_name_that_was_not_given_out_is_unknown(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    names = await forged(store)
    before = on_disk(tmp_path)
    for name in names:
        with pytest.raises(UnknownPath) as caught:
            store.find(name, *Kind, field="input_path")
        assert caught.value.field == "input_path"
        assert caught.value.message.startswith("input_path: there is no file ")
    assert on_disk(tmp_path) == before


async def test_a_file_of_another_kind_is_unknown_and_stays(open_store: OpenStore) -> None:
    store = open_store()
    for kind in Kind:
        file = await put(store, kind, VIDEO)
        with pytest.raises(UnknownPath):
            store.find(file.name, *(other for other in Kind if other is not kind))
        assert store.find(file.name, kind) == file


@given(st.text() | st.from_regex(r"(video|blob|asset|output)-[0-9a-f]{32}", fullmatch=True))
def test_no_text_at_all_is_a_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    store = Store(Settings(data_dir=tmp_path_factory.getbasetemp() / "names"))
    store.open()
    try:
        with pytest.raises(UnknownPath):
            store.find(name, *Kind)
    finally:
        store.close()


async def test_a_file_put_into_a_folder_from_outside_has_no_name(open_store: OpenStore, tmp_path: Path) -> None:
    store, name = open_store(), "blob-" + "1" * 32
    (tmp_path / "data" / "blobs" / name).write_bytes(b"data")
    with pytest.raises(UnknownPath):
        store.find(name, Kind.BLOB)


async def test_names_differ_and_long_ones_are_shortened_in_messages(open_store: OpenStore) -> None:
    store = open_store()
    names = {(await put(store)).name for _ in range(50)}
    assert len(names) == 50
    digits = [re.fullmatch(r"[a-z]+-([0-9a-f]{32})", name)[1] for name in names]  # type: ignore[index]
    assert all(len(set(column)) > 5 for column in zip(*digits, strict=True)), "128 bits, all of them random"
    with pytest.raises(UnknownPath) as caught:
        store.find("x" * 1_000_000, Kind.BLOB)
    assert len(caught.value.message) < 300


# -- Limits -------------------------------------------------------------------------------------------------


async def test_bytes_are_limited_to_the_byte(open_store: OpenStore) -> None:
    store = open_store(store_bytes=1000)
    await put(store, data=bytes(600))
    with pytest.raises(StorageFull):
        store.draft(Kind.BLOB, 401)
    with pytest.raises(StorageFull):
        await put(store, data=bytes(401))
    assert (await put(store, data=bytes(400), expected_bytes=400)).size_bytes == 400
    with pytest.raises(StorageFull):
        await put(store, data=b"x")


async def test_drafts_under_way_count_with_what_they_expect_or_have(open_store: OpenStore) -> None:
    store = open_store(store_bytes=1000)
    with store.draft(Kind.BLOB, 500) as expecting, store.draft(Kind.BLOB) as growing:
        await growing.append(bytes(300))
        with pytest.raises(StorageFull):
            store.draft(Kind.BLOB, 201)
        with pytest.raises(StorageFull):
            await growing.append(bytes(201))
        await growing.append(bytes(200))
        await expecting.append(bytes(500))  # was set aside
        with pytest.raises(StorageFull):
            await expecting.append(b"x")
        assert growing.commit().size_bytes == 500
    assert (await put(store, data=bytes(500))).size_bytes == 500


async def test_files_are_limited_in_number_with_drafts(open_store: OpenStore) -> None:
    store = open_store(store_files=3)
    await put(store)
    with store.draft(Kind.BLOB), store.draft(Kind.ASSET), pytest.raises(StorageFull, match="3 files"):
        store.draft(Kind.BLOB)
    drafts: list[Draft] = [store.draft(Kind.BLOB), store.draft(Kind.BLOB)]
    for draft in drafts:
        store.discard(draft)
        store.discard(draft)
    assert await put(store)


async def test_the_disk_has_a_share_that_is_left(open_store: OpenStore, tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    store = open_store(store_disk_share=0.5, store_bytes=2**60)
    with pytest.raises(StorageFull):
        store.draft(Kind.BLOB, int(0.6 * free))
    with store.draft(Kind.BLOB, int(0.3 * free)), pytest.raises(StorageFull):
        store.draft(Kind.BLOB, int(0.3 * free))


async def test_a_client_with_a_key_has_half_of_the_files_and_bytes(open_store: OpenStore) -> None:
    store = open_store(store_files=8, store_bytes=1000)
    with store.draft(Kind.BLOB, owner="alice"):
        for _ in range(3):
            await put(store, data=b"x", owner="alice")
        with pytest.raises(StorageFull, match="half of the 8"):
            store.draft(Kind.BLOB, owner="alice")
        assert await put(store, data=bytes(500), owner="bob")
    with pytest.raises(StorageFull, match="your share of 500 bytes"):
        store.draft(Kind.BLOB, 1, owner="bob")
    alices = await put(store, data=bytes(497), owner="alice")
    with pytest.raises(StorageFull), store.draft(Kind.BLOB, owner="carol") as growing:
        await growing.append(b"x")  # the store itself is full
    store.delete(alices.name, "alice")
    assert await put(store, data=bytes(497), owner="carol")


async def test_without_keys_nobody_has_a_share(open_store: OpenStore) -> None:
    store = open_store(store_files=3, store_bytes=900)
    for _ in range(3):
        await put(store, data=bytes(300))


@pytest.mark.parametrize("full", [{"store_files": 2}, {"store_bytes": 8}])
async def test_a_full_store_no_longer_counts_what_was_removed_by_hand(
    open_store: OpenStore, full: dict[str, Any]
) -> None:
    store = open_store(**full)
    for harm in (lambda path: path.unlink(), lambda path: os.truncate(path, 1), replace_by_link, replace_by_copy):
        files = [await put(store), await put(store)]
        with pytest.raises(StorageFull):
            await put(store)
        for file in files:
            harm(file.path)
        await put(store)
        for file in list(store._files.values()):
            store.delete(file.name)


def replace_by_link(path: Path) -> None:
    target = path.with_name(f"target-of-{path.name}")
    path.rename(target)
    path.symlink_to(target)


def replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


async def test_what_was_removed_by_hand_is_forgotten_without_a_request(open_store: OpenStore) -> None:
    store = open_store(store_ttl_s=0.2)
    async with store.expiring():
        file = await put(store)
        file.path.unlink()
        os.mkfifo(file.path)  # nobody waits for a writer
        async with asyncio.timeout(5):
            while store._files:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


# -- Deleting -----------------------------------------------------------------------------------------------


async def test_clients_delete_their_own_files(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(uploads_in_shm=True)
    for kind, owner in [(kind, owner) for kind in Kind for owner in ("", "alice")]:
        file = await put(store, kind, VIDEO, expected_bytes=len(VIDEO), owner=owner)
        for other in {"", "alice", "bob"} - {owner}:
            with pytest.raises(UnknownPath) as refused:
                store.delete(file.name, other)
            with pytest.raises(UnknownPath) as unknown:
                store.delete(file.name[:-1] + ("0" if file.name[-1] != "0" else "1"), other)
            assert refused.value.message[:-50] == unknown.value.message[:-50]
        with store.holding(file), pytest.raises(InUse):
            store.delete(file.name, owner)
        assert store.find(file.name, kind, owner=owner)
        store.delete(file.name, owner)
        with pytest.raises(UnknownPath):
            store.delete(file.name, owner)
    assert (on_disk(tmp_path), in_shm(store)) == ([], [])


async def test_a_thousand_deletions_leave_no_file_open(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    for _ in range(1000):
        store.delete((await put(store)).name)
    eventually(lambda: not open_files_in(tmp_path / "data" / "blobs"), 10)
    assert (on_disk(tmp_path), store._files, store._held) == ([], {}, {})


# -- Expiry and damage --------------------------------------------------------------------------------------


async def test_an_expired_file_is_unknown_and_removed(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(store_ttl_s=0.05)
    file = await put(store)
    store.expire()
    assert store.find(file.name, Kind.BLOB)
    await asyncio.sleep(0.06)
    with pytest.raises(UnknownPath, match="expired"):
        store.find(file.name, Kind.BLOB)
    assert on_disk(tmp_path) == []


async def test_expired_files_are_swept_without_being_asked_for(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(store_ttl_s=0.05, store_files=1)
    async with store.expiring():
        await put(store)
        async with asyncio.timeout(5):
            while on_disk(tmp_path):  # noqa: ASYNC110  the folder tells
                await asyncio.sleep(0.01)
    assert await put(store)


async def test_a_file_that_is_held_outlives_its_time_until_the_last_reader_is_done(open_store: OpenStore) -> None:
    store = open_store(store_ttl_s=0.05)
    file = await put(store)
    with store.holding(file):
        with store.holding(file):
            await asyncio.sleep(0.06)
            store.expire()
            assert file.path.exists()
        with pytest.raises(UnknownPath):
            store.find(file.name, Kind.BLOB)
        assert file.path.exists()
    store.expire()
    assert not file.path.exists()


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 3), None])
async def test_a_file_that_was_harmed_is_found_out(
    open_store: OpenStore, tmp_path: Path, harm: Callable[[Path], None] | None
) -> None:
    store = open_store(store_bytes=1000)
    file = await put(store, Kind.OUTPUT, VIDEO)
    if harm is not None:
        harm(file.path)
    else:
        with file.path.open("ab") as more:
            more.write(b"x")
    with pytest.raises(UnknownPath):
        store.find(file.name, Kind.OUTPUT)
    assert on_disk(tmp_path) == []
    store.discard(store.draft(Kind.BLOB, 1000))  # it counts no more


# -- Starting again -----------------------------------------------------------------------------------------


async def test_a_crash_leaves_whole_files_on_disk_and_nothing_else(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(uploads_in_shm=True)
    whole = [await put(store, kind, VIDEO) for kind in Kind]
    lost = [await put(store, kind, VIDEO, len(VIDEO)) for kind in (Kind.VIDEO, Kind.BLOB)]
    assert all(file.in_shm for file in lost)
    for kind in (Kind.VIDEO, Kind.OUTPUT):
        lost.append(await put(store, kind, VIDEO))
        os.truncate(lost[-1].path, len(VIDEO) - 1)
    for kind, expected in ((Kind.OUTPUT, 0), (Kind.VIDEO, 1000)):
        await store.draft(kind, expected).append(VIDEO)  # never ends
    for path in (store.new_work_path(), store.new_shm_path(), SHM_DIR / (store.shm_prefix("triton") + "1")):
        path.write_bytes(b"left")
    (tmp_path / "data" / "blobs" / "notes.txt").write_bytes(b"x")
    assert len(in_shm(store)) == 2 + 3
    assert store._lock_fd is not None
    os.close(store._lock_fd)  # all that the end of a process does
    store._lock_fd, store._files = None, {}

    store = open_store()
    assert [store.find(file.name, file.kind) for file in whole] == whole
    for file in lost:
        with pytest.raises(UnknownPath):
            store.find(file.name, file.kind)
    assert on_disk(tmp_path) == sorted(f"{file.kind}s/{file.name}" for file in whole)
    assert in_shm(store) == []


async def test_a_store_that_is_closed_keeps_its_files_on_disk_and_gives_memory_back(open_store: OpenStore) -> None:
    store = open_store(uploads_in_shm=True)
    disk, memory = await put(store), await put(store, expected_bytes=4)
    store.close()
    assert (disk.path.exists(), memory.in_shm) == (True, True)
    assert in_shm(store) == []


async def test_files_that_expired_while_nobody_ran_are_removed_at_the_start(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store()
    old, young = await put(store), await put(store)
    age(old.path, 101)
    age(young.path, 99)
    store = open_store(store_ttl_s=100)
    assert store.find(young.name, Kind.BLOB)
    assert store.find(old.name, Kind.BLOB, allow_expired=True)  # for those who held it before
    async with store.expiring():
        assert on_disk(tmp_path) == [f"blobs/{young.name}"]


async def test_one_store_at_a_time_has_a_folder(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    file = await put(store)
    with store.draft(Kind.BLOB) as draft:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="another server"):
                Store(Settings(data_dir=tmp_path / "data")).open()
        assert draft.path.exists()  # the second one removed nothing
    assert open_store().find(file.name, Kind.BLOB)


# -- Shared memory ------------------------------------------------------------------------------------------


async def test_uploads_of_a_known_size_lie_in_shared_memory_up_to_the_cap(open_store: OpenStore) -> None:
    store = open_store(uploads_in_shm=True, shm_upload_bytes=1000)
    with store.draft(Kind.BLOB, 500) as draft:
        assert not (await put(store, data=b"x", expected_bytes=501)).in_shm
        assert (await put(store, data=bytes(400), expected_bytes=400)).in_shm
        assert not (await put(store, data=bytes(101), expected_bytes=101)).in_shm
        assert (await put(store, data=bytes(100), expected_bytes=100)).in_shm
        await draft.append(bytes(500))
        file = draft.commit()
    assert file.in_shm
    assert store.find(file.name, Kind.BLOB).path.read_bytes() == bytes(500)
    assert not (await put(store, expected_bytes=0)).in_shm
    store = open_store(uploads_in_shm=True)
    assert not (await put(store, Kind.OUTPUT, VIDEO, len(VIDEO))).in_shm
    assert not (await put(store, Kind.ASSET, b"x", 1)).in_shm


@pytest.mark.parametrize("settings", [{}, {"uploads_in_shm": True, "shared_memory": False}])
async def test_uploads_lie_on_disk_unless_asked_otherwise(open_store: OpenStore, settings: dict[str, Any]) -> None:
    store = open_store(**settings)
    assert not (await put(store, data=b"x", expected_bytes=1)).in_shm
    assert in_shm(store) == []


async def test_files_in_shared_memory_leave_it_when_dropped_or_expired(open_store: OpenStore) -> None:
    store = open_store(uploads_in_shm=True, store_ttl_s=0.05)
    with store.draft(Kind.VIDEO, 1000) as draft:
        await draft.append(VIDEO)
        assert in_shm(store) == [draft.path]
    assert in_shm(store) == []
    assert (await put(store, expected_bytes=4)).in_shm
    await asyncio.sleep(0.06)
    store.expire()
    assert in_shm(store) == []


@pytest.mark.parametrize("belongs_to_us", [True, False])
async def test_other_users_cannot_list_the_data_directory(
    open_store: OpenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    belongs_to_us: bool,
) -> None:
    folder = tmp_path / "data"
    store = open_store()
    assert folder.stat().st_mode & 0o777 == 0o700
    store.close()
    folder.chmod(0o755)
    if not belongs_to_us:
        monkeypatch.setattr("frontend.store.os.geteuid", lambda: folder.stat().st_uid + 1)
    open_store()
    assert folder.stat().st_mode & 0o777 == (0o700 if belongs_to_us else 0o755)
    (warning,) = [record.getMessage() for record in caplog.records if "accessible to other" in record.getMessage()]
    assert ("its mode is now 0700" if belongs_to_us else "belongs to another user") in warning


@pytest.mark.parametrize("embedded", [False, True])
async def test_only_a_triton_elsewhere_needs_files_that_its_group_can_open(
    open_store: OpenStore, *, embedded: bool
) -> None:
    store = open_store(embedded=embedded, uploads_in_shm=True)
    file = await put(store, expected_bytes=4)
    assert file.in_shm
    assert file.path.stat().st_mode & 0o777 == (0o600 if embedded else 0o660)
