"""The Triton in the `nvidia-pytriton` wheel: where it is, and whether it can run here."""

import importlib.util
import os
import sys
from pathlib import Path

from filmstrip.model_folders import DuplicateModel, check_unique
from filmstrip.triton_server import NoTritonFolder, TritonFolder, make_link

from ..settings import MODELS_DIR, Settings

STUB = "triton_python_backend_stub"
"""The program that runs each model in a process of its own."""


class EmbeddedUnsupported(RuntimeError):
    """This machine cannot run the embedded Triton."""


def check(settings: Settings) -> None:
    """Check for whatever would keep the embedded Triton from starting.

    Raises:
        EmbeddedUnsupported: the wheel or a model repository is missing, two models have the same name, or there is no
            place for Triton's socket.
    """
    find_server()
    _check_repositories(settings.model_repository)
    bin_folder()
    try:
        TritonFolder.create().remove()
    except NoTritonFolder as error:
        raise EmbeddedUnsupported(str(error)) from None


def _check_repositories(repositories: tuple[Path, ...]) -> None:
    if MODELS_DIR in repositories:
        MODELS_DIR.mkdir(exist_ok=True)  # so that models exported while the server runs are found
    for folder in repositories:
        if not folder.is_dir():
            raise EmbeddedUnsupported(
                f"model repository {folder} does not exist (FILMSTRIP_MODEL_REPOSITORY is split at colons; pass a path "
                "that contains a colon as --model-repository)"
            )
    try:
        check_unique(repositories)
    except DuplicateModel as error:
        raise EmbeddedUnsupported(str(error)) from None


def find_server() -> Path:
    """The folder of the wheel's Triton.

    Raises:
        EmbeddedUnsupported: the wheel is not installed, or does not support this machine.
    """
    spec = importlib.util.find_spec("pytriton")
    folders = spec.submodule_search_locations if spec else None
    server = Path(folders[0]) / "tritonserver" if folders else None
    if server is None or not (server / "bin" / "tritonserver").is_file():
        raise EmbeddedUnsupported(
            "--embedded needs the nvidia-pytriton wheel, which exists only for Linux on x86-64: install "
            "filmstrip[server] there, or run Triton in a container and set FILMSTRIP_TRITON_URL"
        )
    stub = server / "python_backend_stubs" / _python_version() / STUB
    if not stub.is_file():
        raise EmbeddedUnsupported(f"the embedded Triton has no Python backend for Python {_python_version()}")
    return server


def link_backends(server: Path, folder: Path) -> Path:
    """Create a backends folder of links: the stub must be next to the library, and a copy of it would not start."""
    stub = server / "python_backend_stubs" / _python_version() / STUB
    for file in (*(server / "backends" / "python").iterdir(), stub):
        if file.is_file():
            make_link(file, folder / "python" / file.name)
    return folder


def bin_folder() -> str:
    """The folder of the running Python, for PATH.

    Raises:
        EmbeddedUnsupported: PATH cannot contain it.
    """
    folder = str(Path(sys.executable).parent)
    if os.pathsep in folder:
        raise EmbeddedUnsupported(
            f"Python's folder, {folder}, has a colon in its name, so that the models cannot find Python in PATH; "
            "move the virtual environment to a folder without a colon"
        )
    return folder


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
