"""The templates of the pack, run as ComfyUI runs them, on the probe."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from filmstrip.video import count_frames
from tests.support.comfyui.host import Comfy, Runner, pack, workflow
from tests.support.server import Frontend
from tools.comfyui_pack import TEMPLATES_BY_NAME

NAMES = tuple(TEMPLATES_BY_NAME)


def run(name: str, server: Frontend) -> tuple[Path, list[dict[str, Any]]]:
    """The file that a template writes, and what the probe received."""
    before = len(server.probe_entries())
    graph = workflow(name, server)
    runner = Runner(pack().NODE_CLASS_MAPPINGS, graph)
    runner.run()
    (number,) = (key for key, node in graph.items() if node["class_type"] == "FilmstripGenerateVideo")
    return Path(runner.result(number)[1]), server.probe_entries()[before:]


def parameters(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry["parameters"] for entry in entries]


@pytest.mark.parametrize("name", NAMES)
def test_each_template_makes_a_file_that_holds_its_workflow(name: str, server: Frontend, comfy: Comfy):
    path, entries = run(name, server)
    assert path.parent == comfy.output_directory / "video"
    frames = next(node.inputs.get("num_frames") for node in TEMPLATES_BY_NAME[name].nodes.values()
                  if node.kind == "FilmstripGenerateVideo")  # fmt: skip
    assert count_frames(path) == (frames or 36)
    assert entries
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["prompt"]) == workflow(name, server)


def test_a_schedule_changes_the_prompt(server: Frontend, comfy: Comfy):
    _, entries = run("prompt_schedule", server)
    texts = [entry["prompts"][0][0].split()[1] for entry in parameters(entries)]
    assert texts == ["red"] * 3 + ["yellow"] * 3 + ["white"] * 3


def test_a_transition_reaches_the_model(server: Frontend, comfy: Comfy):
    _, entries = run("transition", server)
    assert parameters(entries)[2]["transition"]["num_steps"] == 5


def test_the_clip_is_changed_and_keeps_its_sound_and_rate(server: Frontend, comfy: Comfy):
    path, entries = run("video_to_video", server)
    assert {entry["mode"] for entry in parameters(entries)} == {"video"}
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 12
        (sound,) = container.streams.audio
        pieces = [frame.to_ndarray() for frame in container.decode(sound)]
    assert sum(piece.shape[-1] for piece in pieces) == pytest.approx(3 * sound.rate, abs=2 * 1024)
    assert max(np.abs(piece).max() for piece in pieces) > 0.1


def test_control_frames_and_masks_are_scaled_to_the_video(server: Frontend, comfy: Comfy):
    _, entries = run("inpainting", server)
    assert [entry["tensors"]["vace_frames"]["shape"] for entry in entries] == [[1, 3, 12, 64, 96]] * 3
    assert [entry["tensors"]["vace_masks"]["shape"][-2:] for entry in entries] == [[64, 96]] * 3


def test_a_reference_is_in_every_chunk_and_uploaded_once(server: Frontend, comfy: Comfy):
    uploads = server.log().count("POST /api/v1/assets")
    _, entries = run("reference_image", server)
    assert all("vace_ref_images" in entry["tensors"] for entry in entries)
    assert server.log().count("POST /api/v1/assets") == uploads + 1


def test_key_images_are_where_they_belong(server: Frontend, comfy: Comfy):
    _, entries = run("first_and_last_frame", server)
    found = [[name for name in entry["tensors"] if name.endswith("_frame_image")] for entry in entries]
    assert found == [["first_frame_image"], [], ["last_frame_image"]]


def test_a_ramp_grows_chunk_by_chunk(server: Frontend, comfy: Comfy):
    _, entries = run("lora_ramp", server)
    assert [entry["lora_scales"]["ink"] for entry in parameters(entries)] == [0, 0.25, 0.5, 0.75, 1, 1]
