"""What the command refuses and says without a server; on a real one: test_cli_live."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from filmstrip import cli, console, following, waiting
from filmstrip.client import Client, ConnectionFailed, Progress
from filmstrip.console import CancelOnInterrupt, GenerationProgress
from filmstrip.errors import ERRORS, BadHeader
from filmstrip.video import count_frames, write_video
from filmstrip.video.write import Output
from filmstrip.wire import VideoShape, pack_video_header
from tests.support.fake_server import NO_GENERATIONS, Reply, fake_server

NOWHERE = "http://127.0.0.1:9"


def run(*arguments: object):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, np.zeros((3, 64, 64, 3), np.uint8), 25)
    return path


@pytest.fixture
def answer(monkeypatch):
    """Let the command meet an older server, without generations with an id, that answers every request by its path."""
    requests: list[httpx.Request] = []

    def install(**answers: httpx.Response) -> list[httpx.Request]:
        def handle(request: httpx.Request) -> httpx.Response:
            request.read()
            if request.url.path.startswith("/api/v1/generations"):
                return httpx.Response(404, content=NO_GENERATIONS)
            if request.url.path.endswith("/upload") and "X-Video-Frames" not in request.headers:
                error = BadHeader("X-Video-Frames: missing", "X-Video-Frames")
                return httpx.Response(error.status, json=error.body())
            requests.append(request)
            return answers[request.url.path.rpartition("/")[2]]

        monkeypatch.setattr(
            console,
            "Client",
            lambda server, token, timeout_s, **_: Client(server, token, timeout_s, httpx.MockTransport(handle)),
        )
        return requests

    return install


def test_help_teaches_with_examples():
    shown = run("--help").output
    assert "filmstrip generate --pipeline scribble" in shown
    for command in ("generate", "attach", "list", "download", "cancel", "delete", "pipelines", "status"):
        assert command in shown
        assert "FILMSTRIP_SERVER" in run(command, "--help").output


def test_wrong_usage_is_exit_code_2_and_names_the_option(tmp_path, subtests: pytest.Subtests):
    cases = [
        (["-p", "gray", "--size", "320"], "576x320"),
        (["-p", "gray", "--size", "320x0"], "between 64 and 2048"),
        (["-p", "gray", "--size", "32x9999"], "between 64 and 2048"),
        (["-p", "gray", "--frames", "0"], "--frames"),
        (["-p", "gray", "--frames", "10001"], "--frames"),
        (["-p", "gray", "--noise-scale", "1.5"], "--noise-scale"),
        (["-p", "gray", "--seed", "-2"], "--seed"),
        (["-p", "gray", "--seed", 2**64], "--seed"),
        (["-p", "gray", "--noise-scale", "nan"], "--noise-scale"),
        (["-p", "gray", "--fps", "inf"], "--fps"),
        (["-p", "gray", "--scale", "0"], "--scale"),
        (["-p", "gray", "--server", "127.0.0.1:8000"], "write http://127.0.0.1:8000"),
        (["-p", "gray", "--server", "localhost:8000"], "write http://localhost:8000"),
        (["-p", "gray", "--cacert", "missing.pem"], "--cacert"),
        (["-p", "gray", "--cacert", __file__], "no certificate"),
        (["-p", "gray", "--token", "k\u00e9y"], "the token"),
        (["a cat \udcff"], "UTF-8"),
        (["-p", "gray", "--chunk-prompt", "1: \udcff"], "UTF-8"),
        (["-p", "gray", "--fps", "0"], "--fps"),
        (["-p", "gray", "--chunk-prompt", "a dog"], "4: a dog"),
        (["-p", "gray", "--chunk-prompt", "-1: a dog"], "4: a dog"),
        (["-p", "gray", "--chunk-prompt", "4:"], "4: a dog"),
        (["-p", "gray", "--chunk-prompt", "4: a dog", "--chunk-prompt", "4: a cat"], "two prompts"),
        (["-p", "gray", "--lora", "ghibli"], "ghibli=0.8"),
        (["-p", "gray", "--lora", "=1"], "ghibli=0.8"),
        (["-p", "gray", "--lora", "ghibli=nan"], "ghibli=0.8"),
        (["-p", "gray", "--video", "missing.mp4"], "missing.mp4"),
        (["-p", "gray", "--server", "nowhere"], "--server"),
    ]
    for arguments, named in cases:
        with subtests.test(arguments=arguments):
            result = run("generate", "-o", tmp_path / "out.mp4", *arguments)
            assert result.exit_code == 2
            assert named in result.stderr
            assert list(tmp_path.iterdir()) == []


def test_the_output_is_needed_and_so_is_its_folder(tmp_path):
    assert "--output" in run("generate", "-p", "gray").stderr
    result = run("generate", "-p", "gray", "-o", tmp_path / "missing" / "out.mp4")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_no_server_is_one_line_and_exit_code_3(tmp_path, monkeypatch, subtests: pytest.Subtests):
    cases = [
        ["pipelines"],
        ["status"],
        ["cancel"],
        ["list"],
        ["attach", "my-cat"],
        ["delete", "my-cat"],
        ["download", "my-cat", "-o", "out.mp4"],
        ["generate", "-p", "gray", "--detach"],
        ["download", "output-1", "-o", "out.mp4"],
        ["generate", "-p", "gray", "-o", "out.mp4"],
    ]
    for arguments in cases:
        with subtests.test(arguments=arguments):
            monkeypatch.chdir(tmp_path)
            result = run(*arguments, "--server", NOWHERE)
            assert result.exit_code == 3
            assert list(tmp_path.iterdir()) == []
            assert result.stderr.startswith(f"Error: {NOWHERE}: ")
            assert result.stderr.count("\n") == 1
            assert result.stdout == ""


def test_a_video_that_cannot_be_read_is_one_line(tmp_path, answer):
    answer(pipelines=httpx.Response(200, json={"pipelines": [{"id": "gray"}]}))
    (tmp_path / "in.mp4").write_text("not a video")
    result = run("generate", "-p", "gray", "--video", tmp_path / "in.mp4", "-o", tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "in.mp4" in result.stderr


def test_a_pipeline_that_needs_a_prompt_says_so(tmp_path, answer):
    answer(pipelines=httpx.Response(200, json={"pipelines": [{"id": "longlive", "features": {"prompts": True}}]}))
    result = run("generate", "-p", "longlive", "-o", tmp_path / "out.mp4")
    assert result.exit_code == 2
    assert "needs a PROMPT" in result.stderr


@pytest.mark.parametrize(("told", "expected"), [(None, "longlive-small"), ("longlive", "longlive")])
def test_the_small_model_is_the_pipeline_unless_another_is_named(tmp_path, answer, monkeypatch, told, expected):
    known = [{"id": name, "features": {"prompts": True}} for name in ("longlive-small", "longlive")]
    refusal = {"error": {"code": "busy", "message": "another generation runs", "field": None}, "detail": ""}
    requests = answer(
        pipelines=httpx.Response(200, json={"pipelines": known}), generate=httpx.Response(409, json=refusal)
    )
    if told is not None:
        monkeypatch.setenv("FILMSTRIP_PIPELINE", told)
    result = run("generate", "a red circle", "-o", tmp_path / "out.mp4")
    assert (result.exit_code, result.stderr) == (
        4,
        "Error: another generation runs; use --wait to wait until it is free\n",
    )
    assert json.loads(requests[-1].content) == {"pipeline_id": expected, "prompt": "a red circle"}


def test_a_size_that_is_only_known_turned_round_is_refused(tmp_path, answer):
    listed = {"pipelines": [{"id": "longlive", "chunk_size": 12, "sizes": [[320, 576], [480, 832]]}]}
    requests = answer(pipelines=httpx.Response(200, json=listed))
    result = run("generate", "a cat", "-p", "longlive", "--size", "320x576", "-o", tmp_path / "out.mp4")
    assert result.exit_code == 2
    assert "--size" in result.stderr
    assert "did you mean 576x320? sizes are WIDTHxHEIGHT since 0.1.0" in " ".join(result.stderr.split())
    assert [request.url.path for request in requests] == ["/api/v1/pipelines"]


def test_a_refused_field_is_named_and_the_request_is_what_was_asked_for(tmp_path, clip, answer):
    refusal = {"error": {"code": "invalid_field", "message": "no such LoRA", "field": "lora_scales"}, "detail": ""}
    requests = answer(
        pipelines=httpx.Response(200, json={"pipelines": [{"id": "longlive", "height": 128, "width": 96}]}),
        upload=httpx.Response(200, json={"input_path": "in", "num_frames": 3, "shape": [3, 128, 96, 3]}),
        generate=httpx.Response(422, json=refusal),
    )
    options = ["--seed", 7, "--lora", "a=b=0.5", "--chunk-prompt", "1: a: b", "--token", "secret"]
    result = run("generate", "a cat", "-p", "longlive", "--video", clip, *options, "-o", tmp_path / "out.mp4")

    assert (result.exit_code, result.stderr) == (1, "Error: lora_scales: no such LoRA\n")
    assert [requests[1].headers[f"X-Video-{name}"] for name in ("Frames", "Height", "Width")] == ["3", "128", "96"]
    assert len(requests[1].content) == 3 * 128 * 96 * 3
    assert requests[2].headers["Authorization"] == "Bearer secret"
    assert json.loads(requests[2].content) == {
        "pipeline_id": "longlive",
        "prompt": "a cat",
        "num_frames": 3,
        "seed": 7,
        "lora_scales": {"a=b": 0.5},
        "chunk_specs": [{"chunk": 1, "text": "a: b"}],
        "input_path": "in",
    }


def test_a_generation_that_fails_under_way_leaves_no_file(tmp_path, answer):
    failure = 'event: error\ndata: {"error": "the model broke", "code": "model_error"}\n\n'
    requests = answer(
        pipelines=httpx.Response(200, json={"pipelines": [{"id": "longlive"}]}),
        generate=httpx.Response(200, text=failure, headers={"Content-Type": "text/event-stream"}),
    )
    result = run("generate", "-p", "longlive", "-o", tmp_path / "out.mp4")
    assert (result.exit_code, result.stderr) == (1, "Error: the model broke\n")
    assert json.loads(requests[-1].content) == {"pipeline_id": "longlive", "prompt": ""}
    assert list(tmp_path.iterdir()) == []


def test_a_cancel_before_the_first_frame_writes_nothing(tmp_path, answer):
    cancelled = 'event: cancelled\ndata: {"chunk": 0, "total_chunks": 4, "frames_completed": 0}\n\n'
    answer(
        pipelines=httpx.Response(200, json={"pipelines": [{"id": "longlive"}]}),
        generate=httpx.Response(200, text=cancelled, headers={"Content-Type": "text/event-stream"}),
    )
    result = run("generate", "-p", "longlive", "-o", tmp_path / "out.mp4")
    assert (result.exit_code, result.stderr) == (130, "Cancelled before the first frame: nothing was written.\n")
    assert list(tmp_path.iterdir()) == []


COMPLETE = (
    'event: complete\ndata: {"output_path": "output-1", "video_shape": [3, 64, 64, 3], "num_frames": 3,'
    ' "num_chunks": 1, "chunk_size": 12, "seed": 77, "unused": ["noise_scale"]}\n\n'
)
VIDEO_BYTES = pack_video_header(VideoShape(3, 64, 64, 3)) + bytes(3 * 64 * 64 * 3)


def made(download: bytes) -> dict[str, httpx.Response]:
    """The answers of a server that makes three frames."""
    return {
        "pipelines": httpx.Response(200, json={"pipelines": [{"id": "gray", "height": 64, "width": 64}]}),
        "generate": httpx.Response(200, text=COMPLETE, headers={"Content-Type": "text/event-stream"}),
        "download": httpx.Response(200, content=download, headers={"Content-Type": "application/octet-stream"}),
        "upload": httpx.Response(200, json={"input_path": "in", "num_frames": 3, "shape": [3, 64, 64, 3]}),
    }


def test_a_download_that_breaks_off_says_how_to_fetch_the_video_and_that_works(tmp_path, clip, answer):
    answer(**made(VIDEO_BYTES[:-1]))
    out = tmp_path / "it's out.mp4"
    result = run("generate", "-p", "gray", "-v", clip, "-o", out, "--scale", 2, "--server", NOWHERE, "--token", "k")
    assert result.exit_code == 1
    assert "ended after 2 of 3 frames" in result.stderr
    assert "not lost" in result.stderr
    assert not out.exists()
    command = next(line for line in result.stderr.splitlines() if line.startswith("  filmstrip download"))
    words = shlex.split(command)
    assert words[1:3] == ["download", "output-1"]
    assert "k" not in words, "a key is not printed"
    assert words[-2:] == ["--server", NOWHERE]

    answer(**made(VIDEO_BYTES))
    fetched = run(*words[1:])
    assert (fetched.exit_code, fetched.stdout) == (0, f"{out}: 3 frames, 128x128, 25 fps\n")
    assert count_frames(out) == 3


@pytest.mark.parametrize("fault", ["folder removed", "interrupted"])
def test_a_result_that_cannot_be_written_says_how_to_fetch_it(tmp_path, answer, fault, monkeypatch):
    answer(**made(VIDEO_BYTES))
    folder = tmp_path / "results"
    folder.mkdir()

    def fail(*_: object, **__: object) -> None:
        if fault == "interrupted":
            raise KeyboardInterrupt
        shutil.rmtree(folder)
        write(*_, **__)

    write = Output.write
    monkeypatch.setattr(Output, "write", fail)
    result = run("generate", "-p", "gray", "-o", folder / "out.mp4")
    assert result.exit_code == (130 if fault == "interrupted" else 1)
    assert f"filmstrip download output-1 -o {folder / 'out.mp4'} --fps 16\n" in result.stderr


def test_the_seed_used_and_unused_fields_are_shown(tmp_path, answer):
    requests = answer(**made(VIDEO_BYTES))
    result = run("generate", "-p", "gray", "--seed", -1, "--noise-scale", 0.5, "-o", tmp_path / "out.gif")
    assert result.exit_code == 0, result.stderr
    assert json.loads(requests[1].content)["seed"] == -1
    assert "Seed: 77 (--seed 77 generates the same video again)\n" in result.stderr
    assert "Note: gray does not use noise_scale.\n" in result.stderr
    answer(**made(VIDEO_BYTES))
    assert "Seed" not in run("generate", "-p", "gray", "--seed", 2**64 - 1, "-o", tmp_path / "out.gif").stderr


def test_a_scale_that_no_player_shows_is_refused_before_the_upload(tmp_path, clip, answer):
    requests = answer(**made(VIDEO_BYTES))
    result = run("generate", "-p", "gray", "-v", clip, "--size", "1024x64", "--scale", 16, "-o", tmp_path / "out.mp4")
    assert (result.exit_code, len(requests)) == (2, 1)
    assert "8192 pixels" in result.stderr


@pytest.mark.parametrize("name", ["out.avi", "out", "folder/out.mp4", "pipe.mp4", "some.mp4", "loop.mp4"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_sent(tmp_path, answer, name):
    requests = answer()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "some.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    for command in (["generate", "-p", "gray"], ["download", "output-1"]):
        result = run(*command, "-o", tmp_path / name)
        assert result.exit_code == 2
        assert "--output" in result.stderr
    assert requests == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop.mp4", "pipe.mp4", "some.mp4"]


def test_where_a_key_is_missing_the_options_are_named(answer, monkeypatch):
    refusal = {"error": {"code": "unauthorized", "message": "missing or invalid API key"}, "detail": ""}
    requests = answer(pipelines=httpx.Response(401, json=refusal))
    monkeypatch.delenv("FILMSTRIP_SERVER", raising=False)
    monkeypatch.delenv("FILMSTRIP_TOKEN", raising=False)
    result = run("pipelines")
    assert result.exit_code == 1
    assert "missing or invalid API key. Give the key with --token or in FILMSTRIP_TOKEN.\n" in result.stderr
    assert "Check the key" in run("pipelines", "--token", "wrong").stderr

    monkeypatch.setenv("FILMSTRIP_TOKEN", "secret")
    assert "FILMSTRIP_TOKEN was not sent" in run("pipelines", "--server", "http://elsewhere.test").stderr
    assert "Authorization" not in requests[-1].headers
    assert "Check the key" in run("pipelines").stderr
    assert requests[-1].headers["Authorization"] == "Bearer secret"


def refusing(code: str, **headers: str) -> Reply:
    error = ERRORS[code]("not now")
    return Reply(error.status, json.dumps(error.body()).encode(), headers)


def test_waiting_outlasts_a_server_that_starts_and_one_that_is_busy(tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(waiting.time, "sleep", pauses.append)
    listed = Reply(200, b'{"pipelines": [{"id": "gray"}]}')
    stream = Reply(200, COMPLETE.encode(), {"Content-Type": "text/event-stream"})
    video = Reply(200, VIDEO_BYTES, {"Content-Type": "application/octet-stream"})
    starting = refusing("triton_unavailable")
    busy = [refusing("busy", **{"Retry-After": "7"}), refusing("busy", **{"Retry-After": "100000"}), refusing("busy")]
    health = Reply(503, b'{"status": "starting"}')
    command = ["generate", "-p", "gray", "-o", tmp_path / "out.gif", "--server"]
    with fake_server(starting, starting, listed, *busy, stream, video, health=health) as (url, requests):
        result = run(*command, url, "--wait")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("The server is starting; waiting. Press Ctrl-C to stop waiting.\n") == 1
    assert (
        result.stderr.count("The server is busy with another generation; waiting. Press Ctrl-C to stop waiting.\n") == 1
    )
    assert pauses == [1, 1, 7, waiting.LONGEST_PAUSE_S, 1]
    assert [request for request in requests if "generate" in request][-1].startswith("GET /api/v1/generate/download")

    with fake_server(starting, health=health) as (url, requests):
        result = run(*command, url)
    assert (result.exit_code, len(requests)) == (1, 1)
    assert "use --wait" in result.stderr
    with fake_server(starting, health=Reply(503, b'{"status": "unavailable"}')) as (url, _):
        assert run(*command, url, "--wait").exit_code == 1, "waiting would not help"
    with fake_server(refusing("storage_full"), health=health) as (url, _):
        assert run(*command, url, "--wait").exit_code == 1


PIPELINES = [
    {"id": "good", "modes": ["text"], "chunk_size": 12, "features": {}, "loaded": True, "state": "ready"},
    *(
        {"id": name, "modes": None, "chunk_size": None, "features": None, "loaded": False, "state": name, "reason": why}
        for name, why in (("failed", "an engine is damaged"), ("unloaded", None), ("loading", None))
    ),
]


def test_pipelines_are_listed_with_their_state_and_the_reason(answer):
    answer(pipelines=httpx.Response(200, json={"pipelines": PIPELINES}))
    shown = run("pipelines").output
    for pipeline in PIPELINES:
        assert pipeline["state"] in shown
    assert "failed failed: an engine is damaged\n" in shown
    assert "None" not in shown


def test_a_failed_pipeline_says_why(tmp_path, answer):
    requests = answer(pipelines=httpx.Response(200, json={"pipelines": PIPELINES}))
    result = run("generate", "-p", "failed", "-o", tmp_path / "out.mp4")
    assert (result.exit_code, result.stderr) == (1, "Error: failed cannot run: an engine is damaged\n")
    assert len(requests) == 1, "it is not loaded: that may take minutes, and the server's other models with it"


@pytest.mark.parametrize(("health", "exit_code"), [("healthy", 0), ("starting", 1), ("unavailable", 1)])
def test_status_is_an_exit_code(answer, health, exit_code):
    answer(
        health=httpx.Response(200 if exit_code == 0 else 503, json={"status": health}),
        status=httpx.Response(200, json={"status": "loaded", "pipeline_id": "gray"}),
    )
    result = run("status")
    assert (result.exit_code, result.output) == (exit_code, f"Server:    {health}\nLast load: gray loaded\n")
    assert json.loads(run("status", "--json").output)["health"] == {"status": health}


def test_progress_without_a_terminal_is_one_line_per_chunk(capsys):
    with GenerationProgress(Console(stderr=True)) as shown:
        shown.update(Progress(2, 5, 12, 0.5, 24.0))
    assert capsys.readouterr().err == "chunk 2/5: 12 frames, 24.0 fps\n"


def test_progress_is_a_bar_on_a_terminal(capsys):
    with GenerationProgress(Console(stderr=True, force_terminal=True, width=100)) as shown:
        shown.update(Progress(2, 5, 12, 0.5, 24.0))
    shown_text = capsys.readouterr().err
    assert "2/5" in shown_text
    assert "24.0 fps" in shown_text


def test_the_first_interrupt_asks_the_server_and_the_second_leaves():
    asked = threading.Event()
    notes: list[str] = []

    def cancel() -> str:
        asked.set()
        return "cancelling"

    before = signal.getsignal(signal.SIGINT)
    with CancelOnInterrupt(cancel, notes.append):
        signal.raise_signal(signal.SIGINT)
        assert asked.wait(5)
        assert "Ctrl-C again" in notes[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_cancel_that_does_not_reach_the_server_is_reported():
    said = threading.Event()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if len(notes) == 2:
            said.set()

    def cancel() -> str:
        raise ConnectionFailed("the server is gone")

    with CancelOnInterrupt(cancel, note):
        signal.raise_signal(signal.SIGINT)
        assert said.wait(5)
    assert "the server is gone" in notes[1]


def test_pipelines_are_shown_by_their_whole_names(answer):
    long = "a-very-long-pipeline-name-" * 8 + "end"
    names = ["[bold]", "[/x]", "esc\x1b[31m", long]
    pipelines = [{"id": name, "features": {"loras": ["[b]"]}, "reason": "none"} for name in names]
    answer(pipelines=httpx.Response(200, json={"pipelines": pipelines}))
    result = run("pipelines")
    assert result.exit_code == 0
    table, _, _ = result.stdout.partition("\n[bold] ")
    assert all(name in table for name in ("[bold]", "[/x]", "lora [b]", long))
    assert "\x1b" not in table


def test_an_output_that_may_be_written_but_not_read_is_taken(tmp_path, monkeypatch, answer):
    path = tmp_path / "out.mp4"
    path.touch()
    real = os.access
    monkeypatch.setattr(os, "access", lambda name, mode, **more: mode != os.R_OK and real(name, mode, **more))
    answer(pipelines=httpx.Response(200, json={"pipelines": [{"id": "longlive", "features": {"prompts": True}}]}))
    assert "needs a PROMPT" in run("generate", "-p", "longlive", "-o", path).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", ""], "the name is empty"),
        (["-o", "out.mp4", "--server", "http://127.0.0.1:99999"], "a port must be 1 to 65535"),
        (["-o", "out.mp4", "--server", "http://127.0.0.1:0"], "a port must be 1 to 65535"),
        (["-o", "out.mp4", "--server", "http://me:secret@127.0.0.1:9", "--token", "key"], "has a user"),
    ],
)
def test_names_ports_and_users_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = run("generate", "-p", "gray", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "secret" not in result.stderr


def test_an_input_that_is_missing_names_the_option(tmp_path, answer):
    error = {
        "error": {
            "code": "invalid_field",
            "message": "input_path: missing, gray needs an input video",
            "field": "input_path",
        }
    }
    answer(
        pipelines=httpx.Response(200, json={"pipelines": [{"id": "gray", "state": "ready"}]}),
        generate=httpx.Response(422, json=error),
    )
    assert "use --video FILE" in run("generate", "-p", "gray", "-o", tmp_path / "out.mp4").stderr


def test_a_generation_that_cannot_be_followed_any_more_can_be_attached_to_again(monkeypatch):
    monkeypatch.setattr(following, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(following, "_LONGEST_PAUSE_S", 0.001)
    progress = b'id: 7\nevent: progress\ndata: {"chunk": 7, "total_chunks": 9, "frames": 3, "latency": 1, "fps": 3}\n\n'
    broken = Reply(200, progress, {"Content-Type": "text/event-stream"})
    with fake_server(broken, refusing("shutting_down")) as (url, requests):
        result = run("attach", "my-cat", "--after", 6, "--server", url)
    assert result.exit_code == 3
    assert result.stderr.startswith("chunk 7/9: 3 frames, 3.0 fps\nError: lost the connection to generation my-cat")
    assert result.stderr.endswith("follow it again with: filmstrip attach my-cat --after 7\n")
    assert requests == ["GET /api/v1/generations/my-cat/events"] * (1 + following.MAX_RECONNECTS)


def test_what_an_older_server_does_not_have_is_named(tmp_path, answer):
    answer(**made(VIDEO_BYTES), cancel=httpx.Response(200, json={"status": "idle"}))
    for more in (["--detach"], ["--id", "my-cat", "-o", tmp_path / "x.mp4"]):
        result = run("generate", "-p", "gray", *more)
        assert result.exit_code == 1
        assert "it may be older than this client" in result.stderr
    assert run("cancel").stdout == "Nothing is running.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("output", ["out.mp4", "out-%d.png"])
def test_a_signal_leaves_no_part_file(tmp_path, name, output):
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-m", "filmstrip.cli", "generate", "-p", "gray", "-o", str(tmp_path / output)]
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen([*command, "--server", url], stderr=subprocess.PIPE) as process:
            connection, _ = server.accept()  # it waits for the answer to its first request
            with connection:
                assert connection.recv(1)
                assert any(entry.name.endswith(".part") for entry in tmp_path.iterdir())
                process.send_signal(getattr(signal, name))
                process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.exit_on_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_waiting_includes_a_server_that_does_not_listen_yet(tmp_path, monkeypatch):
    moments = iter(range(0, 1000, 20))
    monkeypatch.setattr(waiting.time, "monotonic", lambda: float(next(moments)))
    monkeypatch.setattr(waiting.time, "sleep", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    result = run("generate", "-p", "gray", "--wait", "-o", tmp_path / "out.mp4", "--server", url)
    assert result.exit_code == 3
    assert "The server refuses connections; it may be starting; waiting." in result.stderr
    assert result.stderr.endswith("is the server running?\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_and_values_complete(shell: str):
    """Each shell's script calls the command, and the command knows what may follow."""

    def complete(**variables: str) -> str:
        return CliRunner().invoke(cli.main, env=variables, prog_name="filmstrip").stdout

    assert f"_FILMSTRIP_COMPLETE={shell}_complete" in complete(_FILMSTRIP_COMPLETE=f"{shell}_source")
    for words, word, expected in (
        ("filmstrip ", "", "attach"),
        ("filmstrip generate --det", "--det", "--detach"),
        ("filmstrip list --state ", "", "cancelled"),
    ):
        index = str(len(words.split()) - bool(word))
        shown = complete(
            _FILMSTRIP_COMPLETE=f"{shell}_complete", COMP_WORDS=words, COMP_CWORD=word if shell == "fish" else index
        )
        assert expected in shown
