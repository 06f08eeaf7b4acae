"""The pack within a real ComfyUI: COMFYUI_DIR names a checkout, COMFYUI_PYTHON a Python with its requirements.

ComfyUI is GPL and no part of this repository; without it these tests are skipped.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

import comfyui
from tests.support import http
from tests.support.comfyui.core_nodes import CORE_NODES, SaveImage
from tests.support.comfyui.host import workflow
from tests.support.comfyui.real_comfyui import PACK_FOLDER, RealComfyUI
from tests.support.recovery import eventually, is_generating
from tests.support.server import Frontend
from tools.comfyui_pack import TEMPLATES_BY_NAME

# ComfyUI's numbers of binary messages.
TEXT = (3).to_bytes(4, "big")
PREVIEWS = ((1).to_bytes(4, "big"), (4).to_bytes(4, "big"))

pytestmark = [
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealComfyUI]:
    started = RealComfyUI(tmp_path_factory.mktemp("comfyui"))
    try:
        started.wait_ready()
        yield started
    finally:
        started.stop()


def test_all_nodes_are_there_with_their_widgets(real: RealComfyUI):
    info = real.object_info()
    for name, node in comfyui.NODE_CLASS_MAPPINGS.items():
        assert info[name]["display_name"] == comfyui.NODE_DISPLAY_NAME_MAPPINGS[name]
        assert info[name]["category"] == "Filmstrip"
        types = node.INPUT_TYPES()
        assert info[name].get("search_aliases", node.SEARCH_ALIASES) == node.SEARCH_ALIASES
        assert set(info[name]["input"]["optional" if "optional" in types else "required"]) == set(
            types.get("optional", types["required"])
        )
    assert "(IMPORT FAILED)" not in real.log(), "ComfyUI says so of custom nodes"


def test_the_doubles_of_core_nodes_take_what_the_real_ones_take(real: RealComfyUI):
    info = real.object_info()
    for name, double in CORE_NODES.items():
        assert set(info[name]["input"]["required"]) == set(double.INPUT_TYPES()["required"]), name
        assert tuple(info[name]["output"]) == double.RETURN_TYPES, name


@pytest.mark.parametrize("name", TEMPLATES_BY_NAME)
def test_every_template_runs(name: str, real: RealComfyUI, server: Frontend):
    graph = workflow(name, server)
    (number,) = (key for key, node in graph.items() if node["class_type"] == "FilmstripGenerateVideo")
    (file,) = real.run(graph)[number]["images"]
    path = real.output / file["subfolder"] / file["filename"]
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["prompt"])[number]["class_type"] == "FilmstripGenerateVideo"
        assert sum(1 for _ in container.decode(video=0)) == (graph[number]["inputs"]["num_frames"] or 36)


def test_the_page_finds_templates_names_and_the_extension(real: RealComfyUI):
    found = http.get(f"{real.url}/workflow_templates").json()[PACK_FOLDER]
    assert sorted(found) == sorted(TEMPLATES_BY_NAME)
    picture = http.get(f"{real.url}/api/workflow_templates/{PACK_FOLDER}/text_to_video.jpg")
    assert (picture.status_code, picture.content[:3]) == (200, b"\xff\xd8\xff")
    names = http.get(f"{real.url}/i18n").json()["en"]["nodeDefs"]
    assert set(comfyui.NODE_CLASS_MAPPINGS) <= set(names)
    assert f"/extensions/{PACK_FOLDER}/filmstrip.js" in http.get(f"{real.url}/extensions").json()
    for kind in comfyui.NODE_CLASS_MAPPINGS:
        assert http.get(f"{real.url}/extensions/{PACK_FOLDER}/docs/{kind}.md").status_code == 200


def test_the_routes_only_answer_their_own_page(real: RealComfyUI, server: Frontend):
    def ask(address: str, origin: str) -> httpx.Response:
        body = {"address": address}
        return http.post(f"{real.url}/filmstrip/pipelines", json=body, headers={"Origin": origin})

    assert ask(server.url, "http://elsewhere.test").status_code == 403
    assert "neither" in ask(server.url, real.url).json()["error"]
    saved = http.post(f"{real.url}/filmstrip/settings", json={"address": server.url, "token": "the-key"},
                      headers={"Origin": real.url})  # fmt: skip
    assert saved.json() == {"address": server.url, "has_key": True}
    assert "probe" in [pipeline["id"] for pipeline in ask(server.url, real.url).json()["pipelines"]]
    assert http.get(f"{real.url}/filmstrip/pipelines").status_code in (404, 405)
    http.post(f"{real.url}/filmstrip/settings", json={"address": "", "token": ""}, headers={"Origin": real.url})


def scribble_chain(server: Frontend, **inputs: Any) -> dict[str, Any]:
    """A workflow with nodes of ComfyUI's own: a picture, repeated, through gray and scribble, saved."""
    handle = ["1", 0]
    graph: dict[str, Any] = {
        "1": {"class_type": "FilmstripServer", "inputs": {"address": server.url}},
        "2": {"class_type": "FilmstripPipeline", "inputs": {"server": handle, "pipeline_id": "gray"}},
        "3": {"class_type": "FilmstripPipeline", "inputs": {"server": handle, "pipeline_id": "scribble"}},
        "4": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "5": {"class_type": "RepeatImageBatch", "inputs": {"image": ["4", 0], "amount": 24}},
        "6": {
            "class_type": "FilmstripGenerate",
            "inputs": {
                "pipeline": ["3", 0],
                "pre_processor": ["2", 0],
                "images": ["5", 0],
                "prompt": "",
                "num_frames": 0,
                "seed": 1,
            },
        },
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "scribble"}},
    }
    for node in graph.values():
        node["inputs"] |= {key: value for key, value in inputs.items() if key in node["inputs"]}
    return graph


def test_images_come_back_to_the_byte_and_save_image_says_where_they_are(real: RealComfyUI, server: Frontend):
    outputs = real.run(scribble_chain(server))
    shown = outputs["7"]["images"]
    assert [set(file) for file in shown] == [set(SaveImage().run(_Tensor(), "x")["ui"]["images"][0])] * 24
    files = [real.output / file["subfolder"] / file["filename"] for file in shown]
    source = np.asarray(Image.open(real.output.parent / "input" / "example.png").convert("RGB"))
    expected = server.generate_frames(
        pipeline_id="scribble", pre_processor_id="gray", prompt="", num_frames=24,
        input_path=server.upload(np.repeat(source[None], 24, axis=0)),
    )  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(files[-1])), expected[-1])


class _Tensor:
    """As much of a tensor as the double of Save Image looks at."""

    def detach(self) -> "_Tensor":
        return self

    cpu = detach

    def numpy(self) -> Any:
        return np.zeros((1, 4, 4, 3), np.float32)


def test_a_second_run_without_changes_makes_nothing_anew(real: RealComfyUI, server: Frontend):
    graph = workflow("video_to_video", server, prompt="once")
    real.run(graph)
    before = len(server.probe_entries())
    real.run(graph)
    assert len(server.probe_entries()) == before
    real.run(workflow("video_to_video", server, prompt="twice"))
    assert len(server.probe_entries()) > before


def test_the_page_shows_chunks_texts_and_the_last_frame(real: RealComfyUI, server: Frontend):
    with real.page("tests") as page:
        messages = page.messages()
        next(messages)  # the page is known from here on
        queued = real.queue(workflow("video_to_video", server, prompt="shown"), page="tests")
        seen = list(itertools.takewhile(lambda message: not has_ended(message, queued), messages))
    received = [message["data"] for message in seen if isinstance(message, dict) and message["type"] == "progress"]
    assert {(data["value"], data["max"]) for data in received} == {(1, 3), (2, 3), (3, 3)}
    texts = [message for message in seen if isinstance(message, bytes) and message[:4] == TEXT]
    assert any(b"chunk 2 of 3" in text for text in texts)
    assert b"36 frames in 3 chunks" in texts[-1]
    pictures = [message for message in seen if isinstance(message, bytes) and message[:4] in PREVIEWS]
    assert any(b"\xff\xd8\xff" in picture for picture in pictures), "a JPEG"


def has_ended(message: dict[str, Any] | bytes, prompt_id: str) -> bool:
    return (
        isinstance(message, dict)
        and message["type"] == "executing"
        and message["data"] == {"node": None, "prompt_id": prompt_id}
    )


def test_stop_cancels_on_the_server_within_a_second(real: RealComfyUI, server: Frontend):
    before, asked = len(server.probe_entries()), server.log().count("DELETE /api/v1/generations/")
    queued = real.queue(workflow("video_to_video", server, prompt="!sleep 60"))
    eventually(lambda: len(server.probe_entries()) > before)
    pressed = time.monotonic()
    real.interrupt()
    eventually(lambda: not is_generating(server))
    assert time.monotonic() - pressed < 5
    ended = real.wait(queued, timeout_s=5)
    assert "execution_interrupted" in dict(ended["status"]["messages"])
    assert server.probe_entries()[-1]["event"] == "cancelled"
    assert server.log().count("DELETE /api/v1/generations/") == asked + 1


def test_a_name_that_is_not_in_the_list_is_for_the_server_to_decide(real: RealComfyUI, server: Frontend):
    graph = scribble_chain(server)
    graph["3"]["inputs"]["pipeline_id"] = "made-tomorrow"
    error = real.fails(graph)
    assert error["node_type"] == "FilmstripPipeline"
    assert "no pipeline 'made-tomorrow'" in error["exception_message"]


def test_a_refused_field_is_shown_on_its_node(real: RealComfyUI, server: Frontend):
    graph = workflow("video_to_video", server, height=328)
    error = real.fails(graph)
    assert error["node_type"] == "FilmstripGenerateVideo"
    assert error["exception_message"].startswith("height: 328 is not a multiple of 16")


def test_a_text_that_cannot_be_read_is_refused_before_anything_runs(real: RealComfyUI, server: Frontend):
    assert "must look like '4: a dog'" in real.refusal(workflow("prompt_schedule", server, schedule="a cat"))
    assert "is not the address of a server" in real.refusal(workflow("text_to_video", server, address="localhost"))


def test_the_dropdown_follows_the_server_without_a_restart(real: RealComfyUI, server: Frontend):
    real.run(scribble_chain(server, filename_prefix="again"))
    options = real.object_info()["FilmstripPipeline"]["input"]["required"]["pipeline_id"][0]
    assert "probe" in options
