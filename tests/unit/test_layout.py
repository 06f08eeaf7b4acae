"""The layout of the code: which way imports run, what modules are called."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "filmstrip",
    "frontend",
    "model_repository",
    "demo",
    "deploy",
    "examples",
    "export",
    "research",
    "benchmarks",
    "comfyui",
    "tests",
)
BAD_NAMES = {"core", "common", "utils", "util", "managers", "manager", "services", "service", "base", "helpers", "misc"}

PURE = {
    f"filmstrip.{name}"
    for name in (
        *("contract", "geometry", "cache_policy", "errors", "wire", "model_folders", "triton_server"),
        *(f"runtime.engines.{name}" for name in ("manifest",)),
    )
}

GRAPH_RUNNERS = ("onnxruntime", "tensorrt", "tensorrt_rtx")

FRONTEND_ORDER = (
    # Lowest first: a module imports only from those above its own line.
    "hosts",
    "settings",
    "tasks",
    "logs",
    "metrics",
    "schema",
    "events",
    "auth",
    "connection",
    "image_worker",
    "protocol",
    "array_plan",
    "plan",
    "repository",
    "launcher",
    "relay",
    "triton",
    "model_registry",
    "store",
    "images",
    "staging",
    "request_check",
    "generation",
    "slot",
    "watch",
    "embedded",
    "bodies",
    "download",
    "openapi",
    "pipeline_loads",
    "state",
    "routes",
    "app",
    "__main__",
)


def sources(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Not comfyui: ComfyUI loads it under any name, so its imports are relative.
# tests/unit/comfyui/test_pack.py has its rules.
MODULES = {
    module_name(path): path
    for path in sources("filmstrip", "frontend", "demo", "deploy", "examples", "export", "research", "benchmarks")
}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere; of `from a import b` both a.b, if a module, and a."""
    return set(_imported(ast.parse(path.read_text(), str(path)), module_name(path.parent)))


def _imported(tree: ast.AST, package: str = "") -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"line {node.lineno}: imports from a parent package are absolute here"
            module = ".".join(filter(None, (package if node.level else "", node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name in MODULES)
            if not all(name in MODULES for name in names):
                yield module


def is_within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def breaches(modules: list[str], *forbidden: str) -> list[str]:
    """Where one of the modules imports from a forbidden package."""
    return [
        f"{module} imports {imported}"
        for module in modules
        for imported in sorted(imports(MODULES[module]))
        if is_within(imported, *forbidden)
    ]


def of(package: str) -> list[str]:
    modules = [module for module in MODULES if is_within(module, package)]
    assert modules, f"no modules in {package}"
    return modules


def test_imports_are_read_as_python_does():
    tree = ast.parse("import os.path\nfrom frontend import plan, __version__\ndef f():\n    from numpy import array")
    assert set(_imported(tree)) == {"os.path", "frontend.plan", "frontend", "numpy"}


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_import_the_standard_library_numpy_and_each_other(module: str):
    allowed = {*sys.stdlib_module_names, "numpy"}
    others = {name for name in imports(MODULES[module]) if name.partition(".")[0] not in allowed and name not in PURE}
    assert not others


def test_filmstrip_knows_nothing_of_those_that_use_it():
    assert not breaches(of("filmstrip"), "frontend", "export", "research", "demo", "examples", "tests", "benchmarks")


def test_nothing_in_the_product_imports_the_research_or_the_examples():
    users = {"research", "examples"}
    product = [module for module in MODULES if module.partition(".")[0] not in users]
    assert not breaches(product, *users)


def test_the_client_needs_nothing_that_runs_in_triton():
    client = [module for module in of("filmstrip") if not is_within(module, "filmstrip.runtime")]
    assert not breaches(client, "filmstrip.runtime", "torch", "cv2", "tritonclient", "quart", "pydantic")


def test_the_runtime_knows_nothing_of_http():
    assert not breaches(of("filmstrip.runtime"), "frontend", "httpx", "httpx_sse", "quart", "tritonclient")
    assert not breaches(of("filmstrip.runtime"), "filmstrip.client", "filmstrip.connection")


def test_what_runs_graphs_stays_behind_the_engines():
    others = [module for module in of("filmstrip") if not is_within(module, "filmstrip.runtime.engines")]
    assert not breaches(others, *GRAPH_RUNNERS)


def test_one_file_knows_tritons_python_api():
    files = sources("filmstrip", "frontend", "model_repository", "demo", "export", "benchmarks")
    who = [str(path.relative_to(ROOT)) for path in files if "triton_python_backend_utils" in imports(path)]
    assert who == ["filmstrip/runtime/triton_model.py"]


def test_the_frontend_runs_no_models():
    assert not breaches(of("frontend"), "torch", "cv2", *GRAPH_RUNNERS, "filmstrip.runtime", "demo", "tests")


def test_every_frontend_module_has_its_place():
    modules = sorted(module.removeprefix("frontend.") for module in of("frontend") if module != "frontend")
    assert sorted(FRONTEND_ORDER) == modules


@pytest.mark.parametrize("name", FRONTEND_ORDER)
def test_frontend_imports_run_downward(name: str):
    below = {f"frontend.{other}" for other in FRONTEND_ORDER[: FRONTEND_ORDER.index(name)]}
    imported = {module for module in imports(MODULES[f"frontend.{name}"]) if is_within(module, "frontend")}
    assert imported <= below, f"frontend.{name} imports upward: {sorted(imported - below)}"


def test_models_are_thin():
    for path in sources("model_repository"):
        others = [name for name in imports(path) if not is_within(name, "filmstrip.runtime")]
        assert not others, f"{path.relative_to(ROOT)} imports {others}"


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_named_for_what_they_hold(path: Path):
    if path.is_relative_to(ROOT / "tests" / "support" / "comfyui" / "doubles"):
        return  # their names are those of ComfyUI's modules
    assert not BAD_NAMES & {part.removesuffix(".py").strip("_") for part in path.relative_to(ROOT).parts}
