"""The upload endpoints of the real server."""

import base64
import io
import struct
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support import http
from tests.support.http import ASSETS, GENERATE, LOAD, UPLOAD, UPLOAD_DATA
from tests.support.raw_client import RawClient
from tests.support.recovery import eventually
from tests.support.server import Frames, Frontend

HEADERS = {"X-Video-Frames": "2", "X-Video-Height": "4", "X-Video-Width": "6"}


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an answer that must be this error, in the one shape of errors."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["error"]["code"] == code
    assert body["detail"] == body["error"]["message"]
    assert set(body) == {"error", "detail"}
    return str(body["detail"])


def test_a_video_is_stored_with_its_header(server: Frontend, clip: Frames) -> None:
    headers = {"X-Video-Frames": "30", "X-Video-Height": "160", "X-Video-Width": "288"}
    answer = http.post(server.url + UPLOAD, content=clip.tobytes(), headers=headers)
    assert answer.status_code == 200
    path = answer.json().pop("input_path")
    assert answer.json() == {"input_path": path, "num_frames": 30, "shape": [30, 160, 288, 3]}
    stored = (server.data_dir / "videos" / path).read_bytes()
    assert stored == struct.pack("<5I", 4, 30, 160, 288, 3) + clip.tobytes()


def test_channels_are_stored(server: Frontend) -> None:
    for channels in (1, 3, 4):
        body = bytes(2 * 4 * 6 * channels)
        answer = http.post(server.url + UPLOAD, content=body, headers=HEADERS | {"X-Video-Channels": str(channels)})
        assert answer.json()["shape"] == [2, 4, 6, channels]


def test_bad_and_missing_headers_are_named(server: Frontend) -> None:
    """More bad values are in tests/faults/test_bad_input.py."""
    for header in HEADERS:
        bad = {name.encode(): text.encode() for name, text in HEADERS.items()} | {header.encode(): "\u0663".encode()}
        missing = {name: value for name, value in HEADERS.items() if name != header}
        for headers in (bad, missing):
            response = http.post(server.url + UPLOAD, content=b"x", headers=headers)
            assert header in refused(response, 400, "bad_header")


def test_two_channels_are_refused(server: Frontend) -> None:
    headers = HEADERS | {"X-Video-Channels": "2"}
    assert "1, 3 or 4" in refused(http.post(server.url + UPLOAD, content=bytes(96), headers=headers), 400, "bad_header")


def test_a_size_mismatch_names_both_sizes(server: Frontend, subtests: pytest.Subtests) -> None:
    before = server.stored()
    for size in (0, 1, 143, 145, 100_000):
        for chunked in (False, True):
            with subtests.test(size=size, chunked=chunked):
                content = iter([bytes(size)]) if chunked else bytes(size)
                response = http.post(server.url + UPLOAD, content=content, headers=HEADERS)
                message = refused(response, 400, "size_mismatch")
                assert "144" in message
                assert ("more than 144" if chunked and size > 144 else str(size)) in message
                assert server.stored() == before


def test_a_blob_is_stored_as_it_is(server: Frontend) -> None:
    blob = np.random.default_rng(0).bytes(100_001)
    answer = http.post(server.url + UPLOAD_DATA, content=blob)
    path = answer.json()["data_blob_path"]
    assert answer.json() == {"data_blob_path": path, "size_bytes": 100_001}
    assert (server.data_dir / "blobs" / path).read_bytes() == blob


def test_an_empty_body_is_refused(server: Frontend) -> None:
    before = server.stored()
    for endpoint in (UPLOAD_DATA, ASSETS):
        refused(http.post(server.url + endpoint), 400, "empty_body")
        refused(http.post(server.url + endpoint, content=iter([b""])), 400, "empty_body")
    assert server.stored() == before


def image(kind: str, size: tuple[int, int] = (20, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


def test_images_become_assets(server: Frontend) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        answer = http.post(server.url + ASSETS, content=image(kind))
        assert answer.status_code == 200
        assert (server.data_dir / "assets" / answer.json()["path"]).read_bytes() == image(kind)


def test_incomplete_images_and_other_files_are_refused(server: Frontend) -> None:
    before = server.stored()
    for body in (b"no image", image("GIF"), image("PNG")[:-30], b"\x89PNG\r\n\x1a\n" + bytes(100)):
        refused(http.post(server.url + ASSETS, content=body), 400, "bad_image")
    assert server.stored() == before


def test_an_image_of_too_many_pixels_is_refused(server: Frontend) -> None:
    assert "pixels" in refused(http.post(server.url + ASSETS, content=image("PNG", (5000, 4000))), 400, "bad_image")


def test_limits_are_exact(server: Frontend, start_frontend: Callable[..., Frontend]) -> None:
    limits = {"upload_bytes": 144, "blob_bytes": 1000, "asset_bytes": 1000, "json_bytes": 1000}
    small = start_frontend("--triton-url", server.triton_url, **limits)
    small.wait_healthy()
    assert http.post(small.url + UPLOAD, content=bytes(144), headers=HEADERS).status_code == 200
    assert http.post(small.url + UPLOAD_DATA, content=bytes(1000)).status_code == 200
    before = small.stored()
    for body in (bytes(1001), iter([bytes(1001)])):  # with and without Content-Length
        message = refused(http.post(small.url + UPLOAD_DATA, content=body), 413, "too_large")
        assert "1000" in message
    headers = HEADERS | {"X-Video-Frames": "3"}
    refused(http.post(small.url + UPLOAD, content=bytes(216), headers=headers), 413, "too_large")
    refused(http.post(small.url + ASSETS, content=bytes(1001)), 413, "too_large")
    for body in (b"{" + b" " * 1000 + b"}", iter([b"{" + b" " * 1000 + b"}"])):
        refused(http.post(small.url + GENERATE, content=body), 413, "too_large")
    refused(http.post(small.url + LOAD, content=b"{" + b" " * 1000 + b"}"), 413, "too_large")
    assert small.stored() == before


def test_a_refused_body_is_read_so_that_the_answer_arrives(server: Frontend) -> None:
    """A client that writes 32 MB before it reads gets its answer, not a broken pipe."""
    body = bytes(32 * 2**20)
    with RawClient(server.url) as client:
        client.send_head("POST", UPLOAD, HEADERS | {"Content-Length": str(len(body))})
        client.send(body)
        assert client.read_head().status == 400


def test_the_store_has_limits(server: Frontend, start_frontend: Callable[..., Frontend], clip: Frames) -> None:
    small = start_frontend("--triton-url", server.triton_url, store_bytes=5_000_000, store_files=3)
    small.wait_healthy()
    path = small.upload(clip)  # 4.1 MB
    refused(http.post(small.url + UPLOAD_DATA, content=bytes(10**6)), 507, "storage_full")
    refused(http.post(small.url + UPLOAD_DATA, content=iter([bytes(10**6)])), 507, "storage_full")
    refused(small.post(pipeline_id="passthrough", prompt="", num_frames=30, input_path=path), 507, "storage_full")
    assert small.stored("partial") == []
    for _ in range(2):
        assert http.post(small.url + UPLOAD_DATA, content=b"x").status_code == 200
    refused(http.post(small.url + UPLOAD_DATA, content=b"x"), 507, "storage_full")


def test_files_expire(server: Frontend, start_frontend: Callable[..., Frontend], clip: Frames) -> None:
    short = start_frontend("--triton-url", server.triton_url, store_ttl_s=1.5)
    short.wait_healthy()
    path = short.upload(clip[:12])
    made = short.generate(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path)[-1][1]["output_path"]
    assert len(short.stored("videos", "outputs")) == 2
    eventually(lambda: short.stored() == [])  # without a request
    refused(short.post(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path), 404, "unknown_path")
    refused(http.get(f"{short.url}/api/v1/generate/download", params={"path": made}), 404, "unknown_path")


def test_a_body_that_stops_is_answered_in_time(server: Frontend, start_frontend: Callable[..., Frontend]) -> None:
    impatient = start_frontend("--triton-url", server.triton_url, body_timeout_s=0.5)
    impatient.wait_healthy()
    with RawClient(impatient.url) as client:
        client.send_head("POST", UPLOAD_DATA, {"Content-Length": "1000"})
        client.send(b"some")
        assert client.read_head().status == 408
    assert impatient.stored() == []


def test_a_data_url_is_base64_of_an_image(server: Frontend) -> None:
    request = {"pipeline_id": "probe", "prompt": "x", "num_frames": 9}
    good = "data:image/png;base64," + base64.b64encode(image("PNG")).decode()
    for bad in ("data:image/png;base64,***", "data:text/plain;base64,AAAA", "data:image/png;base64,AAAA", good[:-40]):
        answer = server.post(**request, chunk_specs=[{"chunk": 0, "first_frame_image": bad}])
        assert "chunk_specs[0].first_frame_image" in refused(answer, 422, "invalid_field")
    server.generate(**request, chunk_specs=[{"chunk": 0, "first_frame_image": good}])
    assert server.probe_entries()[-1]["tensors"]["first_frame_image"]["shape"] == [10, 20, 3]
