"""The example workflows, run as ComfyUI runs them, with the nodes of its own played by doubles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filmstrip.video import count_frames
from tests.support.comfyui.core_nodes import CORE_NODES
from tests.support.comfyui.host import WORKFLOWS, Comfy, Runner, pack, ramp, workflow
from tests.support.server import Frontend

EXAMPLES = ("text_to_video", "video_to_video", "scribble_chain")


def run(name: str, server: Frontend) -> Runner:
    runner = Runner({**CORE_NODES, **pack().NODE_CLASS_MAPPINGS}, workflow(name, server))
    runner.run()
    return runner


def test_text_to_video(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    runner = run("text_to_video", server)
    _, path, count, _ = runner.result("5")
    assert (count, count_frames(path)) == (48, 48)
    assert Path(path).parent == comfy.output_directory / "video"
    received = [entry["parameters"] for entry in server.probe_entries()[before:]]
    texts = [entry["prompts"][0][0] for entry in received]
    assert texts == ["a cat walks through tall grass"] * 2 + ["a dog runs along the beach"] * 3
    assert [entry["reset"] for entry in received] == [True, False, True, False, False]
    assert [entry["seed"] for entry in received] == [42, 42, 7, 42, 42]


def test_video_to_video(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    runner = run("video_to_video", server)
    images = runner.shown["8"]["images"]
    assert images.shape == (24, 320, 576, 3)
    received = server.probe_entries()[before:]
    assert [entry["parameters"]["mode"] for entry in received] == ["video", "video"]
    assert [entry["tensors"]["vace_frames"]["shape"] for entry in received] == [[1, 3, 12, 320, 576]] * 2
    assert received[0]["parameters"]["noise_scale"] == 0.6
    assert received[0]["parameters"]["vace_context_scale"] == 0.8


def test_scribble_chain(server: Frontend, comfy: Comfy):
    runner = run("scribble_chain", server)
    images = runner.shown["7"]["images"]
    assert images.shape == (24, 128, 160, 3)
    pixels = (ramp(1, 128, 160) * 255).round().astype(np.uint8).repeat(24, axis=0)
    expected = server.generate_frames(
        pipeline_id="scribble", pre_processor_id="gray", prompt="", num_frames=24, input_path=server.upload(pixels)
    )
    assert np.array_equal(np.rint(images * 255), expected)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_in_api_format_with_values_that_the_widgets_allow(name: str, comfy: Comfy):
    classes: dict[str, Any] = {**CORE_NODES, **pack().NODE_CLASS_MAPPINGS}
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text())
    for node in graph.values():
        assert set(node) == {"class_type", "inputs", "_meta"}
        types = classes[node["class_type"]].INPUT_TYPES()
        known = {**types["required"], **types.get("optional", {})}
        for key, value in node["inputs"].items():
            options = known[key][1] if len(known[key]) > 1 else {}
            if not isinstance(value, list) and "min" in options:
                assert options["min"] <= value <= options["max"]


def test_there_are_no_other_examples():
    assert sorted(path.stem for path in WORKFLOWS.glob("*")) == sorted(EXAMPLES)
