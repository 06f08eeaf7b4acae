"""The layout of the code, as far as `lint-imports` does not check it: models that are no packages, names of files."""

import ast
from pathlib import Path

from tests.support.server import ROOT

# Not comfyui: ComfyUI loads it under any name. tests/unit/comfyui/test_pack.py has its rules.
BAD_NAMES = {"core", "common", "utils", "util", "managers", "manager", "services", "service", "base", "helpers", "misc"}
DOUBLES = Path("tests", "support", "comfyui", "doubles")  # their names are those of ComfyUI's modules


def test_models_are_thin():
    models = list((ROOT / "model_repository").rglob("*.py"))
    assert models
    for path in models:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(f"{name}.".startswith("filmstrip.runtime.") for name in names), f"{path} imports {names}"


def test_files_are_named_for_what_they_hold():
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    paths = [path.relative_to(ROOT) for folder in folders for path in folder.rglob("*.py")]
    assert paths
    found = [
        str(path)
        for path in paths
        if not path.is_relative_to(DOUBLES) and BAD_NAMES & {part.removesuffix(".py").strip("_") for part in path.parts}
    ]
    assert not found
