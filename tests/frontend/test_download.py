"""GET /generate/download of the real server."""

import http.client
import socket
import struct
import time
from contextlib import closing
from urllib.parse import urlsplit

import httpx
import pytest

from tests.faults.wire import request
from tests.server import Frames, Frontend


@pytest.fixture(scope="module")
def output(server: Frontend, clip: Frames) -> str:
    events = server.generate(pipeline_id="passthrough", prompt="", num_frames=30, input_path=server.upload(clip))
    return str(events[-1][1]["output_path"])


@pytest.fixture(scope="module")
def whole(clip: Frames) -> bytes:
    return struct.pack("<5I", 4, *clip.shape) + clip.tobytes()


def get(server: Frontend, output: str, method: str = "GET", **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.request(method, f"{server.url}/api/v1/generate/download", params={"path": output}, headers=sent)


def test_the_whole_file(server: Frontend, output: str, whole: bytes) -> None:
    answer = get(server, output)
    assert answer.status_code == 200
    assert answer.content == whole
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(whole))
    assert answer.headers["accept-ranges"] == "bytes"
    shape = [answer.headers[f"x-video-{side}"] for side in ("frames", "height", "width", "channels")]
    assert shape == ["30", "160", "288", "3"]


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("0-0", 0, 0), ("0-19", 0, 19), ("100-", 100, None), ("-7", -7, None), ("5-99999999999", 5, None)],
)
def test_one_range(server: Frontend, output: str, whole: bytes, wanted: str, first: int, last: int | None) -> None:
    answer = get(server, output, Range=f"bytes={wanted}")
    start = first if first >= 0 else len(whole) + first
    end = len(whole) - 1 if last is None else last
    assert answer.status_code == 206
    assert answer.content == whole[start : end + 1]
    assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(whole)}"
    assert answer.headers["x-video-frames"] == "30"


def test_a_range_outside_the_file(server: Frontend, output: str, whole: bytes) -> None:
    answer = get(server, output, Range="bytes=99999999999-")
    assert answer.status_code == 416
    assert answer.json()["error"]["code"] == "range_not_satisfiable"
    assert answer.headers["content-range"] == f"bytes */{len(whole)}"


@pytest.mark.parametrize("wanted", ["bytes=0-1,4-5", "frames=0-1", "bytes=abc", "bytes=5-2", "bytes=-0", ""])
def test_other_ranges_give_the_whole_file(server: Frontend, output: str, whole: bytes, wanted: str) -> None:
    answer = get(server, output, Range=wanted)
    assert (answer.status_code, len(answer.content)) == (200, len(whole))


def test_if_range(server: Frontend, output: str) -> None:
    etag = get(server, output, "HEAD").headers["etag"]
    assert get(server, output, Range="bytes=0-1", If_Range=etag).status_code == 206
    assert get(server, output, Range="bytes=0-1", If_Range='"other"').status_code == 200


def test_head(server: Frontend, output: str, whole: bytes) -> None:
    answer = get(server, output, "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(whole))
    assert answer.headers["x-video-frames"] == "30"


def test_resumed_in_pieces_it_is_the_file(server: Frontend, output: str, whole: bytes) -> None:
    pieces = [get(server, output, Range=f"bytes={at}-{at + 999_999}").content for at in range(0, len(whole), 10**6)]
    assert b"".join(pieces) == whole


def test_an_aborted_download_keeps_the_file(server: Frontend, output: str, whole: bytes) -> None:
    address = urlsplit(server.url)
    for _ in range(3):
        with closing(http.client.HTTPConnection(str(address.hostname), address.port)) as connection:
            connection.request("GET", f"/api/v1/generate/download?path={output}")
            connection.getresponse().read(100)
    assert get(server, output).content == whole


def test_a_client_that_reads_slowly_gets_it_all(server: Frontend, output: str, whole: bytes) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(request(f"GET /api/v1/generate/download?path={output}"))
        time.sleep(1)
        received = b"".join(iter(lambda: connection.recv(2**20), b""))
    assert received.partition(b"\r\n\r\n")[2] == whole


@pytest.mark.parametrize(
    "name", ["output-" + 32 * "0", "../outputs", "/etc/passwd", "output-", "x" * 5000, "output-%00", "\u00e9"]
)
def test_names_that_the_server_did_not_make(server: Frontend, name: str) -> None:
    answer = get(server, name)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_path"
    assert len(answer.content) < 500


def test_the_path_is_needed(server: Frontend) -> None:
    assert httpx.get(f"{server.url}/api/v1/generate/download").status_code == 422
