"""The pack within a real ComfyUI: COMFYUI_DIR names a checkout, COMFYUI_PYTHON a Python with its requirements.

ComfyUI is GPL and no part of this repository; without it these tests are skipped.
"""

import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import comfyui
from tests.support.comfyui.core_nodes import CORE_NODES
from tests.support.comfyui.host import workflow
from tests.support.comfyui.real_comfyui import RealComfyUI
from tests.support.recovery import eventually, is_generating
from tests.support.server import Frontend

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
        assert set(info[name]["input"]["optional" if "optional" in types else "required"]) == set(
            types.get("optional", types["required"])
        )
    assert "(IMPORT FAILED)" not in real.log(), "ComfyUI says so of custom nodes"


def test_the_doubles_of_core_nodes_take_what_the_real_ones_take(real: RealComfyUI):
    info = real.object_info()
    for name, double in CORE_NODES.items():
        assert set(info[name]["input"]["required"]) == set(double.INPUT_TYPES()["required"]), name
        assert tuple(info[name]["output"]) == double.RETURN_TYPES, name


def test_text_to_video(real: RealComfyUI, server: Frontend):
    before = len(server.probe_entries())
    outputs = real.run(workflow("text_to_video", server))
    (file,) = outputs["5"]["images"]
    path = real.output / file["subfolder"] / file["filename"]
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 48
    texts = [entry["parameters"]["prompts"][0][0] for entry in server.probe_entries()[before:]]
    assert texts == ["a cat walks through tall grass"] * 2 + ["a dog runs along the beach"] * 3
    assert "chunk 5 of 5" in real.log()


def test_video_to_video(real: RealComfyUI, server: Frontend):
    before = len(server.probe_entries())
    outputs = real.run(workflow("video_to_video", server))
    assert len(outputs["8"]["images"]) == 24
    received = server.probe_entries()[before:]
    assert [entry["parameters"]["mode"] for entry in received] == ["video", "video"]
    assert [entry["tensors"]["vace_frames"]["shape"] for entry in received] == [[1, 3, 12, 320, 576]] * 2


def test_scribble_chain(real: RealComfyUI, server: Frontend):
    outputs = real.run(workflow("scribble_chain", server))
    files = [real.output / file["subfolder"] / file["filename"] for file in outputs["7"]["images"]]
    assert len(files) == 24
    source = np.asarray(Image.open(real.output.parent / "input" / "example.png").convert("RGB"))
    expected = server.generate_frames(
        pipeline_id="scribble", pre_processor_id="gray", prompt="", num_frames=24,
        input_path=server.upload(np.repeat(source[None], 24, axis=0)),
    )  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(files[-1])), expected[-1])


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
    assert [(data["value"], data["max"]) for data in received if data["node"] == "7"] == [(1, 2), (2, 2), (2, 2)]
    texts = [message for message in seen if isinstance(message, bytes) and message[:4] == TEXT]
    assert any(b"chunk 2 of 2" in text for text in texts)
    assert b"24 frames in 2 chunks" in texts[-1]
    pictures = [message for message in seen if isinstance(message, bytes) and message[:4] in PREVIEWS]
    assert any(b"\xff\xd8\xff" in picture for picture in pictures), "a JPEG"


def has_ended(message: dict[str, Any] | bytes, prompt_id: str) -> bool:
    return (
        isinstance(message, dict)
        and message["type"] == "executing"
        and message["data"] == {"node": None, "prompt_id": prompt_id}
    )


def test_stop_cancels_on_the_server_within_a_second(real: RealComfyUI, server: Frontend):
    before, asked = len(server.probe_entries()), server.log().count("cancel requested")
    queued = real.queue(workflow("video_to_video", server, prompt="!sleep 60"))
    eventually(lambda: len(server.probe_entries()) > before)
    pressed = time.monotonic()
    real.interrupt()
    eventually(lambda: not is_generating(server))
    assert time.monotonic() - pressed < 5
    ended = real.wait(queued, timeout_s=5)
    assert "execution_interrupted" in dict(ended["status"]["messages"])
    assert server.probe_entries()[-1]["event"] == "cancelled"
    assert server.log().count("cancel requested") == asked + 1


def test_a_name_that_is_not_in_the_list_is_for_the_server_to_decide(real: RealComfyUI, server: Frontend):
    graph = workflow("scribble_chain", server)
    graph["3"]["inputs"]["pipeline_id"] = "made-tomorrow"
    error = real.fails(graph)
    assert error["node_type"] == "FilmstripPipeline"
    assert "no pipeline 'made-tomorrow'" in error["exception_message"]


def test_a_refused_field_is_shown_on_its_node(real: RealComfyUI, server: Frontend):
    graph = workflow("video_to_video", server, height=328)
    error = real.fails(graph)
    assert error["node_type"] == "FilmstripGenerate"
    assert error["exception_message"].startswith("height: 328 is not a multiple of 16")


def test_a_text_that_cannot_be_read_is_refused_before_anything_runs(real: RealComfyUI, server: Frontend):
    assert "must look like '4: a dog'" in real.refusal(workflow("text_to_video", server, schedule="a cat"))
    assert "is not the address of a server" in real.refusal(workflow("text_to_video", server, address="localhost"))


def test_the_dropdown_follows_the_server_without_a_restart(real: RealComfyUI, server: Frontend):
    real.run(workflow("scribble_chain", server, filename_prefix="again"))
    options = real.object_info()["FilmstripPipeline"]["input"]["required"]["pipeline_id"][0]
    assert "probe" in options
