"""The pack as ComfyUI sees it: it loads from any folder, alone, and says of its nodes what ComfyUI wants to know."""

import ast
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import comfyui
from tests.support.comfyui.host import Comfy
from tests.support.server import ROOT

PACK = ROOT / "comfyui"
DOUBLES = ROOT / "tests" / "support" / "comfyui" / "doubles"
NODES = comfyui.NODE_CLASS_MAPPINGS
every_node = pytest.mark.parametrize("name", NODES)

LOADS = """
import importlib.util, socket, sys
def refuse(*_): raise AssertionError("the network was touched")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
path = sys.argv[1]
spec = importlib.util.spec_from_file_location(path, path + "/__init__.py")  # as ComfyUI does: its name is its path
module = importlib.util.module_from_spec(spec)
sys.modules[path] = module
spec.loader.exec_module(module)
ours = {name for name in sys.modules if name.partition(".")[0] in {"filmstrip", "httpx", "torch", "av", "comfyui"}}
assert not ours, ours
print(*module.NODE_CLASS_MAPPINGS)
"""


def test_a_copy_under_any_name_loads_without_other_packages_or_network(tmp_path: Path):
    folder = tmp_path / "my-nodes (copy)"
    shutil.copytree(PACK, folder)
    answer = subprocess.run(
        [sys.executable, "-c", LOADS, str(folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == list(NODES)


def test_it_imports_only_what_comfyui_has():
    allowed = {*sys.stdlib_module_names, "numpy", "PIL", "av", "torch", "comfy", "comfy_api", "folder_paths", "server"}
    for path in PACK.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, path.name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).partition(".")[0] in allowed, path.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, path.name


@every_node
def test_nodes_say_what_comfyui_wants_to_know(name: str):
    node = NODES[name]
    assert comfyui.NODE_DISPLAY_NAME_MAPPINGS[name].startswith("Filmstrip ")
    assert node.CATEGORY == "Filmstrip"
    assert node.DESCRIPTION
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    types = node.INPUT_TYPES()
    assert set(types) <= {"required", "optional", "hidden"}
    inputs = {**types["required"], **types.get("optional", {})}
    for key, (kind, options) in inputs.items():
        assert options["tooltip"], key
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], key
        if kind == "FLOAT":
            assert options["step"] > 0, key
        if isinstance(kind, list):
            assert options.get("default", kind[0]) in kind, key
    function = inspect.signature(getattr(node, node.FUNCTION))
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in function.parameters.values())
    names = {*inputs, *types.get("hidden", {})}
    assert takes_all or names == set(function.parameters) - {"self"}
    if hasattr(node, "VALIDATE_INPUTS"):
        assert set(inspect.signature(node.VALIDATE_INPUTS).parameters) <= set(inputs)


def test_the_registry_gets_the_version_and_no_requirements():
    told = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert told["project"]["name"] == "comfyui-filmstrip"
    assert told["project"]["version"] == comfyui.__version__
    assert told["project"]["dependencies"] == []
    assert (PACK / "LICENSE").read_text() == (ROOT / "LICENSE").read_text(), "the folder goes alone"
    assert set(told["tool"]["comfy"]) >= {"PublisherId", "DisplayName"}
    wanted = [line for line in (PACK / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert wanted == []


# -- The doubles ----------------------------------------------------------------------------------------------------


def functions(path: Path) -> dict[str, list[str]]:
    """Names of a file's functions and methods, and of their parameters."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(path.read_text()).body:
        for each in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(each, ast.FunctionDef):
                prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                found[prefix + each.name] = [parameter.arg for parameter in each.args.args]
    return found


@pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI")
@pytest.mark.parametrize(
    ("double", "real"),
    [
        ("comfy/model_management.py", "comfy/model_management.py"),
        ("comfy/utils.py", "comfy/utils.py"),
        ("folder_paths.py", "folder_paths.py"),
        ("server.py", "server.py"),
        ("comfy_api/input_impl.py", "comfy_api/latest/_input_impl/video_types.py"),
    ],
)
def test_doubles_have_the_functions_of_the_real_comfyui(double: str, real: str):
    ours, theirs = functions(DOUBLES / double), functions(Path(os.environ["COMFYUI_DIR"]) / real)
    assert ours
    for name, parameters in ours.items():
        if name != "PromptServer.__init__":  # tests alone make one
            assert theirs[name] == parameters, name


def test_doubles_have_nothing_else(comfy: Comfy):
    with pytest.raises(AttributeError):
        comfy.model_management.unload_all_models()
    with pytest.raises(AttributeError):
        comfy.server.PromptServer.instance.send_sync("x", {})
    assert importlib.util.find_spec("comfy.sd") is None
