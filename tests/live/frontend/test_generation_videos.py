"""The video files of a generation: growing while it runs, with ranges when it has ended."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from filmstrip.video import read_frames
from tests.support import http
from tests.support.browser import CHROMIUM, NO_CHROMIUM, what_a_page_reports
from tests.support.raw_client import RawClient
from tests.support.recovery import eventually
from tests.support.refusals import check_refusal
from tests.support.server import Frontend

ROOT = "/api/v1/generations"
SLOW = {"pipeline_id": "probe", "prompt": "!sleep 0.4", "num_frames": 141}


def submit(server: Frontend, id: str, **fields: Any) -> str:
    answer = http.put(f"{server.url}{ROOT}/{id}", json=fields)
    assert answer.status_code == 202, answer.text
    return f"{server.url}{ROOT}/{id}"


def state(url: str) -> dict[str, Any]:
    return dict(http.get(url).json())


@pytest.fixture
def running(server: Frontend) -> Iterator[str]:
    url = submit(server, "growing", **SLOW)
    eventually(lambda: state(url)["frames"] > 0)
    yield url
    http.delete(url)


def test_a_finished_generation_has_its_files(server: Frontend, tmp_path: Path) -> None:
    url = submit(server, "whole", pipeline_id="probe", prompt="x", num_frames=33)
    eventually(lambda: state(url)["state"] == "complete")
    command = ["curl", "-sSf", "--noproxy", "*", "-O", f"{url}/video.mp4"]
    subprocess.run(command, check=True, timeout=60, cwd=tmp_path)
    assert np.stack(list(read_frames(tmp_path / "video.mp4"))).shape == (33, 64, 96, 3)
    part = http.get(f"{url}/video.mp4", headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content[4:]) == (206, b"ftyp")
    assert part.headers["etag"] == http.head(f"{url}/video.mp4?crf=18").headers["etag"]
    for name, kind in (("video.webm", b"\x1a\x45"), ("video.gif", b"GIF8"), ("contact-sheet.png", b"\x89PNG")):
        answer = http.get(f"{url}/{name}")
        assert (answer.status_code, answer.content[: len(kind)]) == (200, kind)
    (tmp_path / "poster.png").write_bytes(http.get(f"{url}/poster.png").content)
    made = server.download(state(url)["output_path"])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "poster.png")), made[0])
    links = state(url)["links"]
    assert {links["video"], links["poster"]} == {f"{ROOT}/whole/video.mp4", f"{ROOT}/whole/poster.png"}
    assert check_refusal(server, http.get(f"{url}/video.mp4?crf=99"))["field"] == "crf"
    assert http.delete(url).status_code == 204
    assert check_refusal(server, http.get(f"{url}/video.mp4"))["code"] == "not_found"
    assert check_refusal(server, http.get(f"{server.url}{ROOT}/none/video.mp4"))["code"] == "not_found"


def test_a_running_generation_has_a_growing_mp4(server: Frontend, running: str, tmp_path: Path) -> None:
    with http.stream("GET", f"{running}/video.mp4") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "video/mp4"
        assert "etag" not in answer.headers
        assert answer.headers["accept-ranges"] == "none"
        pieces = answer.iter_raw()
        first = next(pieces)
        assert state(running)["state"] == "running"
        for name in ("video.webm", "video.gif", "poster.png", "contact-sheet.png"):
            assert check_refusal(server, http.get(f"{running}/{name}"))["code"] == "not_ready"
        assert http.get(f"{running}/video.mp4", headers={"Range": "bytes=0-0"}).status_code == 200
        grown = first + b"".join(pieces)
    eventually(lambda: state(running)["state"] == "complete")
    (tmp_path / "grown.mp4").write_bytes(grown)
    whole = http.get(f"{running}/video.mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    (tmp_path / "whole.mp4").write_bytes(whole.content)
    videos = [np.stack(list(read_frames(tmp_path / name))) for name in ("grown.mp4", "whole.mp4")]
    assert np.array_equal(*videos)
    assert len(videos[0]) == 141


def test_the_encoder_ends_with_its_last_reader(server: Frontend, running: str) -> None:
    client = RawClient(server.url)
    client.send_head("GET", f"{ROOT}/growing/video.mp4")
    assert client.read_head().status == 200
    client.reset()
    assert http.delete(running).status_code == 204
    eventually(lambda: not server.stored("partial"))


def test_a_generation_that_is_deleted_ends_its_readers(server: Frontend, running: str) -> None:
    with RawClient(server.url) as client:
        client.send_head("GET", f"{ROOT}/growing/video.mp4")
        assert client.read_head().status == 200
        assert http.delete(running).status_code == 204
        client.read_to_end()
    eventually(lambda: not server.stored("partial"))


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_a_browser_plays_a_running_generation(server: Frontend) -> None:
    url = submit(server, "watched", **SLOW | {"prompt": "!sleep 1"})
    eventually(lambda: state(url)["frames"] > 0)
    script = f"""
      const video = document.createElement("video");
      Object.assign(video, {{muted: true, autoplay: true, src: {json.dumps(f"{url}/video.mp4")}}});
      const ended = once(video, "ended");
      document.body.append(video);
      await ended;
      return {{width: video.videoWidth, end: video.currentTime}};
    """
    found = what_a_page_reports(script)
    assert found["width"] == 96, found
    assert found["end"] == pytest.approx(141 / 16, abs=0.1)
    assert http.delete(url).status_code == 204
