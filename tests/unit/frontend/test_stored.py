"""Opening stored files: only what the server itself put there."""

import os
import socket
from pathlib import Path

import pytest

from filmstrip.errors import BadImage
from frontend.images import ImageDecoder, Requester
from frontend.store import Kind, StoredFile, open_stored
from tests.support.server import ROOT


def test_a_regular_file_is_opened_and_nothing_else(tmp_path: Path) -> None:
    """A link, or what would block or be read for ever, counts as absent; no descriptor stays open."""
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    fd = open_stored(file)
    assert os.read(fd, 100) == b"bytes"
    assert not os.get_inheritable(fd)
    os.close(fd)
    others = {name: tmp_path / name for name in ("link", "broken link", "link to a device", "fifo", "folder", "socket")}
    others["link"].symlink_to(file)
    others["broken link"].symlink_to(tmp_path / "nothing")
    others["link to a device"].symlink_to("/dev/zero")
    os.mkfifo(others["fifo"])
    others["folder"].mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(others["socket"]))
        before = os.listdir("/proc/self/fd")
        for path in (*others.values(), tmp_path / "absent", Path("/dev/zero")):
            with pytest.raises(FileNotFoundError):
                open_stored(path)
        assert os.listdir("/proc/self/fd") == before


def test_a_file_that_was_replaced_by_a_link_is_not_whole(tmp_path: Path) -> None:
    name = f"{Kind.BLOB}-{'0' * 32}"
    (tmp_path / name).write_bytes(b"blob")
    found = StoredFile.inspect(tmp_path / name, "", 60)
    assert found
    assert found.is_intact()
    (tmp_path / name).rename(tmp_path / "moved")
    (tmp_path / name).symlink_to(tmp_path / "moved")
    assert not found.is_intact()
    assert StoredFile.inspect(tmp_path / name, "", 60) is None


async def test_an_image_behind_a_link_is_not_read(tmp_path: Path) -> None:
    image = ROOT / "tests" / "support" / "pixel.png"
    (tmp_path / "link").symlink_to(image)
    decoder = ImageDecoder()
    try:
        assert await decoder.shape(image, Requester()) == (4, 4, 3)
        with pytest.raises(BadImage):
            await decoder.shape(tmp_path / "link", Requester())
    finally:
        await decoder.close()
