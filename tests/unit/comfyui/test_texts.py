"""What is written in text widgets, and the events of a stream."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui import widgets
from comfyui.client import EventReader, ServerClient, server_address
from comfyui.errors import FilmstripError
from comfyui.nodes_chunks import FilmstripChunkSpec, FilmstripPromptSchedule
from comfyui.nodes_generate import FilmstripGenerate
from comfyui.nodes_server import FilmstripServer
from comfyui.settings import token_for
from tests.support.fake_server import Reply, fake_server


def test_a_schedule():
    text = "# cats\n0: a cat\n\n  4 :  a dog: brown, 3:2\n7:\n"
    assert widgets.parse_schedule(text) == {0: "a cat", 4: "a dog: brown, 3:2", 7: ""}


def test_an_invalid_schedule_is_refused_when_it_is_queued(subtests: pytest.Subtests):
    cases = [
        ("a cat", "line 1 of the schedule must look like '4: a dog', got 'a cat'"),
        ("0: a\nx: b", "line 2"),
        ("-1: a", "line 1"),
        ("1.5: a", "line 1"),
        ("0: a\n00: b", "line 2 of the schedule: 0 already has a prompt"),
    ]
    for text, message in cases:
        with subtests.test(text=text):
            complaint = FilmstripPromptSchedule.VALIDATE_INPUTS(schedule=text)
            assert isinstance(complaint, str)
            assert message in complaint
            with pytest.raises(FilmstripError):
                FilmstripPromptSchedule().add(schedule=text)


def test_weighted_prompts():
    assert widgets.parse_weighted_prompts("70: a cat\n0.5:a dog\nwide shot: a hill\n") == [
        {"text": "a cat", "weight": 70},
        {"text": "a dog", "weight": 0.5},
        {"text": "wide shot: a hill", "weight": 100},
    ]
    with pytest.raises(FilmstripError, match="line 1 of the prompts: a weight must be 0 to 100, got 101"):
        widgets.parse_weighted_prompts("101: x")


def test_lora_scales():
    assert widgets.parse_lora_scales("ink: 0.5\nC:/loras/neon.safetensors: -1") == {
        "ink": 0.5,
        "C:/loras/neon.safetensors": -1,
    }
    for bad in ("ink", "ink: x", ": 1", "ink: nan"):
        with pytest.raises(FilmstripError, match="line 1 of the LoRA scales"):
            widgets.parse_lora_scales(bad)


def test_denoising_steps():
    assert widgets.parse_denoising_steps(" 1000, 750 500,250 ") == [1000, 750, 500, 250]
    assert widgets.parse_denoising_steps("") == []
    with pytest.raises(FilmstripError, match="whole numbers"):
        widgets.parse_denoising_steps("1000, 7.5")


@pytest.mark.parametrize("node", [FilmstripChunkSpec, FilmstripGenerate])
def test_texts_are_checked_when_they_are_queued(node: Any):
    assert node.VALIDATE_INPUTS(denoising_steps="1000", lora_scales="ink: 1") is True
    assert node.VALIDATE_INPUTS(denoising_steps=None, lora_scales=None) is True, "they come by a link, later"
    assert "LoRA" in node.VALIDATE_INPUTS(lora_scales="ink")
    assert "whole numbers" in node.VALIDATE_INPUTS(denoising_steps="x")


def test_an_invalid_address_is_refused_when_it_is_queued(subtests: pytest.Subtests):
    cases = ["", "localhost:8000", "ftp://x", "http://", "http://x:y", "http://[", "http://u:p@x", "http://x?y"]
    for address in cases:
        with subtests.test(address=address):
            assert "is not the address of a server" in str(FilmstripServer.VALIDATE_INPUTS(address=address))


def test_addresses():
    assert FilmstripServer.VALIDATE_INPUTS(address=" https://studio:8443/films/ ") is True
    assert server_address(" https://studio:8443/films/ ").url == "https://studio:8443/films"
    assert "secret" not in repr(server_address("http://x", "secret"))
    with pytest.raises(FilmstripError, match="token"):
        server_address("http://x", "a\r\nb")


def test_the_environments_key_goes_to_no_address_that_a_workflow_brings(
    monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
):
    cases = [
        (None, "http://127.0.0.1:8000/", True),
        ("", "http://127.0.0.1:8000", True),
        ("https://films.test/video", "https://FILMS.test:443/video/", True),
        ("https://films.test", "http://films.test", False),
        ("https://films.test", "https://films.test/other", False),
        ("https://films.test", "http://127.0.0.1:8000", False),
        (None, "http://evil.test:8000", False),
    ]
    for variable, address, with_token in cases:
        with subtests.test(variable=variable):
            monkeypatch.delenv("FILMSTRIP_SERVER", raising=False)
            if variable is not None:
                monkeypatch.setenv("FILMSTRIP_SERVER", variable)
            monkeypatch.setenv("FILMSTRIP_TOKEN", "secret ")
            assert token_for(address) == ("secret" if with_token else "")


def test_seeds_are_those_of_comfyui_and_a_random_one_runs_each_time():
    kind, options = FilmstripGenerate.INPUT_TYPES()["required"]["seed"]
    assert (kind, options["min"], options["max"]) == ("INT", -1, 2**64 - 1)
    assert FilmstripChunkSpec.INPUT_TYPES()["optional"]["chunk_seed"][1]["max"] == 2**64 - 1
    again = FilmstripGenerate.IS_CHANGED(seed=-1, prompt="a cat")
    assert math.isnan(again), "ComfyUI compares it with the last one: NaN never equals it"
    assert FilmstripGenerate.IS_CHANGED(seed=7) == FilmstripGenerate.IS_CHANGED(seed=7)


# -- Pipelines ----------------------------------------------------------------------------------------------------

UNKNOWN: dict[str, Any] = {"modes": None, "chunk_size": None, "height": None, "width": None, "features": None}
READY = {"id": "new", "modes": ["text"], "chunk_size": 12, "height": None, "width": None, "features": {"seed": True}}


def reply(**body: Any) -> Reply:
    return Reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})


@pytest.mark.parametrize("listed", [True, False])
def test_a_pipeline_that_is_not_loaded_yet_is_loaded_and_waited_for(listed: bool):
    before = [{"id": "new", "state": "unloaded", "reason": None, **UNKNOWN}] if listed else []
    with fake_server(
        reply(pipelines=before),
        reply(status="loading"),
        reply(status="loading", pipeline_id="new"),
        reply(status="loaded", pipeline_id="new"),
        reply(pipelines=[READY]),
    ) as (url, requests):
        shown: list[str] = []
        info = ServerClient(server_address(url), lambda: None).loaded_pipeline("new", shown.append)
    assert info["chunk_size"] == 12
    assert shown == ["the server is loading new"] * 2
    paths = ["pipelines", "pipeline/load", "pipeline/status", "pipeline/status", "pipelines"]
    assert [request.partition("/api/v1/")[2] for request in requests] == paths


def test_a_pipeline_that_cannot_run_says_why():
    failed = {"id": "new", "state": "failed", "reason": "an engine is damaged", **UNKNOWN}
    for replies in (
        (reply(pipelines=[failed]),),
        (reply(pipelines=[]), reply(status="loading"), reply(status="error", error="an engine is damaged")),
    ):
        with fake_server(*replies) as (url, _), pytest.raises(FilmstripError, match=r"new .*: an engine is damaged"):
            ServerClient(server_address(url), lambda: None).loaded_pipeline("new", lambda _: None)


# -- Events -------------------------------------------------------------------------------------------------------

PROGRESS = {"chunk": 1, "total_chunks": 2, "frames": 12, "latency": 0.5, "fps": 24}
COMPLETE = {"output_path": "output-é", "video_shape": [1, 2, 3, 3], "num_frames": 1, "num_chunks": 1, "chunk_size": 12}


def stream(*events: tuple[str, dict[str, Any]], end: str = "\n") -> bytes:
    text = "".join(
        f"id: {number}{end}event: {name}{end}data: {json.dumps(data, ensure_ascii=False)}{end}{end}: alive{end}{end}"
        for number, (name, data) in enumerate(events, 1)
    )
    return text.encode()


@given(st.lists(st.integers(1, 30)), st.sampled_from(["\n", "\r\n"]))
def test_events_are_read_however_the_stream_is_cut(sizes: list[int], end: str):
    raw = stream(("progress", PROGRESS), ("news", {"of": "later"}), ("complete", COMPLETE), end=end)
    reader, found, at = EventReader(), [], 0
    for size in [*sizes, len(raw)]:
        found += reader.feed(raw[at : at + size])
        at += size
    assert [(event.name, event.data) for event in found] == [("progress", PROGRESS), ("complete", COMPLETE)]


def test_a_foreign_event_is_named(subtests: pytest.Subtests):
    cases = ["", "[]", "1", '{"chunk": 1}', "{"]
    for data in cases:
        with (
            subtests.test(data=data),
            pytest.raises(FilmstripError, match="unexpected progress event, from another version"),
        ):
            list(EventReader().feed(f"event: progress\ndata: {data}\n\n".encode()))
