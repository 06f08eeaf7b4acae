"""Encoding and decoding of video files by the server, and by the same code without it."""

import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.report import MIB, Options, Ratio, Row, median
from benchmarks.servers import MeasuredFrontend, Memory, Transport, frontends
from filmstrip.video import read_frames, write_video
from filmstrip.wire import Video
from tests.support import http
from tests.support.server import ROOT

HEIGHT, WIDTH = 320, 576
_FORMATS = ("mp4", "webm", "gif")
_GROWTH_MIB = 64


def measure_video_files(options: Options) -> list[Row]:
    """Frames per second of each format, against the functions of `filmstrip.video` in one process."""
    num_frames = 24 if options.quick else 120
    clip = ROOT / "demo" / "big_buck_bunny.mp4"
    video = np.stack(list(read_frames(clip, size=(HEIGHT, WIDTH), max_frames=num_frames)))
    video = np.concatenate([video] * -(-num_frames // len(video)))[:num_frames]
    with frontends(options.folder / "video-files", Transport.LANES) as servers:
        server = servers[Transport.LANES]
        rows = [row for suffix in _FORMATS for row in _encoding(options, server, video, suffix)]
        return [*rows, *_decoding(options, server, video)]


def _encoding(options: Options, server: MeasuredFrontend, video: Video, suffix: str) -> list[Row]:
    seconds, in_process, cached = [], [], []
    growth = 0
    source = server.upload(video)
    for _ in range(1 if options.quick else options.rounds):
        *_, last = server.generate(pipeline_id="passthrough", prompt="", num_frames=len(video), input_path=source)
        path = str(last[1]["output_path"])
        with Memory(server.pid) as memory:
            seconds.append(_fetched(server, path, suffix))
        growth = max(growth, memory.growth_bytes)
        cached.append(_fetched(server, path, suffix))
        began = time.perf_counter()
        write_video(options.folder / f"out.{suffix}", video, 16)
        in_process.append(time.perf_counter() - began)
        server.forget(path)
    server.forget(source)
    return [
        _speed(f"{suffix} of {WIDTH}x{HEIGHT}, first download", len(video), seconds, in_process),
        Row(f"{suffix}, further downloads", f"{median(cached) * 1000:.1f} ms"),
        _growth(f"{suffix}, first download", growth),
    ]


def _fetched(server: MeasuredFrontend, path: str, suffix: str) -> float:
    began = time.perf_counter()
    query = {"path": path, "format": suffix}
    http.get(f"{server.url}/api/v1/generate/download", params=query, timeout=600).raise_for_status()
    return time.perf_counter() - began


def _decoding(options: Options, server: MeasuredFrontend, video: Video) -> list[Row]:
    path = options.folder / "in.mp4"
    write_video(path, video, Fraction(16))
    seconds, in_process = [], []
    growth = 0
    for _ in range(1 if options.quick else options.rounds):
        with Memory(server.pid) as memory:
            began = time.perf_counter()
            uploaded = _uploaded(server, path)
            seconds.append(time.perf_counter() - began)
        growth = max(growth, memory.growth_bytes)
        server.forget(uploaded)
        began = time.perf_counter()
        for _ in read_frames(path):
            pass
        in_process.append(time.perf_counter() - began)
    return [
        _speed(f"upload of an mp4 of {WIDTH}x{HEIGHT}", len(video), seconds, in_process),
        _growth("upload of an mp4", growth),
    ]


def _uploaded(server: MeasuredFrontend, path: Path) -> str:
    answer = http.post(
        f"{server.url}/api/v1/generate/upload",
        content=path.read_bytes(),
        headers={"Content-Type": "video/mp4"},
        timeout=600,
    )
    return str(answer.raise_for_status().json()["input_path"])


def _speed(what: str, num_frames: int, seconds: list[float], baseline: list[float]) -> Row:
    return Row(
        what,
        f"{num_frames / median(seconds):.0f} frames/s",
        f"without a server {num_frames / median(baseline):.0f} frames/s",
        str(Ratio.of(baseline, seconds)),
    )


def _growth(what: str, growth_bytes: int) -> Row:
    growth_mib = growth_bytes / MIB
    return Row(
        f"{what}: growth of the server's memory",
        f"{growth_mib:.0f} MiB at most",
        target=f"<= {_GROWTH_MIB} MiB",
        holds=growth_mib <= _GROWTH_MIB,
    )
