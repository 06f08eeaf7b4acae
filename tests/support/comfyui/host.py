"""What tests see of the ComfyUI that is played by the doubles, and a runner of workflows in API format."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.server import ROOT, Frontend

WORKFLOWS = ROOT / "comfyui" / "api_workflows"
LINK_LENGTH = 2


class Comfy:
    """The doubles, loaded; see the fixture `comfy`."""

    def __init__(self, output_directory: Path) -> None:
        self.output_directory = output_directory
        self.model_management = importlib.import_module("comfy.model_management")
        self.utils = importlib.import_module("comfy.utils")
        self.folder_paths = importlib.import_module("folder_paths")
        self.server = importlib.import_module("server")
        self.torch = importlib.import_module("torch")
        self.folder_paths.output_directory = str(output_directory)

    @property
    def interrupted(self) -> type[Exception]:
        """ComfyUI's own exception."""
        error: type[Exception] = self.model_management.InterruptProcessingException
        return error

    @property
    def texts(self) -> list[str]:
        """What was shown under nodes."""
        return [text for _, text in self.server.PromptServer.instance.texts]

    @property
    def bar(self) -> list[tuple[int, int, Any]]:
        """The updates of the newest progress bar: value, total, preview."""
        updates: list[tuple[int, int, Any]] = self.utils.ProgressBar.made[-1].updates
        return updates

    def tensor(self, array: NDArray[Any]) -> Any:
        return self.torch.from_numpy(array)


def array_of(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def workflow(name: str, server: Frontend, **replaced: Any) -> dict[str, Any]:
    """A template on this server, with the probe in place of `longlive-small`, which needs an export."""
    text = (
        (WORKFLOWS / f"{name}.json").read_text().replace('"longlive-small"', '"probe"').replace('"outlines"', '"ink"')
    )
    text = text.replace('"example": "ink"', '"example": "outlines"')
    graph: dict[str, Any] = json.loads(text.replace("http://127.0.0.1:8000", server.url))
    for node in graph.values():
        for key in node["inputs"].keys() & replaced.keys():
            node["inputs"][key] = replaced[key]
    return graph


class Runner:
    """Runs a workflow as ComfyUI does: checks each node's inputs, then calls its function by keywords."""

    def __init__(self, classes: dict[str, Any], graph: dict[str, Any]) -> None:
        self._classes = classes
        self._graph = graph
        self._results: dict[str, tuple[Any, ...]] = {}
        self.shown: dict[str, Any] = {}

    def run(self) -> None:
        """Run every output node and what it needs."""
        for name, node in self._graph.items():
            if getattr(self._classes[node["class_type"]], "OUTPUT_NODE", False):
                self.result(name)

    def result(self, name: str) -> tuple[Any, ...]:
        """What a node gives."""
        if name not in self._results:
            node = self._graph[name]
            cls = self._classes[node["class_type"]]
            inputs = self._inputs(node["inputs"], cls.INPUT_TYPES())
            hidden = {"UNIQUE_ID": name, "PROMPT": self._graph, "EXTRA_PNGINFO": None}
            inputs |= {key: hidden[kind] for key, kind in cls.INPUT_TYPES().get("hidden", {}).items()}
            answer = getattr(cls(), cls.FUNCTION)(**inputs)
            if isinstance(answer, dict):
                self.shown[name], answer = answer["ui"], answer.get("result", ())
            assert len(answer) == len(cls.RETURN_TYPES), node["class_type"]
            self._results[name] = answer
        return self._results[name]

    def _inputs(self, inputs: dict[str, Any], types: dict[str, Any]) -> dict[str, Any]:
        known = {**types["required"], **types.get("optional", {})}
        assert not inputs.keys() - known.keys(), "a workflow names inputs that the node doesn't have"
        assert not types["required"].keys() - inputs.keys(), "a workflow lacks inputs that the node needs"
        return {name: self._input(value, known[name][0]) for name, value in inputs.items()}

    def _input(self, value: Any, kind: Any) -> Any:
        if isinstance(value, list):
            source, slot = value
            assert self._classes[self._graph[source]["class_type"]].RETURN_TYPES[slot] == kind
            return self.result(source)[slot]
        python = {"STRING": str, "INT": int, "FLOAT": (int, float), "BOOLEAN": bool}
        assert isinstance(value, str if isinstance(kind, list) else python[kind])  # type: ignore[arg-type]
        return value


def pack() -> ModuleType:
    """The node pack."""
    return importlib.import_module("comfyui")


def ramp(num_frames: int, height: int = 64, width: int = 96, channels: int = 3) -> NDArray[np.float32]:
    """Images that differ in every frame, and whose values are bytes / 255."""
    shape = (num_frames, height, width, channels)
    frame, y, x, channel = np.ogrid[tuple(slice(size) for size in shape)]
    pixels = ((17 * frame + 3 * y + x + 50 * channel) % 256).astype(np.uint8)
    return pixels / np.float32(255)
