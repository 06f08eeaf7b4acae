"""What the command refuses and says without a server; on a real one: test_cli_live."""

import json
import signal
import threading

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from filmstrip import cli, console, mp4
from filmstrip.client import Client, ConnectionFailed, Progress
from filmstrip.console import GenerationProgress, Interrupt

NOWHERE = "http://127.0.0.1:9"


def run(*arguments: object):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    mp4.write(path, np.zeros((3, 64, 64, 3), np.uint8), 25)
    return path


@pytest.fixture
def answer(monkeypatch):
    """Let the command meet a server that answers every request by its path."""
    requests: list[httpx.Request] = []

    def install(**answers: httpx.Response) -> list[httpx.Request]:
        def handle(request: httpx.Request) -> httpx.Response:
            request.read()
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
    for command in ("generate", "pipelines", "status", "cancel"):
        assert command in shown
        assert "FILMSTRIP_SERVER" in run(command, "--help").output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-p", "gray", "--size", "320"], "320x576"),
        (["-p", "gray", "--size", "320x0"], "64 to 2048"),
        (["-p", "gray", "--size", "32x9999"], "64 to 2048"),
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
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_the_option(tmp_path, arguments, named):
    result = run("generate", "-o", tmp_path / "out.mp4", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_output_is_needed_and_so_is_its_folder(tmp_path):
    assert "--output" in run("generate", "-p", "gray").stderr
    result = run("generate", "-p", "gray", "-o", tmp_path / "missing" / "out.mp4")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["pipelines"],
        ["status"],
        ["cancel"],
        ["download", "output-1", "-o", "out.mp4"],
        ["generate", "-p", "gray", "-o", "out.mp4"],
    ],
)
def test_no_server_is_one_line_and_exit_code_3(tmp_path, monkeypatch, arguments):
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
    assert (result.exit_code, result.stderr) == (4, "Error: another generation runs; --wait waits until it is done\n")
    assert json.loads(requests[-1].content) == {"pipeline_id": expected, "prompt": "a red circle"}


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
    assert json.loads(requests[-1].content) == {"pipeline_id": "longlive", "prompt": "video"}
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


@pytest.mark.parametrize(("health", "exit_code"), [("healthy", 0), ("starting", 1), ("unavailable", 1)])
def test_status_is_an_exit_code(answer, health, exit_code):
    answer(
        health=httpx.Response(200 if exit_code == 0 else 503, json={"status": health}),
        status=httpx.Response(200, json={"status": "loaded", "pipeline_id": "gray"}),
    )
    result = run("status")
    assert (result.exit_code, result.output) == (exit_code, f"Server:   {health}\nPipeline: gray loaded\n")
    assert json.loads(run("status", "--json").output)["health"] == {"status": health}


def test_progress_is_a_line_a_chunk_where_there_is_no_terminal(capsys):
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
    with Interrupt(cancel, notes.append):
        signal.raise_signal(signal.SIGINT)
        assert asked.wait(5)
        assert "Ctrl-C again" in notes[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_cancel_that_does_not_reach_the_server_is_said():
    said = threading.Event()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if len(notes) == 2:
            said.set()

    def cancel() -> str:
        raise ConnectionFailed("the server is gone")

    with Interrupt(cancel, note):
        signal.raise_signal(signal.SIGINT)
        assert said.wait(5)
    assert "the server is gone" in notes[1]
