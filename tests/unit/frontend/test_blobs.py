"""The files of the local store keep the contract of all blobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from frontend.blobs import LocalBlobs
from frontend.settings import Settings
from frontend.store import Store
from tests.support.contracts import BlobsContract


class TestLocalBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Iterator[LocalBlobs]:
        store = Store(Settings(data_dir=tmp_path / "data", store_ttl_s=self.TTL_S))
        store.open()
        yield LocalBlobs(store)
        store.close()
