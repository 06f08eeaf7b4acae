"""The files of the pack that ComfyUI finds by itself: templates, names, pictures."""

import json
from typing import Any

import pytest
from PIL import Image

import comfyui
from comfyui import widgets
from tests.support.server import ROOT
from tools import comfyui_pack

PACK = ROOT / "comfyui"
TEMPLATES = sorted((PACK / "example_workflows").glob("*.json"))
GLOBBED = ("example_workflows", "example", "examples", "workflow", "workflows")
"""Folders in which ComfyUI looks for templates."""


def test_the_files_follow_from_the_nodes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FILMSTRIP_SERVER", raising=False)
    assert comfyui_pack.outdated() == [], "run: python -m tools.comfyui_pack"


def test_nothing_else_is_offered_as_a_template():
    found = sorted(path for folder in GLOBBED for path in (PACK / folder).glob("*.json"))
    assert found == TEMPLATES
    assert [path.stem for path in TEMPLATES] == sorted(comfyui_pack.TEMPLATES_BY_NAME)
    assert {path.stem for path in (PACK / "example_workflows").iterdir()} == {path.stem for path in TEMPLATES}


@pytest.mark.parametrize("name", [path.stem for path in TEMPLATES])
def test_a_template_is_in_the_format_of_the_page(name: str):
    graph = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
    assert graph["version"] == 0.4
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == len(graph["links"]) > 0
    for link, source, output, target, slot, kind in graph["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][slot]["link"] == link
        assert nodes[target]["inputs"][slot]["type"] == kind
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            assert "longlive" in node["widgets_values"][0]
            continue
        assert node["type"] in comfyui.NODE_CLASS_MAPPINGS, "only nodes of the pack, so that it runs as it is"
        if "Generate" in node["type"]:
            assert node["widgets_values"][3] == "fixed"
    assert any(node["type"] == "MarkdownNote" for node in graph["nodes"])
    with Image.open(PACK / "example_workflows" / f"{name}.jpg") as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) <= 1024


@pytest.mark.parametrize("name", [path.stem for path in TEMPLATES])
def test_an_api_copy_has_values_that_the_widgets_allow(name: str):
    graph = json.loads((PACK / "api_workflows" / f"{name}.json").read_text())
    for node in graph.values():
        assert set(node) == {"class_type", "inputs", "_meta"}
        cls: Any = comfyui.NODE_CLASS_MAPPINGS[node["class_type"]]
        types = cls.INPUT_TYPES()
        known = {**types["required"], **types.get("optional", {})}
        assert set(types["required"]) <= set(node["inputs"]) <= set(known)
        for key, value in node["inputs"].items():
            options = known[key][1]
            if not isinstance(value, list) and "min" in options:
                assert options["min"] <= value <= options["max"]


def test_every_name_of_the_page_is_in_plain_words():
    for node in comfyui_pack.names().values():
        for entry in [*node["inputs"].values(), *node["outputs"].values()]:
            assert "_" not in entry["name"], entry
    assert set(widgets.LABELS) <= {
        name for kind in comfyui.NODE_CLASS_MAPPINGS for name in comfyui_pack.names()[kind]["inputs"]
    }, "a label without an input"
