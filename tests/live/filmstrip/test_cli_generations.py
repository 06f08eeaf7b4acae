"""Commands for generations with an id on a real server: detached, followed, listed, cancelled, deleted, downloaded."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from filmstrip import cli
from filmstrip.client import Client
from filmstrip.video import count_frames, probe, read_frames, write_video
from filmstrip.wire import VIDEO_HEADER_BYTES, Frame
from tests.support import http
from tests.support.cutting_proxy import cutting_proxy
from tests.support.server import PROXIES, ROOT, Frontend
from tests.unit.filmstrip.video_samples import encode

Run = Callable[..., Result]


@pytest.fixture
def client(server: Frontend) -> Iterator[Client]:
    """A client of the shared server, with no generation before the test and none after it."""
    with Client(server.url) as client:

        def clear() -> None:
            for found in list(client.generations.list()):
                client.generations.delete(found.id)
            server.wait_idle(30)

        clear()
        yield client
        clear()


@pytest.fixture
def run(server: Frontend, client: Client) -> Run:
    """Run the command in this process."""

    def run(*arguments: object, url: str = server.url) -> Result:
        return CliRunner().invoke(cli.main, [str(each) for each in arguments], env={"FILMSTRIP_SERVER": url})

    return run


def process(url: str, *arguments: object) -> "subprocess.Popen[str]":
    """The command as a process of its own, which SIGINT interrupts even if the tests run in the background."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from filmstrip.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), "--server", url],
        cwd=ROOT,
        env=os.environ | PROXIES,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pixels(path: Path) -> Frame:
    """An image, [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image)


def documents(text: str) -> list[Any]:
    """JSON, one document a line."""
    return [json.loads(line) for line in text.splitlines()]


def test_a_detached_generation_is_followed_listed_downloaded_and_deleted(run: Run, tmp_path: Path):
    command = ["generate", "!sleep 0.2", "-p", "probe", "--frames", 33, "--seed", 5, "--detach", "--id", "my-cat"]
    detached = run(*command)
    assert (detached.exit_code, detached.stdout) == (0, "my-cat\n")
    assert "filmstrip attach my-cat" in detached.stderr
    assert run(*command).exit_code == 0  # the same generation
    taken = run("generate", "another", "-p", "probe", "--detach", "--id", "my-cat", "--json")
    assert (taken.exit_code, json.loads(taken.stderr)["error"]["code"]) == (1, "id_taken")

    followed = run("attach", "my-cat")
    assert (followed.exit_code, followed.stdout) == (0, "my-cat is complete: 33 frames, 96x64\n")
    assert "chunk 3/3: 12 frames" in followed.stderr
    events = documents(run("attach", "my-cat", "--json", "--after", 1).stdout)
    assert [(event["event"], event["id"]) for event in events] == [("progress", 2), ("progress", 3), ("complete", 4)]

    unnamed = run("generate", "a cat", "-p", "probe", "--frames", 9, "--detach", "--json")
    other = json.loads(unnamed.stdout)
    assert other["num_frames"] == 9
    assert unnamed.stderr == ""
    run("attach", other["id"])
    table = run("list").stdout
    assert re.search(r"my-cat\s+│ complete │ 33/33", table)
    assert table.index(other["id"]) < table.index("my-cat")
    listed = json.loads(run("list", "--state", "complete", "--limit", 1, "--json").stdout)
    assert [found["id"] for found in listed] == [other["id"]]
    assert json.loads(run("list", "--state", "failed", "--json").stdout) == []

    assert run("cancel", "my-cat").stdout == "my-cat has already ended.\n"
    assert run("delete", "my-cat").stdout == "my-cat is deleted.\n"
    for command in (["attach"], ["cancel"], ["delete"], ["download", "-o", tmp_path / "x.mp4"]):
        missing = run(*command, "my-cat", "--json")
        assert (missing.exit_code, json.loads(missing.stderr)["error"]["code"]) == (1, "not_found")
    assert list(tmp_path.iterdir()) == []


def test_every_format_is_downloaded(run: Run, client: Client, tmp_path: Path):
    client.generations.submit(pipeline_id="probe", prompt="x", num_frames=33, seed=5, id="g")
    frames = client.download(client.generations.wait("g").output_path)
    for name, options, shown in (
        ("a.mp4", [], "33 frames, 96x64, 16 fps"),
        ("a.webm", ["--scale", 2, "--fps", 10], "33 frames, 192x128, 10 fps"),
        ("a.gif", ["--fps", 10], "33 frames, 96x64, 10 fps"),
        ("a.mkv", ["--fps", 25], "33 frames, 96x64, 25 fps"),  # encoded here
        ("large.mp4", ["--scale", 10], "33 frames, 960x640, 16 fps"),  # likewise
    ):
        done = run("download", "g", "-o", tmp_path / name, *options)
        assert (done.exit_code, done.stdout) == (0, f"{tmp_path / name}: {shown}\n")
        assert count_frames(tmp_path / name) == 33
    assert run("download", "g", "-o", tmp_path / "sheet.png").exit_code == 0
    assert pixels(tmp_path / "sheet.png").shape[1] > 192
    assert run("download", "g", "-o", tmp_path / "%02d.png").exit_code == 0
    np.testing.assert_array_equal(pixels(tmp_path / "33.png"), frames[32])
    one = run("download", "g", "--frame", 9, "-o", tmp_path / "one.png", "--json")
    assert json.loads(one.stdout)["num_frames"] == 1
    np.testing.assert_array_equal(pixels(tmp_path / "one.png"), frames[9])
    assert run("download", "g", "--frame", 33, "-o", tmp_path / "one.png").exit_code == 1
    assert run("download", "g", "--frame", 1, "-o", tmp_path / "one.mp4").exit_code == 2


def test_what_has_not_ended_or_has_no_frames_is_not_downloaded(run: Run, tmp_path: Path):
    run("generate", "!sleep 60", "-p", "probe", "--frames", 9, "--detach", "--id", "runs")
    run("generate", "x", "-p", "probe", "--frames", 9, "--detach", "--id", "waits")
    early = run("download", "runs", "-o", tmp_path / "x.mp4")
    assert (early.exit_code, early.stderr) == (
        1,
        "Error: runs has not ended: it is at chunk 0 of 1; wait with: filmstrip attach runs\n",
    )
    assert "place 1" in run("list").stdout
    assert run("cancel", "waits").stdout == "waits is cancelled before it started.\n"
    assert run("attach", "waits").exit_code == 130
    assert "has no frames" in run("download", "waits", "-o", tmp_path / "x.mp4").stderr
    status = json.loads(run("cancel", "--json").stdout)  # the only one that runs
    assert status == {"id": "runs", "status": "cancelling"}
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_on_attach_leaves_the_generation_running(run: Run, client: Client, server: Frontend):
    client.generations.submit(pipeline_id="probe", prompt="!sleep 0.5", num_frames=3000, id="long")
    with process(server.url, "attach", "long") as attached:
        assert attached.stderr is not None
        assert "chunk 1/" in attached.stderr.readline()
        os.kill(attached.pid, signal.SIGINT)
        _, stderr = attached.communicate(timeout=60)
    assert attached.returncode == 130
    (shown,) = re.findall(r"Follow it again with: (.*)", stderr)
    assert client.generations.get("long").state == "running"
    words = shlex.split(shown)
    assert words[:4] == ["filmstrip", "attach", "long", "--after"]
    client.generations.cancel("long")
    again = run(*words[1:], "--json")
    events = documents(again.stdout)
    assert again.exit_code == 130
    assert events[-1]["event"] == "cancelled"
    assert events[0]["id"] == int(words[4]) + 1


def test_ctrl_c_on_generate_cancels_and_a_second_one_deletes(client: Client, server: Frontend, tmp_path: Path):
    arguments = ["generate", "x", "-p", "probe", "--frames", 3000, "--id", "mine", "-o", tmp_path / "x.mp4"]
    with process(server.url, *arguments, "--chunk-prompt", "1: !sleep 0.5") as generating:
        assert generating.stderr is not None
        assert "chunk 1/" in generating.stderr.readline()
        os.kill(generating.pid, signal.SIGINT)
        _, stderr = generating.communicate(timeout=60)
    assert generating.returncode == 130
    found = client.generations.get("mine")
    assert found.state == "cancelled"
    assert f"has the {found.frames} frames generated so far" in stderr
    assert count_frames(tmp_path / "x.mp4") == found.frames
    client.generations.delete("mine")

    with process(server.url, *arguments, "--chunk-prompt", "1: !sleep 30") as generating:
        assert generating.stderr is not None
        assert "chunk 1/" in generating.stderr.readline()
        os.kill(generating.pid, signal.SIGINT)
        while "Ctrl-C again" not in (line := generating.stderr.readline()):
            assert line, "the command ended after the first interrupt"
        os.kill(generating.pid, signal.SIGINT)
        generating.communicate(timeout=60)
    assert generating.returncode == 130
    assert list(client.generations.list()) == []


def test_a_command_whose_stream_breaks_goes_on(run: Run, server: Frontend, tmp_path: Path):
    with cutting_proxy(server.url, 20) as proxy:
        made = run("generate", "x", "-p", "probe", "--frames", 288, "-o", tmp_path / "x.mp4", url=proxy.url)
        assert made.exit_code == 0, made.output
        assert proxy.num_cut == 20
    chunks = re.findall(r"chunk (\d+)/25", made.stderr)
    assert chunks == [str(number) for number in range(1, 26)]
    assert count_frames(tmp_path / "x.mp4") == 288


def test_a_busy_server_is_an_exit_code_unless_the_command_may_wait(
    run: Run, client: Client, server: Frontend, tmp_path: Path
):
    client.generations.submit(pipeline_id="probe", prompt="!sleep 60", num_frames=9, id="first")
    command = ["generate", "x", "-p", "probe", "--frames", 9, "-o", tmp_path / "x.mp4"]
    refused = run(*command, "--json")
    assert refused.exit_code == 4
    assert json.loads(refused.stderr)["error"]["code"] == "busy"
    assert [found.id for found in client.generations.list()] == ["first"]
    with process(server.url, *command, "--wait") as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "waiting: place 1 in the queue\n"
        client.generations.delete("first")
        _, stderr = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, stderr


def test_the_result_as_json(run: Run, tmp_path: Path):
    done = run("generate", "x", "-p", "probe", "--frames", 9, "--seed", -1, "-o", tmp_path / "x.mp4", "--json")
    result = json.loads(done.stdout)
    assert done.stderr == ""
    assert {"state": "complete", "num_frames": 9}.items() <= result.items()
    assert result["file"]["path"] == str(tmp_path / "x.mp4")
    again = run("generate", "x", "-p", "probe", "--seed", result["seed"], "--detach", "--json")
    assert json.loads(again.stdout)["seed"] == result["seed"]
    for arguments, exit_code, code in (
        (["generate", "-p", "probe", "--json"], 2, "usage"),
        (["generate", "-p", "probe", "--json", "--frames", 0, "-o", tmp_path / "x.mp4"], 2, "usage"),
        (["generate", "-p", "missing", "--json", "-o", tmp_path / "x.mp4"], 1, "unknown_pipeline"),
        (["generate", "-p", "probe", "--json", "--detach", "-o", tmp_path / "x.mp4"], 2, "usage"),
    ):
        refused = run(*arguments)
        assert (refused.exit_code, json.loads(refused.stderr)["error"]["code"]) == (exit_code, code)


# -- Input videos -------------------------------------------------------------------------------------------------


def uploaded_bytes(server: Frontend) -> float:
    """Bytes that uploads have added to the server's store, or to its spool if they are files to decode."""
    lines = http.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("filmstrip_uploaded_bytes_total"))


@pytest.mark.parametrize(
    ("name", "size"), [("x.mp4", None), ("x.webm", "80x96"), ("x.mkv", "300x200"), ("x.avi", "80x96"), ("x.gif", None)]
)
def test_an_input_video_has_the_same_frames_whoever_decodes_it(
    run: Run, server: Frontend, tmp_path: Path, name: str, size: str | None
):
    """MP4, WebM and MKV files are sent as they are; the server does not decode AVI and GIF."""
    rows, columns = np.mgrid[:64, :96]
    waves = [np.sin((rows + 2 * columns + 3 * frame) / 9) for frame in range(40)]
    video = np.repeat(((np.stack(waves) + 1) * 127).astype(np.uint8)[..., None], 3, axis=-1)
    path = tmp_path / name
    if path.suffix == ".avi":
        encode(path, video)
    else:
        write_video(path, video, 20)
    before = uploaded_bytes(server)
    options = ["--size", size] if size else []
    out = ["--frames", 33, "-o", tmp_path / "out-%02d.png"]
    made = run("generate", "-p", "passthrough", "--video", path, *options, *out)
    assert made.exit_code == 0, made.output
    sent = uploaded_bytes(server) - before
    width, height = map(int, size.split("x")) if size else (96, 64)
    frames = np.stack([pixels(tmp_path / f"out-{number:02d}.png") for number in range(1, 34)])
    np.testing.assert_array_equal(frames, np.stack(list(read_frames(path, (height, width), 33))))
    is_sent_whole = path.suffix in (".mp4", ".webm", ".mkv")
    assert sent == (path.stat().st_size if is_sent_whole else VIDEO_HEADER_BYTES + frames.nbytes)


def test_frames_that_are_smaller_than_their_file_are_sent_themselves(run: Run, server: Frontend, tmp_path: Path):
    path = tmp_path / "noise.mp4"
    write_video(path, np.random.default_rng(1).integers(0, 256, (40, 128, 128, 3), np.uint8), 20)
    before = uploaded_bytes(server)
    arguments = ["--frames", 2, "--size", "64x64", "-o", tmp_path / "out.mp4"]
    assert run("generate", "-p", "passthrough", "--video", path, *arguments).exit_code == 0
    assert uploaded_bytes(server) - before == VIDEO_HEADER_BYTES + 2 * 64 * 64 * 3


def test_the_sound_of_a_file_that_the_server_decodes_is_kept(run: Run, tmp_path: Path):
    clip = ROOT / "demo" / "big_buck_bunny.mp4"
    made = run("generate", "-p", "gray", "--video", clip, "-o", tmp_path / "gray.mp4")
    assert made.exit_code == 0, made.output
    info = probe(clip)
    with av.open(tmp_path / "gray.mp4") as container, av.open(clip) as source:
        assert len(container.streams.audio) == len(source.streams.audio)
    assert (count_frames(tmp_path / "gray.mp4"), probe(tmp_path / "gray.mp4").fps) == (count_frames(clip), info.fps)
