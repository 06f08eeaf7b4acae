"""The model folders of the embedded Triton: the pipeline in each, and why Triton cannot load one."""

import os
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from filmstrip.contract import PipelineSpec
from filmstrip.model_folders import is_dead_link, model_folders
from filmstrip.triton_server import is_safe_model

from ..model_registry import UNSAFE_NAME, Fingerprint, ModelFolder
from ..triton import public_reason

CONFIG = "config.pbtxt"
_LARGEST_CONFIG = 4 * 2**20  # bytes
_VERSION = re.compile(r"[1-9][0-9]*")


def read_folders(repositories: Iterable[Path], names: Collection[str] | None = None) -> dict[str, ModelFolder]:
    """Read the folders of all models, or of those in `names`, by name."""
    found = model_folders(repositories)
    return {name: _read(name, folders) for name, folders in found.items() if names is None or name in names}


def model_names(repositories: Iterable[Path]) -> set[str]:
    """The names of all models."""
    return set(model_folders(repositories))


def _read(name: str, folders: list[Path]) -> ModelFolder:
    folder = folders[0]
    if is_dead_link(folder) or not is_safe_model(name):
        return ModelFolder(
            frozenset(), "its folder is a link that leads nowhere" if is_safe_model(name) else UNSAFE_NAME
        )
    fingerprint = _fingerprint(folder)
    if len(folders) > 1:
        return ModelFolder(
            fingerprint, "two model repositories hold a model of this name; delete one and start the server again"
        )
    try:
        config = _read_config(folder)
        _check_version(folder, config)
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        spec = PipelineSpec.from_parameters(folder.name, parameters)
    except OSError as error:
        return ModelFolder(fingerprint, f"{Path(error.filename or folder).name} cannot be read: {error.strerror}")
    except ValueError as error:
        return ModelFolder(fingerprint, public_reason(str(error), [folder.parent]))
    except RecursionError:
        return ModelFolder(fingerprint, f"{CONFIG} cannot be parsed: it is nested too deeply")
    return ModelFolder(fingerprint, spec=spec)


def _read_config(folder: Path) -> ModelConfig:
    """Read the configuration as Triton does.

    Raises:
        OSError, ValueError: Triton cannot use it.
    """
    try:
        text = _read_regular(folder / CONFIG).decode()
    except FileNotFoundError:
        raise ValueError(f"its folder has no {CONFIG}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{CONFIG} is not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"{CONFIG} is empty")
    if text.startswith("\ufeff"):
        raise ValueError(f"{CONFIG} begins with a byte order mark, which Triton cannot read: save it as plain UTF-8")
    try:
        config = text_format.Parse(text, ModelConfig(), allow_unknown_field=True)
    except text_format.ParseError as error:
        line = f"line {error.GetLine()}: " if error.GetLine() else ""
        what = str(error).partition(" : ")[2] or str(error)
        raise ValueError(f"{CONFIG} cannot be parsed: {line}{what}") from None
    if config.name not in ("", folder.name):
        raise ValueError(f"{CONFIG} names the model {config.name!r}, but its folder is {folder.name!r}")
    return config


def _read_regular(path: Path) -> bytes:
    """Read a regular file; a pipe or a device could block forever.

    Raises:
        OSError, ValueError: there is no such file, or it is too large.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        content = file.read(_LARGEST_CONFIG + 1)
    if len(content) > _LARGEST_CONFIG:
        raise ValueError(f"{path.name} is larger than {_LARGEST_CONFIG // 2**20} MiB")
    return content


def _check_version(folder: Path, config: ModelConfig) -> None:
    """Check that there is a version with code; without one, Triton may wait forever.

    Raises:
        OSError, ValueError: there is not.
    """
    versions = [version for version in folder.iterdir() if _VERSION.fullmatch(version.name) and os.path.isdir(version)]
    if not versions:
        raise ValueError("its folder has no version folder, which is named by a number, such as 1")
    if config.version_policy.HasField("specific"):
        allowed = {str(version) for version in config.version_policy.specific.versions}
        versions = [version for version in versions if version.name in allowed]
        if not versions:
            numbers = " or ".join(sorted(allowed)) or "none"
            raise ValueError(
                f"the version_policy in {CONFIG} asks for version {numbers}, which its folder does not have"
            )
    newest = max(versions, key=lambda version: (len(version.name), version.name))
    code = config.default_model_filename or "model.py"
    if config.backend == "python" and not (newest / code).is_file():
        raise ValueError(f"its version folder {newest.name} has no {code}")


def _fingerprint(folder: Path) -> Fingerprint:
    found = set()
    for path in folder.rglob("*"):
        if "__pycache__" not in path.parts:
            try:
                status = path.stat()
            except OSError:  # it was removed just now
                continue
            found.add((str(path.relative_to(folder)), status.st_mtime_ns, status.st_size))
    return frozenset(found)
