"""The command on a real server."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from filmstrip import cli
from filmstrip.client import Client
from filmstrip.video import count_frames, probe, read_frames, write_video
from tests.support.server import MODEL_NAMES, MODELS, PROXIES, ROOT
from tests.unit.filmstrip.test_video_sound import with_sound

LONG = 3000  # frames: two minutes of chunks, so that a test can act on the first


@pytest.fixture
def run(server):
    def run(*arguments: object):
        return CliRunner().invoke(
            cli.main, [str(argument) for argument in arguments], env={"FILMSTRIP_SERVER": server.url}
        )

    return run


@pytest.fixture
def clip(tmp_path):
    """Thirty frames of 96x64: a bright square moves over a dark, red ground."""
    path = tmp_path / "in.mp4"
    frames = np.zeros((30, 64, 96, 3), np.uint8)
    frames[..., 0] = 90
    for index, frame in enumerate(frames):
        frame[20:44, 10 + index : 34 + index] = 230
    write_video(path, frames, 20)
    return path


def test_pipelines(run):
    shown = run("pipelines")
    assert shown.exit_code == 0
    assert all(name in shown.output for name in MODEL_NAMES)
    listed = json.loads(run("pipelines", "--json").output)
    assert {pipeline["id"] for pipeline in listed} == set(MODEL_NAMES)


def test_status_and_cancel(run):
    shown = run("status")
    assert shown.exit_code == 0
    assert "healthy" in shown.output
    assert json.loads(run("status", "--json").output)["health"]["status"] == "healthy"
    assert run("cancel").output == "Nothing is running.\n"


def test_a_video_goes_in_and_a_video_comes_out(run, clip, tmp_path):
    out = tmp_path / "out.mp4"
    result = run("generate", "-p", "gray", "--video", clip, "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}: 30 frames, 96x64, 20 fps\n"
    assert "chunk 3/3: 6 frames" in result.stderr

    info = probe(out)
    assert (info.height, info.width, float(info.fps), info.num_frames) == (64, 96, 20.0, 30)
    first = next(read_frames(out)).astype(int)
    assert np.ptp(first, axis=-1).max() <= 6  # grey
    assert abs(first[32, 20, 0] - 230) <= 6
    assert first[5, 5, 0] < 60


def test_frames_size_and_fps_are_what_was_asked_for(run, clip, tmp_path):
    out = tmp_path / "out.mp4"
    options = ["--frames", 40, "--size", "80x64", "--fps", 10, "--pre-processor", "gray"]
    result = run("generate", "a square", "-p", "scribble", "--video", clip, *options, "-o", out)
    assert result.exit_code == 0, result.output
    info = probe(out)
    assert (info.height, info.width, float(info.fps), info.num_frames) == (64, 80, 10.0, 40)


def test_fewer_frames_than_the_video(run, clip, tmp_path):
    assert (
        run("generate", "-p", "passthrough", "--video", clip, "--frames", 5, "-o", tmp_path / "out.mp4").exit_code == 0
    )
    assert count_frames(tmp_path / "out.mp4") == 5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-p", "missing"], "passthrough"),
        (["-p", "gray"], "input"),  # a frame processor without a video
        (["-p", "gray", "--post-processor", "missing"], "missing"),
        (["-p", "gray", "--lora", "ghibli=1"], "lora"),
    ],
)
def test_what_the_server_refuses_is_one_line(run, clip, tmp_path, arguments, named):
    video = ["--video", clip] if len(arguments) > 2 else []
    result = run("generate", *arguments, *video, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert named in result.stderr
    assert not (tmp_path / "out.mp4").exists()


def started(server, clip: Path, out: Path, chunk_s: float = 0.5) -> subprocess.Popen[str]:
    """A generation of LONG frames as a process of its own, past its first chunk."""
    slow = (f"!sleep {chunk_s}", "-p", "probe")
    command = [sys.executable, "-m", "filmstrip.cli", "generate", *slow, "--server", server.url]
    process = subprocess.Popen(
        [*command, "--video", str(clip), "--frames", str(LONG), "-o", str(out)],
        cwd=ROOT,
        env=os.environ | PROXIES,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "chunk 1/" in process.stderr.readline()
    return process


def test_an_interrupt_keeps_the_frames_generated_so_far(server, clip, tmp_path):
    out = tmp_path / "out.mp4"
    with started(server, clip, out) as process:
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    num_frames = count_frames(out)
    assert 0 < num_frames < LONG
    assert num_frames % 12 == 0
    assert f"has the {num_frames} frames generated so far" in stderr
    assert f"{num_frames} frames, 96x64" in stdout
    with Client(server.url) as client:
        assert client.cancel() == "idle"


def test_a_second_interrupt_leaves_at_once(server, clip, tmp_path):
    out = tmp_path / "out.mp4"
    with started(server, clip, out, chunk_s=5) as process:  # the chunk outlasts the moment between the two
        os.kill(process.pid, signal.SIGINT)
        while "Ctrl-C again" not in (line := process.stderr.readline()):
            assert line, "the command ended after the first interrupt"
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted." in stderr
    assert stdout == ""
    assert list(tmp_path.iterdir()) == [clip]


@pytest.mark.parametrize("name", ["take:1.mp4", "12:30.mp4", "-v.mp4", "it's %d.mp4", os.fsdecode(b"caf\xe9.mp4")])
def test_any_name_that_a_folder_takes_is_read_and_written(server, clip, name):
    folder = clip.parent
    (folder / "out").mkdir()
    clip.rename(folder / name)
    arguments = ["generate", "-p", "gray", "-v", name, "-o", f"out/{name}", "--server", server.url, "--", "-a cat"]
    result = subprocess.run(
        [sys.executable, "-m", "filmstrip.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    assert [path.name for path in (folder / "out").iterdir()] == [name]
    assert count_frames(folder / "out" / name) == 30
    assert b": 30 frames, 96x64, 20 fps" in result.stdout


def test_the_sound_of_the_input_is_kept_or_a_note_says_why_not(run, tmp_path):
    source = with_sound(tmp_path / "in.mp4", "aac")
    kept = run("generate", "-p", "passthrough", "-v", source, "-o", tmp_path / "kept.mp4")
    assert kept.exit_code == 0, kept.output
    assert "sound" not in kept.stderr
    with av.open(tmp_path / "kept.mp4") as container:
        assert len(container.streams.audio) == 1
    dropped = run("generate", "-p", "passthrough", "-v", source, "--fps", 7, "-o", tmp_path / "dropped.mp4")
    assert dropped.exit_code == 0, dropped.output
    assert re.search(r"Note: .*sound of .* is dropped: .*[^.]\.\n", dropped.stderr)
    with av.open(tmp_path / "dropped.mp4") as container:
        assert not container.streams.audio


# -- Waiting ------------------------------------------------------------------------------------------------


def command(server_url: str, *arguments: object, before: str = "") -> subprocess.Popen[str]:
    """The command as a process of its own, which SIGINT interrupts; `before` is Python that runs in it first."""
    code = f"""
import resource, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
{before}
from filmstrip.cli import main
main()
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), "--server", server_url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """The next line on its stderr that holds this text."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"no {text!r} in {''.join(seen)!r}")


def test_a_busy_server_is_an_exit_code_or_is_waited_for(server, run, clip, tmp_path):
    with started(server, clip, tmp_path / "first.mp4") as first:
        refused = run("generate", "-p", "gray", "--video", clip, "-o", tmp_path / "out.mp4")
        assert refused.exit_code == 4
        assert "--wait" in refused.stderr
        with command(server.url, "generate", "-p", "gray", "-v", clip, "-o", tmp_path / "no.mp4", "--wait") as waiting:
            line_with(waiting, "waiting: place 1 in the queue")
            os.kill(waiting.pid, signal.SIGINT)
            assert waiting.wait(60) == 130
        with command(server.url, "generate", "-p", "gray", "-v", clip, "-o", tmp_path / "out.mp4", "--wait") as waiting:
            line_with(waiting, "waiting: place 1 in the queue")
            os.kill(first.pid, signal.SIGINT)
            first.communicate(timeout=60)
            _, stderr = waiting.communicate(timeout=60)
            assert waiting.returncode == 0, stderr
    assert count_frames(tmp_path / "out.mp4") == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.mp4", "in.mp4", "out.mp4"]


def test_a_server_that_starts_is_waited_for_and_a_pipeline_added_later_is_loaded(start_frontend, clip, tmp_path):
    repository = tmp_path / "models"
    repository.mkdir()
    (repository / "gray").symlink_to(Path(MODELS, "gray").resolve())
    server = start_frontend("--embedded", model_repository=repository)
    with command(server.url, "generate", "-p", "gray", "-v", clip, "--wait", "-o", tmp_path / "gray.mp4") as first:
        _, stderr = first.communicate(timeout=100)
    assert first.returncode == 0, stderr

    (repository / "scribble").symlink_to(Path(MODELS, "scribble").resolve())
    with command(server.url, "generate", "-p", "scribble", "-v", clip, "-o", tmp_path / "scribble.gif") as second:
        line_with(second, "Loading scribble")
        _, stderr = second.communicate(timeout=100)
    assert second.returncode == 0, stderr
    with command(server.url, "pipelines") as listing:
        stdout, _ = listing.communicate(timeout=60)
    assert len([line for line in stdout.splitlines() if "ready" in line]) == 2, stdout


# -- Results that cannot be written -------------------------------------------------------------------------


def fetch_again(stderr: str, *more: str) -> None:
    """Run the command that the message shows."""
    shown = next(line for line in stderr.splitlines() if line.startswith("  filmstrip download output-"))
    result = CliRunner().invoke(cli.main, [*shlex.split(shown)[1:], *more])
    assert result.exit_code == 0, result.output


def test_a_disk_that_fills_up_while_the_file_is_written_loses_nothing(server, tmp_path):
    # As on a full disk, writes fail from some size on: more than what is tried at once, less than a video of noise.
    limit = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))"
    clip, out = tmp_path / "noise.mp4", tmp_path / "o'ut.mp4"
    write_video(clip, np.random.default_rng(1).integers(0, 256, (30, 64, 96, 3), np.uint8), 20)
    arguments = ["generate", "-p", "passthrough", "-v", clip, "-o", out, "--scale", 3]
    with command(server.url, *arguments, before=limit) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert "Error: " in stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == [clip], "no part of a file is left"
    fetch_again(stderr)
    info = probe(out)
    assert (info.height, info.width, float(info.fps), info.num_frames) == (192, 288, 20.0, 30)


def test_an_interrupt_while_the_file_is_written_loses_nothing(server, clip, tmp_path):
    out = tmp_path / "out-%03d.png"
    arguments = ["generate", "-p", "gray", "-v", clip, "--frames", 120, "--size", "512x512", "--scale", 4, "-o", out]
    with command(server.url, *arguments) as process:
        line_with(process, "chunk 10/10")
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob(".filmstrip-*/*.png")):
            assert time.monotonic() < deadline
            assert process.poll() is None, "the file was written before the test could interrupt it"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert list(tmp_path.iterdir()) == [clip]
    fetch_again(stderr, "-o", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_that_the_server_does_not_have_is_one_line(run, tmp_path):
    result = run("download", "output-" + "0" * 32, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# -- Seeds --------------------------------------------------------------------------------------------------


def test_a_random_seed_is_shown_and_makes_the_same_video_again(run, server, tmp_path):
    def frames(seed: int) -> tuple[str, list[bytes]]:
        result = run("generate", "a cat", "-p", "probe", "--frames", 3, "--seed", seed, "-o", tmp_path / "%d.png")
        assert result.exit_code == 0, result.output
        return result.stderr, [(tmp_path / f"{number}.png").read_bytes() for number in (1, 2, 3)]

    shown, first = frames(-1)
    seed = int(re.search(r"--seed (\d+)", shown)[1])
    assert frames(seed)[1] == first
    assert "Seed" not in frames(2**64 - 1)[0]


def test_unused_fields_are_reported(run, clip, tmp_path):
    result = run("generate", "-p", "gray", "-v", clip, "--seed", 3, "--noise-scale", 0.2, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 0, result.output
    assert "Note: gray does not use noise_scale, seed.\n" in result.stderr
