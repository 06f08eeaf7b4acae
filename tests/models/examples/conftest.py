"""A client of a server with the pipeline `longlive-small`."""

from collections.abc import Iterator

import pytest

from filmstrip.client import Client
from tests.support.server import Frontend


@pytest.fixture
def client(small_server: Frontend) -> Iterator[Client]:
    """A client of that server."""
    with Client(small_server.url) as client:
        yield client
