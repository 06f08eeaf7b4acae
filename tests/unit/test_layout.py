"""The layout of the code, as far as `lint-imports` does not check it: allowed imports, models, names of files."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import ROOT

# Not comfyui: ComfyUI loads it under any name. tests/unit/comfyui/test_pack.py has its rules.
BAD_NAMES = {"core", "common", "utils", "util", "managers", "manager", "services", "service", "base", "helpers", "misc"}
DOUBLES = Path("tests", "support", "comfyui", "doubles")  # their names are those of ComfyUI's modules

SHARED = {
    f"filmstrip.{name}" for name in ("errors", "geometry", "model_folders", "request_fields", "triton_server", "wire")
}
"""What both sides share: `lint-imports` can only forbid packages by their names, and here all others are forbidden."""


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports anywhere; of `from a import b` also a.b, if it is one of those shared."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in SHARED else str(node.module) for name in names)


def test_imports_are_read_as_python_does():
    source = "import os.path\nfrom filmstrip import wire, __version__\ndef f():\n    from numpy import array"
    assert set(imports(ast.parse(source))) == {"os.path", "filmstrip.wire", "filmstrip", "numpy"}


@pytest.mark.parametrize("module", sorted(SHARED))
def test_what_both_sides_share_imports_the_standard_library_numpy_and_each_other(module: str):
    found = set(imports(ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())))
    allowed = {*sys.stdlib_module_names, "numpy"}
    assert not {name for name in found if name.partition(".")[0] not in allowed and name not in SHARED}


def test_models_are_thin():
    models = list((ROOT / "model_repository").rglob("*.py"))
    assert models
    for path in models:
        names = list(imports(ast.parse(path.read_text())))
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
