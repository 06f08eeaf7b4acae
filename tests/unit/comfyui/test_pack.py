"""The pack as ComfyUI sees it: it loads from any folder, alone, and says of its nodes what ComfyUI wants to know."""

import ast
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
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
    theirs = {"comfy", "comfy_api", "folder_paths", "server"}
    allowed = {*sys.stdlib_module_names, *theirs, "numpy", "PIL", "av", "torch", "aiohttp"}
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


def test_the_ids_of_nodes_never_change():
    assert set(NODES) >= {
        "FilmstripServer",
        "FilmstripPipeline",
        "FilmstripPromptSchedule",
        "FilmstripChunkSpec",
        "FilmstripLora",
        "FilmstripGenerate",
        "FilmstripGenerateVideo",
        "FilmstripExample",
    }


@every_node
def test_a_node_fits_on_the_screen(name: str):
    types = NODES[name].INPUT_TYPES()
    inputs = {**types["required"], **types.get("optional", {})}
    open_inputs = {key: options for key, (_, options) in inputs.items() if not options.get("advanced")}
    boxes = [key for key, options in open_inputs.items() if options.get("multiline")]
    assert len(boxes) <= 1, "one box for texts; others are folded away or come by a link"
    assert len(open_inputs) <= 20


def test_the_registry_gets_the_version_and_no_requirements():
    pack = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert pack["project"]["name"] == "comfyui-filmstrip"
    assert pack["project"]["version"] == comfyui.__version__
    assert pack["project"]["dependencies"] == []
    assert pack["project"]["urls"]["Repository"].startswith("https://")
    assert (PACK / "LICENSE").read_text() == (ROOT / "LICENSE").read_text(), "the folder goes alone"
    assert set(pack["tool"]["comfy"]) >= {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}
    assert pack["tool"]["comfy"]["Icon"].endswith("/icon.png")
    assert (PACK / "icon.png").is_file()
    requirements = (PACK / "requirements.txt").read_text().splitlines()
    assert [line for line in requirements if not line.startswith("#")] == []


def test_what_comfyui_and_its_registry_read_without_running_it_is_literal():
    tree = ast.parse((PACK / "__init__.py").read_text())
    values = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert ast.literal_eval(values["WEB_DIRECTORY"]) == "./web"
    found = {}
    for path in PACK.glob("nodes_*.py"):
        for node in ast.parse(path.read_text()).body:
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "SEARCH_ALIASES":
                    found[node.name] = ast.literal_eval(line.value)
    assert set(found) == set(NODES)
    assert all(isinstance(aliases, list) for aliases in found.values())


def test_links_of_the_readme_hold_in_the_folder_alone():
    links = re.findall(r"\]\(([^)]+)\)", (PACK / "README.md").read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (PACK / link).exists(), link
        assert not link.startswith(".."), link


def test_each_node_has_a_help_page():
    assert {path.stem for path in (PACK / "web" / "docs").iterdir()} == set(NODES)


GIT_CORE = Path(subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())


@pytest.mark.skipif(not (GIT_CORE / "git-subtree").is_file(), reason="git subtree is not installed")
def test_the_branch_for_comfyui_is_the_folder_alone(tmp_path: Path):
    repository = tmp_path / "repository"
    shutil.copytree(PACK, repository / "comfyui", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", repository)
    who = ["-c", "user.name=tests", "-c", "user.email=tests@example.test"]
    for command in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "-m", "All"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    made = subprocess.run(
        ["make", "comfyui-branch"], cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    folder = tmp_path / "custom_nodes"
    command = ["git", "clone", "--quiet", "--branch", "comfyui-pack", str(repository), str(folder)]
    subprocess.run(command, check=True, timeout=60)
    names = {path.name for path in folder.iterdir()} - {".git"}
    assert names == {path.name for path in PACK.iterdir()} - {"__pycache__"}
    assert not (ROOT / "__init__.py").exists(), "ComfyUI would take the whole repository for a pack"


@pytest.mark.skipif(shutil.which("comfy") is None, reason="comfy-cli is not installed")
def test_the_registry_accepts_the_pack(tmp_path: Path):
    folder = tmp_path / "pack"
    shutil.copytree(PACK, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for command in (["git", "init", "--quiet"], ["git", "add", "."]):
        subprocess.run(command, cwd=folder, check=True)
    for word in ("validate", "pack"):
        answer = subprocess.run(
            ["comfy", "--skip-prompt", "--no-enable-telemetry", "node", word],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
    with zipfile.ZipFile(folder / "node.zip") as archive:
        names = set(archive.namelist())
    assert {"__init__.py", "example_workflows/text_to_video.json", "web/filmstrip.js", "icon.png"} <= names


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
