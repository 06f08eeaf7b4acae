"""GET /generate/download as a video file, with the clients that people have: curl, ffprobe and a browser."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from filmstrip.video import read_frames
from tests.support import http
from tests.support.browser import CHROMIUM, NO_CHROMIUM, what_a_page_reports
from tests.support.http import DOWNLOAD
from tests.support.mounts import disk_filled, mounted_frontend
from tests.support.processes import worker_processes
from tests.support.raw_client import RawClient
from tests.support.recovery import assert_recovers, eventually
from tests.support.refusals import refusal_of
from tests.support.server import Frames, Frontend, frontend_on


@pytest.fixture(scope="module")
def output(server: Frontend, clip: Frames) -> str:
    events = server.generate(pipeline_id="passthrough", prompt="", num_frames=90, input_path=server.upload(clip))
    return str(events[-1][1]["output_path"])


def url_of(server: Frontend, output: str, query: str) -> str:
    return f"{server.url}{DOWNLOAD}?path={output}&{query}"


def get(server: Frontend, output: str, query: str, method: str = "GET", **headers: str) -> httpx.Response:
    return http.request(method, url_of(server, output, query), headers=headers)


def encoders(server: Frontend) -> list[psutil.Process]:
    return worker_processes("video_worker", server.pid)


def test_curl_gets_a_file_that_plays(server: Frontend, output: str, clip: Frames, tmp_path: Path) -> None:
    """Named by the server, whole, and in parts that fit together."""

    def curl(*arguments: str) -> str:
        command = ["curl", "-sSf", "--noproxy", "*", *arguments, url_of(server, output, "format=mp4")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path).stdout

    curl("-OJ")
    path = tmp_path / f"{output}.mp4"
    shown = np.stack(list(read_frames(path)))
    assert shown.shape == (90, *clip.shape[1:])
    assert np.abs(shown[:30].astype(int) - clip).mean() < 4
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    probed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    (stream,) = json.loads(probed)["streams"]
    known = {name: stream[name] for name in ("codec_name", "pix_fmt", "color_space", "avg_frame_rate", "nb_frames")}
    assert known == {
        "codec_name": "h264",
        "pix_fmt": "yuv420p",
        "color_space": "bt709",
        "avg_frame_rate": "16/1",
        "nb_frames": "90",
    }
    size = path.stat().st_size
    parts = b""
    for number, span in enumerate((f"0-{size // 3}", f"{size // 3 + 1}-{size // 2}", f"{size // 2 + 1}-")):
        curl("-r", span, "-o", f"part-{number}")
        parts += (tmp_path / f"part-{number}").read_bytes()
    assert parts == path.read_bytes()
    (tmp_path / "begun.mp4").write_bytes(parts[:1000])
    curl("-C", "-", "-o", "begun.mp4")  # goes on where a download broke off
    assert (tmp_path / "begun.mp4").read_bytes() == parts


def test_what_the_headers_say(server: Frontend, output: str) -> None:
    for query, media_type in (
        ("format=mp4", "video/mp4"),
        ("format=webm", "video/webm"),
        ("format=gif", "image/gif"),
        ("format=png", "image/png"),
        ("format=png&frame=89", "image/png"),
    ):
        answer = get(server, output, query)
        assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
        assert answer.headers["content-length"] == str(len(answer.content))
        assert answer.headers["accept-ranges"] == "bytes"
        assert not {name for name in answer.headers if name.startswith("x-video-")}
        etag = answer.headers["etag"]
        assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
        head = get(server, output, query, "HEAD")
        assert (head.headers["content-length"], head.headers["etag"]) == (str(len(answer.content)), etag)
        assert get(server, output, query, **{"If-None-Match": etag}).status_code == 304
        assert get(server, output, query, **{"If-Match": '"x"'}).status_code == 412
        part = get(server, output, query, Range="bytes=-7", **{"If-Range": etag})
        assert (part.status_code, part.content) == (206, answer.content[-7:])
        assert get(server, output, query, Range="bytes=0-0", **{"If-Range": '"x"'}).content == answer.content
        assert get(server, output, query, Range="bytes=99999999999-").status_code == 416


def test_the_raw_download_stays_as_it_is(server: Frontend, output: str) -> None:
    raw = http.get(f"{server.url}{DOWNLOAD}", params={"path": output})
    for query in ("format=", "fps=30&crf=99"):  # options of a video file say nothing of the raw one
        answer = get(server, output, query)
        assert answer.content == raw.content
        assert answer.headers["content-type"] == "application/octet-stream"


def test_refusals_name_the_parameter(server: Frontend, output: str) -> None:
    for query, field in (
        ("format=avi", "format"),
        ("format=mp4&crf=52", "crf"),
        ("format=mp4&fps=0", "fps"),
        ("format=mp4&scale=9", "scale"),
        ("format=png&frame=90", "frame"),
        ("format=mp4%00", "format"),
        (f"format={'x' * 5000}", "format"),
    ):
        error = refusal_of(server, f"GET {DOWNLOAD}?path={output}&{query}")
        assert (error["code"], error.get("field")) == ("invalid_field", field), query
    gone = refusal_of(server, f"GET {DOWNLOAD}?path=output-{'0' * 32}&format=mp4")
    assert gone["code"] == "unknown_path"
    assert encoders(server) == []


def test_a_client_that_leaves_ends_the_encoder(server: Frontend, clip: Frames) -> None:
    with assert_recovers(server, inputs=1, outputs=1):
        events = server.generate(pipeline_id="passthrough", prompt="", num_frames=600, input_path=server.upload(clip))
        output = str(events[-1][1]["output_path"])
        clients = [RawClient(server.url) for _ in range(2)]
        for client in clients:
            client.send_head("GET", f"{DOWNLOAD}?path={output}&format=webm&scale=8")
        eventually(lambda: encoders(server))
        (process,) = encoders(server)
        assert http.delete(f"{server.url}/api/v1/files/{output}").status_code == 409
        clients[0].close()
        clients[1].reset()
        eventually(lambda: not process.is_running())
    assert http.get(f"{server.url}{DOWNLOAD}?path={output}&format=png&frame=0").status_code == 200
    assert http.delete(f"{server.url}/api/v1/files/{output}").status_code == 204
    assert http.get(f"{server.url}{DOWNLOAD}?path={output}&format=png&frame=0").status_code == 404
    assert [path for path in (server.data_dir / "derived").iterdir() if output in path.name] == []


def test_files_belong_to_the_client_of_their_output(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, api_keys="alice:a,bob:b") as frontend:
        alice, bob = ({"Authorization": f"Bearer {key}"} for key in "ab")
        made = http.post(
            f"{frontend.url}/api/v1/generate",
            json={"pipeline_id": "probe", "prompt": "x", "num_frames": 9},
            headers=alice,
        )
        (output,) = set(re.findall("output-[0-9a-f]{32}", made.text))
        url = f"{frontend.url}{DOWNLOAD}?path={output}&format=mp4"
        assert http.get(url).status_code == 401
        for _ in range(2):
            assert http.get(url, headers=bob).status_code == 404
            assert http.get(url, headers=alice).content[4:8] == b"ftyp"


def test_a_full_disk_is_an_error_that_leaves_nothing(server: Frontend, tmp_path: Path) -> None:
    disk = {tmp_path / "data": "size=24m"}
    flags = ("--triton-url", server.triton_url)
    with mounted_frontend(tmp_path, *flags, mounts=disk, store_disk_share=1, store_bytes=2**40) as frontend:
        events = frontend.generate(pipeline_id="probe", prompt="x", num_frames=300)
        output = str(events[-1][1]["output_path"])
        with disk_filled(frontend.data_dir, 2**16):
            answer = get(frontend, output, "format=gif&scale=8")
            assert (answer.status_code, answer.json()["error"]["code"]) in ((507, "disk_full"), (507, "storage_full"))
        assert frontend.stored("partial", "derived") == []
        assert get(frontend, output, "format=mp4").status_code == 200


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
@pytest.mark.parametrize("query", ["format=mp4", "format=webm"])
def test_a_browser_plays_and_seeks(server: Frontend, output: str, query: str) -> None:
    script = f"""
      const video = document.createElement("video");
      Object.assign(video, {{muted: true, src: {json.dumps(url_of(server, output, query))}}});
      const loaded = once(video, "loadedmetadata");
      document.body.append(video);
      await loaded;
      const seen = [];
      for (const time of [5, 0.5, 4]) {{
        const seeked = once(video, "seeked");
        video.currentTime = time;
        await seeked;
        seen.push(video.currentTime);
      }}
      const ended = once(video, "ended");
      await video.play();
      await ended;
      return {{duration: video.duration, width: video.videoWidth, height: video.videoHeight, seen,
              frames: video.getVideoPlaybackQuality().totalVideoFrames, end: video.currentTime}};
    """
    found: dict[str, Any] = what_a_page_reports(script)
    assert (found["width"], found["height"]) == (288, 160), found
    assert found["duration"] == pytest.approx(90 / 16, abs=0.07)
    assert found["seen"] == [5, 0.5, 4]
    assert found["end"] == pytest.approx(90 / 16, abs=0.1)
    assert found["frames"] > 3
