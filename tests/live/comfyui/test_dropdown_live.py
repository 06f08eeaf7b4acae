"""The dropdown of pipelines, filled from a running server."""

import inspect
import socket
import threading
import time

import pytest

import comfyui
from comfyui import pipeline_names
from comfyui.nodes_server import FilmstripPipeline
from comfyui.pipeline_names import PIPELINE_NAMES, PipelineNames
from tests.support.comfyui.host import Comfy
from tests.support.comfyui.nodes import pipeline
from tests.support.recovery import SOON_S
from tests.support.server import Frontend


def names() -> list[str]:
    found: list[str] = FilmstripPipeline.INPUT_TYPES()["required"]["pipeline_id"][0]
    return found


def test_the_dropdown_shows_the_servers_pipelines_after_a_refresh(
    server: Frontend, comfy: Comfy, monkeypatch: pytest.MonkeyPatch
):
    assert names() == list(pipeline_names.DEFAULT_PIPELINES), "no server yet"
    monkeypatch.setenv("FILMSTRIP_SERVER", server.url)
    monkeypatch.setattr(pipeline_names, "FRESH_S", 0)
    assert "probe" in names()


def test_the_dropdown_follows_the_server_node(server: Frontend, comfy: Comfy):
    names()
    pipeline(server)
    assert "probe" in names()
    assert "longlive" not in names()


def test_a_server_that_is_down_leaves_the_list_as_it_was_and_takes_no_time(
    server: Frontend, comfy: Comfy, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    ask = PipelineNames._ask

    def count_and_ask(of: PipelineNames) -> None:
        asked.append(of)
        ask(of)

    monkeypatch.setattr(PipelineNames, "_ask", count_and_ask)
    monkeypatch.setattr(pipeline_names, "ASK_TIMEOUT_S", 60.0)  # so that it is not this that ends a wait
    monkeypatch.setattr(pipeline_names, "FRESH_S", 0)
    pipeline(server)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        PIPELINE_NAMES.remember_server(type(pipeline(server).server)(url, "", 60.0))
        started = time.monotonic()
        assert "probe" in names()
        assert "probe" in names()
        assert time.monotonic() - started < SOON_S
        assert len(asked) == 1, "the second time it was asked already"
    for thread in threading.enumerate():
        if thread.name.startswith("filmstrip"):
            thread.join(10)


def test_any_name_is_let_through_for_the_server_to_decide(server: Frontend, comfy: Comfy):
    assert FilmstripPipeline.VALIDATE_INPUTS(pipeline_id="made-tomorrow") is True
    assert "pipeline_id" in inspect.getfullargspec(FilmstripPipeline.VALIDATE_INPUTS).args, (
        "else ComfyUI looks in the list"
    )
    with pytest.raises(comfyui.errors.FilmstripError, match=r"no pipeline 'made-tomorrow'; it has: .*probe"):
        pipeline(server, "made-tomorrow")


def test_a_typed_pipeline_name_wins_and_the_node_outputs_its_properties(server: Frontend, comfy: Comfy):
    handle = pipeline(server).server
    picked, chunk_size, width, height, facts = FilmstripPipeline().pick(
        server=handle, pipeline_id="gray", other_id=" probe "
    )
    assert (picked.id, chunk_size, width, height) == ("probe", 12, 96, 64)
    assert '"first_chunk_size": 9' in facts
    assert FilmstripPipeline().pick(server=handle, pipeline_id="gray")[2:4] == (0, 0)
