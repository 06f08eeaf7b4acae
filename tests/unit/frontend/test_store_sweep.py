"""The sweep of expired files goes on whatever was done to one of them from outside."""

import asyncio
from pathlib import Path

import pytest

from filmstrip.errors import UnknownPath
from frontend.settings import Settings
from frontend.store import Kind, Store, StoredFile


async def put(store: Store) -> StoredFile:
    with store.draft(Kind.BLOB) as draft:
        await draft.append(b"data")
        return draft.commit()


async def test_a_folder_in_the_place_of_an_expired_file_does_not_stop_it(tmp_path: Path) -> None:
    store = Store(Settings(data_dir=tmp_path / "data", store_ttl_s=0.01))
    store.open()
    try:
        first, second = await put(store), await put(store)
        first.path.unlink()
        first.path.mkdir()
        await asyncio.sleep(0.02)
        store.expire()
        assert first.path.is_dir()
        assert not second.path.exists()
        with pytest.raises(UnknownPath, match="expired"):
            store.find(second.name, Kind.BLOB)
    finally:
        store.close()
