"""The command against a transport that answers as the server does, with true videos or with faults."""

import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.client import Client
from filmstrip.connection_settings import TIMEOUT_S
from filmstrip.wire import VideoShape, pack_video_header
from frontend.schema import GenerateRequest
from frontend.schema import parse as parse_request
from research.condition_score import score_conditions
from research.evaluation import Measured, Number
from research.measures import ALL, WHOLE
from research.score import Served, UnfitVideo, score
from tests.support.toyworld.grammar import ATTRIBUTES, caption, parse
from tests.support.toyworld.videos import SIDE, chunk_lengths, render

QUICK = ["--prompts", "1", "--chunks", "2", "--switches", "1", "--long", "1", "--long-chunks", "5"]


class Server:
    """Draws what its requests ask for, backwards if told to; what it has been asked for stays in `requests`."""

    def __init__(self, last_event: str = "complete", num_missing: int = 0, *, backwards: bool = False) -> None:
        self.last_event = last_event
        self.num_missing = num_missing
        self.step = -1 if backwards else 1
        self.requests: list[GenerateRequest] = []
        self._video = b""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        match request.url.path.removeprefix("/api/v1/"):
            case "pipelines":
                steps = {"text": [1000, 937.5, 833.3, 625]}
                return httpx.Response(
                    200, json={"pipelines": [{"id": "longlive-small", "defaults": {"denoising_steps": steps}}]}
                )
            case "generate":
                return self._generate(parse_request(GenerateRequest, request.read()))
            case _:
                return httpx.Response(200, content=self._video, headers={"Content-Type": "application/octet-stream"})

    def _generate(self, request: GenerateRequest) -> httpx.Response:
        self.requests.append(request)
        assert isinstance(request.prompt, str)
        scene, shots, num_left = parse(request.prompt), [], request.num_frames
        changes = {spec.chunk: spec.text for spec in request.chunk_specs or ()}
        for chunk, length in enumerate(chunk_lengths(1 + (request.num_frames - 9) // 12)):
            scene = parse(changes.get(chunk) or caption(scene))
            shots.append((scene, length))
            num_left -= length
        assert num_left == 0
        frames = render(shots)[self.num_missing :][:: self.step]
        self._video = pack_video_header(VideoShape(*frames.shape)) + frames.tobytes()
        complete = {
            "output_path": "out",
            "video_shape": frames.shape,
            "num_frames": len(frames),
            "num_chunks": len(shots),
            "chunk_size": 12,
        }
        data = {
            "complete": complete,
            "error": {"error": "the model is ill", "code": "model_error"},
            "cancelled": {"chunk": 0, "total_chunks": 2, "frames_completed": 0},
        }[self.last_event]
        text = f"id: 1\nevent: {self.last_event}\ndata: {json.dumps(data)}\n\n"
        return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})

    def client(
        self,
        url: str = "http://filmstrip.test",
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        *,
        verify: bool | str = True,
    ) -> Client:
        return Client(url, token, timeout_s, httpx.MockTransport(self), verify=verify)


def test_the_command_tells_shares_and_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server, out = Server(), tmp_path / "scores.json"
    monkeypatch.setattr("filmstrip.console.Client", server.client)
    result = CliRunner().invoke(score, ["--url", "http://filmstrip.test", *QUICK, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "1.00 / 1.00" in result.output
    assert "MISSED" not in result.output

    facts = json.loads(out.read_text())
    assert (facts["pipeline"], facts["steps"], facts["plan"]["long_chunks"]) == ("longlive-small", 4, 5)
    assert [row["shares"] for row in facts["rows"]] == [dict.fromkeys((*ATTRIBUTES, ALL), 1.0)] * 5
    assert all(target["holds"] for target in facts["targets"])
    plain, switched, long = server.requests
    assert [request.num_frames for request in server.requests] == [21, 57, 57]
    assert [request.seed for request in server.requests] == [1000, 1000, 1000]
    assert plain.chunk_specs is None
    assert long.chunk_specs is None
    assert [spec.chunk for spec in switched.chunk_specs or ()] == [3]
    assert (plain.height, plain.width) == (SIDE, SIDE)


def test_a_missed_target_sets_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("filmstrip.console.Client", Server(backwards=True).client)
    out = tmp_path / "scores.json"
    result = CliRunner().invoke(score, [*QUICK, "--out", str(out)])
    assert result.exit_code == 1
    assert "MISSED" in result.output
    held = {(target["what"], target["name"]): target["holds"] for target in json.loads(out.read_text())["targets"]}
    assert held[WHOLE, "background"]
    assert not held[WHOLE, "motion"]


@pytest.mark.parametrize(("value", "status"), [(0.6, 0), (0.59, 1)])
def test_a_missed_number_of_conditions_sets_the_exit_status(
    value: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made_up = {"control": lambda *_: Measured((Number("overlap", value, 0.6),))}
    monkeypatch.setattr("research.condition_score.MEASUREMENTS", made_up)
    out = tmp_path / "scores.json"
    result = CliRunner().invoke(score_conditions, ["--only", "control", "--out", str(out)])
    assert result.exit_code == status
    assert ("MISSED" in result.output) == bool(status)
    assert json.loads(out.read_text())["kinds"]["control"]["numbers"][0]["holds"] == (not status)


@pytest.mark.parametrize(
    ("num_steps", "sent"), [("4", None), ("1", [1000]), ("2", [1000, 833]), ("5", [1000, 952, 882, 769, 556])]
)
def test_steps_are_the_pipelines_own_or_warped_even_ones(
    num_steps: str, sent: list[int] | None, monkeypatch: pytest.MonkeyPatch
):
    server = Server()
    monkeypatch.setattr("filmstrip.console.Client", server.client)
    only = ["--prompts", "1", "--chunks", "2", "--switches", "0", "--long", "0", "--steps", num_steps]
    assert CliRunner().invoke(score, only).exit_code == 0
    assert server.requests[0].denoising_steps == sent


@pytest.mark.parametrize(
    ("answering", "words"),
    [
        (Server("error"), "the model is ill"),
        (Server("cancelled"), "cancelled by someone else"),
        (Server(num_missing=1), "not [21, 64, 64, 3]"),
    ],
)
def test_failures_are_reported(answering: Server, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("filmstrip.console.Client", answering.client)
    result = CliRunner().invoke(score, QUICK)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())


def test_another_pipeline_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("filmstrip.console.Client", Server().client)
    result = CliRunner().invoke(score, ["--pipeline", "none", *QUICK])
    assert result.exit_code == 1
    assert "none" in result.output


def test_a_cancelled_video_is_not_scored():
    with pytest.raises(UnfitVideo):
        Served(Server("cancelled").client(), "longlive-small")(["a red circle moving up on a blue background"], 0)
