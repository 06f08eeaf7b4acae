"""POST /generate/upload of video files to the real server, with curl, and what becomes of them."""

import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from filmstrip.video import probe, read_frames
from tests.support import http
from tests.support.http import UPLOAD
from tests.support.processes import worker_processes
from tests.support.raw_client import RawClient, RawResponse
from tests.support.recovery import assert_recovers, eventually
from tests.support.refusals import check_refusal, refusal_of
from tests.support.server import ROOT, Frames, Frontend, frontend_on
from tests.unit.filmstrip.video_samples import encode

CLIP = ROOT / "demo" / "big_buck_bunny.mp4"
MP4 = {"Content-Type": "video/mp4"}


def post(server: Frontend, body: bytes, query: str = "", **headers: str) -> httpx.Response:
    return http.post(f"{server.url}{UPLOAD}{query}", content=body, headers=headers or MP4)


def stored(server: Frontend, answer: httpx.Response) -> Frames:
    assert answer.status_code == 200, answer.text
    told = answer.json()
    (path,) = (server.data_dir / "videos").glob(f"{told['input_path']}*")  # the rate may follow
    raw = path.read_bytes()
    assert tuple(np.frombuffer(raw[:20], "<u4")) == (4, *told["shape"])
    return np.frombuffer(raw[20:], np.uint8).reshape(told["shape"])


def refusal(server: Frontend, answer: httpx.Response) -> dict[str, Any]:
    """The error of a refusal; a decoder may take its time to come to it."""
    return check_refusal(server, replace(RawResponse.of(answer), seconds=0))


def decoders(server: Frontend) -> list[psutil.Process]:
    return worker_processes("video_worker", server.pid)


def test_curl_sends_a_file_and_gets_one_back(server: Frontend, tmp_path: Path) -> None:
    """What the README shows: no header of 20 bytes, and nothing to install."""

    def curl(*arguments: str) -> str:
        command = ["curl", "-sSf", "--noproxy", "*", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd=tmp_path).stdout

    url = f"{server.url}{UPLOAD}?max_frames=20&width=144"
    uploaded = json.loads(curl("-X", "POST", "-H", "Content-Type: video/mp4", "-T", str(CLIP), url))
    assert set(uploaded) == {"input_path", "num_frames", "shape", "fps", "poster"}
    assert (uploaded["num_frames"], uploaded["shape"]) == (20, [20, 80, 144, 3])
    assert uploaded["fps"] == pytest.approx(float(25), abs=6)
    events = server.generate(pipeline_id="gray", prompt="", num_frames=20, input_path=uploaded["input_path"])
    curl("-o", "gray.mp4", f"{server.url}/api/v1/generate/download?path={events[-1][1]['output_path']}&format=mp4")
    assert float(probe(tmp_path / "gray.mp4").fps) == pytest.approx(uploaded["fps"], abs=0.01)  # not slow motion
    shown = np.stack(list(read_frames(tmp_path / "gray.mp4"))).astype(int)
    clip = np.stack(list(read_frames(CLIP, size=(80, 144), max_frames=20)))
    luma = clip @ [0.299, 0.587, 0.114]
    assert shown.shape == (20, 80, 144, 3)
    assert np.abs(shown.mean(-1) - luma).mean() < 4


def test_the_frames_are_those_that_the_command_reads(server: Frontend) -> None:
    frames = stored(server, post(server, CLIP.read_bytes(), "?max_frames=10"))
    assert np.array_equal(frames, np.stack(list(read_frames(CLIP, max_frames=10))))


def test_the_query_can_name_the_format(server: Frontend) -> None:
    """curl -T sends no Content-Type, and -d a wrong one."""
    for content_type in ("application/octet-stream", "application/x-www-form-urlencoded", ""):
        answer = post(server, CLIP.read_bytes(), "?format=mp4&max_frames=2", **{"Content-Type": content_type})
        assert answer.json()["num_frames"] == 2
    assert (
        post(server, CLIP.read_bytes(), "?max_frames=2", **{"Content-Type": "VIDEO/MP4; codecs=x"}).status_code == 200
    )


def test_raw_stays_raw_whatever_the_content_type(server: Frontend) -> None:
    video = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    headers = {"X-Video-Frames": "2", "X-Video-Height": "2", "X-Video-Width": "3"}
    for content_type in ("video/mp4", "application/octet-stream"):
        answer = post(server, video.tobytes(), "?format=mp4&width=9", **headers, **{"Content-Type": content_type})
        assert set(answer.json()) == {"input_path", "num_frames", "shape"}
        assert np.array_equal(stored(server, answer), video)
    for name, value in headers.items():  # one of them says that it is raw, and the others are missing
        answer = post(server, video.tobytes(), **MP4, **{name: value})
        assert refusal(server, answer)["code"] == "bad_header"
    plain = post(server, video.tobytes(), **{"Content-Type": "application/octet-stream"})
    assert refusal(server, plain)["field"] == "X-Video-Frames"


def test_refusals(server: Frontend) -> None:
    kept = server.stored()
    data = CLIP.read_bytes()
    cases: list[tuple[bytes, str, int, str]] = [
        (b"", "", 400, "empty_body"),
        (b"hello", "", 400, "bad_video"),
        (b"#EXTM3U\n/etc/passwd\n", "", 400, "bad_video"),
        (data[: len(data) // 2], "", 400, "bad_video"),
        (data, "?format=avi", 422, "invalid_field"),
        (data, "?fps=0", 422, "invalid_field"),
        (data, "?start=2&end=1", 422, "invalid_field"),
        (data, "?start=100000", 400, "bad_video"),
        (data, "?width=99999", 422, "invalid_field"),
    ]
    for body, query, status, code in cases:
        answer = post(server, body, query)
        error = refusal(server, answer)
        assert (answer.status_code, error["code"]) == (status, code), query
    for header in ("Content-Encoding: gzip", "Content-Type: multipart/form-data; boundary=x"):
        error = refusal_of(server, f"POST {UPLOAD}", "Content-Type: video/mp4", header, body=data)
        assert error["code"] == "unsupported_media_type"
    assert server.stored() == kept


def test_over_the_limit_the_answer_names_what_fits(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, upload_bytes=2**20) as frontend:
        data = encode(tmp_path / "x.mp4", np.zeros((60, 128, 128, 3), np.uint8)).read_bytes()
        error = refusal(frontend, post(frontend, data))
        assert error["code"] == "too_large"
        query = "?" + error["message"].partition("; ")[2].removesuffix(" fits").split(" or ")[0]
        assert post(frontend, data, query).json()["num_frames"] == 2**20 // (128 * 128 * 3)
        error = refusal_of(frontend, f"POST {UPLOAD}", "Content-Type: video/mp4", length=2**20 + 1)
        assert error["code"] == "too_large"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file that takes seconds to decode."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), np.uint8)
    path = tmp_path_factory.mktemp("slow") / "slow.mp4"
    return encode(path, noise.repeat(200, 0), options={"preset": "ultrafast", "crf": "30"}).read_bytes()


def test_a_decoder_ends_when_its_client_goes(server: Frontend, slow: bytes) -> None:
    """In good order, with a reset, and in the middle of the body; the server serves others meanwhile."""
    for leave in (RawClient.close, RawClient.reset):
        with assert_recovers(server):
            client = RawClient(server.url)
            client.send_head("POST", f"{UPLOAD}?width=2048", MP4 | {"Content-Length": str(len(slow))})
            client.send(slow)
            eventually(lambda: decoders(server))
            (process,) = decoders(server)
            assert http.get(f"{server.url}/health").status_code == 200
            leave(client)
            eventually(lambda: not process.is_running())  # noqa: B023
    with assert_recovers(server):
        client = RawClient(server.url)
        client.send_head("POST", UPLOAD, MP4 | {"Content-Length": str(len(slow))})
        client.send(slow[:1000])
        client.reset()
    assert decoders(server) == []


def test_a_decoder_of_a_form_ends_when_its_client_goes(server: Frontend, slow: bytes) -> None:
    fields = {"model": "probe", "prompt": "x", "size": "96x64"}
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()]
    head = '--x\r\nContent-Disposition: form-data; name="input_reference"; filename="slow.mp4"\r\n\r\n'
    body = "".join([*parts, head]).encode() + slow + b"\r\n--x--\r\n"
    with assert_recovers(server):
        client = RawClient(server.url)
        client.send_head(
            "POST",
            "/v1/videos",
            {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(len(body))},
        )
        client.send(body)
        eventually(lambda: decoders(server))
        (process,) = decoders(server)
        client.close()
        eventually(lambda: not process.is_running())


def test_many_uploads_at_once_are_all_served(server: Frontend, tmp_path: Path) -> None:
    """Two decoders at a time, and hostile files among good ones."""
    good = encode(tmp_path / "x.mp4", np.full((5, 32, 32, 3), 90, np.uint8)).read_bytes()
    answers: list[int] = []

    def send(body: bytes) -> None:
        answers.append(post(server, body).status_code)

    threads = [threading.Thread(target=send, args=(body,)) for body in [good, good[:900], b"x"] * 4]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert len(decoders(server)) <= 2
        threads[0].join(0.05)
        threads = [thread for thread in threads if thread.is_alive()] or threads[:1]
    assert sorted(answers) == [200] * 4 + [400] * 8
    assert server.stored("partial") == []


def test_a_file_belongs_to_its_client(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, api_keys="alice:a,bob:b") as frontend:
        body: dict[str, Any] = {"pipeline_id": "gray", "prompt": "", "num_frames": 2}
        data = CLIP.read_bytes()
        assert post(frontend, data).status_code == 401
        alice, bob = ({"Authorization": f"Bearer {key}"} for key in "ab")
        uploaded = post(frontend, data, "?max_frames=2&width=96", **MP4, **alice).json()
        for key, status in ((bob, 404), (alice, 200)):
            request = body | {"input_path": uploaded["input_path"]}
            assert http.post(f"{frontend.url}/api/v1/generate", json=request, headers=key).status_code == status
