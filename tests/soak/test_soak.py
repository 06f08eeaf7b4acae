"""A short soak through its command line, and what its judge rejects."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from filmstrip.errors import InternalError, UnknownPath
from filmstrip.wire import VideoShape, pack_video_header
from tests.soak.client import SentRequest, SoakClient, StoredFile
from tests.soak.judge import (
    ExpectedOutcome,
    Judge,
    StreamEvent,
    gray,
    looped,
    probe_pattern,
    with_own_videos,
    wrong_answer,
    wrong_events,
    wrong_video,
)
from tests.soak.report import LIMITS, Figures, Verdict, leaks, markdown
from tests.soak.traffic import ACTIONS
from tests.support.http import GENERATE
from tests.support.server import ROOT

QUICK = (
    "--warm-up",
    "0.06",
    "--ttl",
    "2",
    "--rate",
    "40",
    "--kill-every",
    "4",
    "--seed",
    "675",
)  # its faults: kill Triton, stop the frontend, !hang
WANTED = ExpectedOutcome(20, (64, 96))
FIGURES = Figures(
    memory=1, relay_memory=None, descriptors=20, threads=9, processes=6, files=0, shm_files=5, shm_bytes=9, regions=0,
    sequences=0,
)  # fmt: skip


def start(*flags: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.soak", *QUICK, *flags, "--folder", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# -- The whole of it ----------------------------------------------------------------------------------------


def test_a_short_soak_does_everything_and_finds_nothing(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    soak = start("--minutes", "0.22", "--report", str(report), folder=tmp_path)
    output, _ = soak.communicate(timeout=110)
    assert soak.returncode == 0, output
    assert "**No failures.**" in output
    text = report.read_text()
    assert text in output
    assert set(re.findall(r"[a-z_]+", text.partition("- actions: ")[2])) == set(ACTIONS), text
    assert re.search(r"faults: .*(kill|!die|!hang|stop)", text)
    ends = text.partition("generations by outcome: ")[2].partition("\n")[0]
    assert {"complete", "cancelled", "left"} <= set(re.findall(r"[a-z_]+", ends)), text
    for limit in LIMITS.values():
        assert f"| {limit.resource} |" in text
    assert "| open sequences | 0 | 0 |" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md"]


def test_ctrl_c_ends_it_with_the_figures_so_far(tmp_path: Path) -> None:
    soak = start("--minutes", "30", "--warm-up", "0.02", folder=tmp_path)
    assert soak.stdout is not None
    assert any("answers:" in line for line in soak.stdout)  # reads on until the traffic has begun
    soak.send_signal(signal.SIGINT)
    output, _ = soak.communicate(timeout=60)
    assert soak.returncode == 130, output
    assert "Interrupted." in output
    assert re.search(r"answers by status: \d+ \d+", output)
    assert list(tmp_path.iterdir()) == []


# -- The judge ----------------------------------------------------------------------------------------------


def test_a_500_is_wrong_however_well_formed_and_whenever() -> None:
    body = json.dumps(InternalError("it failed").body()).encode()
    assert wrong_answer(500, body, {200}, met_fault=True)
    assert wrong_answer(502, body, {200}, met_fault=True)


def test_a_503_is_right_near_a_fault_only() -> None:
    body = b'{"error": {"code": "triton_unavailable", "message": "no"}, "detail": "no"}'
    assert wrong_answer(503, body, {200}, met_fault=True) is None
    assert wrong_answer(503, body, {200}, met_fault=False)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"error": {"code": "unknown_path", "message": "a"}}',
        b'{"error": {"code": "unknown_path", "message": "a"}, "detail": "b"}',
        b'{"error": {"code": "unknown_path", "message": "a", "x": 1}, "detail": "a"}',
        b'{"error": {"code": "no_such_code", "message": "a"}, "detail": "a"}',
        b'{"error": {"code": "busy", "message": "a"}, "detail": "a"}',
        b'{"error": {"code": "unknown_path", "message": "/tmp/x"}, "detail": "/tmp/x"}',
    ],
)
def test_an_error_has_the_one_shape(body: bytes) -> None:
    assert wrong_answer(404, json.dumps(UnknownPath("path: no").body()).encode(), {404}, met_fault=False) is None
    assert wrong_answer(404, body, {404}, met_fault=False)


def progress(*frames: int) -> list[StreamEvent]:
    return [StreamEvent("progress", {"chunk": number, "frames": count}) for number, count in enumerate(frames, 1)]


USED = {"seed": 42, "unused": []}


def complete(**changed: object) -> StreamEvent:
    data = {"output_path": "o", "video_shape": [20, 64, 96, 3], "num_frames": 20, "num_chunks": 2, "chunk_size": 12}
    return StreamEvent("complete", {**data, **USED, **changed})


def test_a_whole_stream_is_right() -> None:
    assert wrong_events([*progress(12, 8), complete()], WANTED, met_fault=False) is None
    cancelled = {"chunk": 1, "total_chunks": 2, "frames_completed": 12, "output_path": "o"}
    cancelled |= {"video_shape": [12, 64, 96, 3], **USED}
    assert wrong_events([*progress(12), StreamEvent("cancelled", cancelled)], WANTED, met_fault=False) is None


@pytest.mark.parametrize(
    "events",
    [
        [],
        progress(12, 8),
        [*progress(12), complete()],
        [*progress(12, 8), complete(num_frames=19)],
        [*progress(12, 8), complete(video_shape=[20, 96, 64, 3])],
        [*progress(12, 8), complete(num_chunks=3)],
        [*progress(12, 8), complete(seed=None)],
        [*progress(12, 8), complete(unused=["seed"])],
        [*progress(12, 8), complete(), complete()],
        [progress(12, 8)[1], progress(12, 8)[0], complete()],
        [StreamEvent("cancelled", {"chunk": 0, "total_chunks": 2, "frames_completed": 0, "output_path": "o", **USED})],
        [*progress(12), StreamEvent("cancelled", {"chunk": 1, "total_chunks": 2, "frames_completed": 12, **USED})],
        [StreamEvent("error", {"error": "x", "code": "triton_unavailable"})],
        [StreamEvent("error", {"error": "x", "code": "internal_error"})],
    ],
)
def test_a_stream_that_is_not_whole_or_says_another_thing_is_wrong(events: list[StreamEvent]) -> None:
    assert wrong_events(events, WANTED, met_fault=False)


def test_near_a_fault_some_errors_are_right_and_others_are_not() -> None:
    def error(code: str) -> list[StreamEvent]:
        return [*progress(12), StreamEvent("error", {"error": "x", "code": code})]

    assert wrong_events(error("sequence_lost"), WANTED, met_fault=True) is None
    assert wrong_events(error("internal_error"), WANTED, met_fault=True)
    assert wrong_events(error("model_error"), WANTED, met_fault=True)
    assert (
        wrong_events(error("model_error"), ExpectedOutcome(20, (64, 96), frozenset({"model_error"})), met_fault=False)
        is None
    )


def test_a_provoked_error_that_does_not_come_is_wrong() -> None:
    outcome = ExpectedOutcome(20, (64, 96), frozenset({"model_error"}))
    assert wrong_events([*progress(12, 8), complete()], outcome, met_fault=True)


def test_one_wrong_byte_of_a_video_is_found() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (5, 8, 9, 3), np.uint8)
    data = bytearray(pack_video_header(VideoShape(*frames.shape)) + frames.tobytes())
    assert wrong_video(bytes(data), frames.shape, frames) is None
    assert wrong_video(bytes(data[:-1]), frames.shape, None)
    assert wrong_video(bytes(data), (5, 9, 8, 3), None)
    data[-1] ^= 1
    assert wrong_video(bytes(data), frames.shape, None) is None
    assert wrong_video(bytes(data), frames.shape, frames) == "frames [4] differ from what was expected"


def test_a_generation_that_outlives_its_triton_is_known_by_the_kill() -> None:
    judge = Judge()
    assert judge.kill_since(0) is None
    assert not judge.met_fault(0)
    judge.note_fault("kill Triton", kills_triton=True)
    assert judge.kill_since(0) is not None
    assert judge.met_fault(0)


# -- What videos must be ------------------------------------------------------------------------------------


def test_expected_frames() -> None:
    video = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert looped(video, 7)[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    own = {1: np.full((1, 2, 2, 3), 9, np.uint8)}
    assert with_own_videos(video, own, 15)[:, 0, 0, 0].tolist() == [0, 1, 2] * 4 + [9, 9, 9]
    assert gray(np.array([[[[255, 0, 0], [0, 255, 255]]]], np.uint8)).tolist() == [[[[76] * 3, [179] * 3]]]
    made = probe_pattern([5, 5], [9, 12])
    assert made.shape == (21, 64, 96, 3)
    assert made[[0, 9], 0, 0].tolist() == [[5, 90, 175], [36, 121, 206]]


# -- The figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", 2**26),
        ("descriptors", 24),
        ("threads", 10),
        ("processes", 5),
        ("files", 1),
        ("shm_files", 6),
        ("shm_bytes", 10),
        ("regions", 1),
        ("sequences", 1),
    ],
)
def test_what_is_left_behind_is_over_the_limit(name: str, value: int) -> None:
    after = replace(FIGURES, **{name: value})
    assert leaks(FIGURES, FIGURES) == []
    assert leaks(FIGURES, after) == [name]
    found = Verdict(Judge(), {}, FIGURES, after)
    assert found.status == 1
    assert f"Over the limit: {LIMITS[name].resource}." in markdown("soak", 1, found)


def test_a_failure_is_shown_with_what_was_sent() -> None:
    judge = Judge()
    judge.fail("video", "POST /upload", "status 500")
    found = Verdict(judge, {}, FIGURES, FIGURES)
    assert found.status == 1
    assert re.search(r"1\. \d\.\d s, video: status 500\n    sent: POST /upload", markdown("soak", 1, found))


@pytest.mark.parametrize(
    ("events", "is_right"),
    [
        ('id: 1\nevent: cancelled\ndata: {"chunk": 0}\n\n', True),
        ('id: 1\nevent: cancelled\ndata: {"chunk": 1}\n\n', False),
        ('id: 1\nevent: progress\ndata: {"chunk": 0}\n\nid: 2\nevent: cancelled\ndata: {"chunk": 0}\n\n', False),
        ('id: 1\nevent: error\ndata: {"chunk": 0}\n\n', False),
    ],
)
def test_a_wrong_request_may_be_cancelled_before_it_is_checked(events: str, is_right: bool) -> None:
    judge = Judge()
    with httpx.Client() as http:
        client = SoakClient(http, judge, "seed", ttl_s=1, body_timeout_s=1)
        answer = httpx.Response(200, text=events, request=httpx.Request("POST", f"http://localhost{GENERATE}"))
        refused = SentRequest("bad_data_url", "POST", [], [], 0.0)
        expired = SentRequest("other_chain", "POST", [StoredFile("video-1", None, 0, 0)], ["video-1"], 0.0)
        for sent, expected in ((refused, {422}), (expired, {200})):
            assert client.is_right(sent, answer, expected) is is_right
    assert len(judge.failures) == (0 if is_right else 2)


def test_a_traceback_in_the_log_is_a_failure(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('INFO Triton\'s log ends with: "failed\\nTraceback (most recent call last):\\n"\n')
    found = Verdict(Judge(), {}, FIGURES, FIGURES)
    found.check_log(log)
    assert found.status == 0
    log.write_text("ERROR it failed\nTraceback (most recent call last):\n  File\nValueError: x\n")
    found.check_log(log)
    assert found.status == 1
