"""The folders of the models in Triton's model repositories; each name must be unique."""

import os
from collections.abc import Iterable
from pathlib import Path

EXPORT_FILE = "pipeline.json"
"""Written by the export into each version of a model; nothing else writes it."""


class DuplicateModel(ValueError):
    """Two repositories have a model of the same name."""


def model_folders(repositories: Iterable[Path]) -> dict[str, list[Path]]:
    """The folders of all models by name, in the order of the repositories; usually one each.

    Unreadable repositories and folders that `is_model_name` rejects are skipped. A broken link counts as a folder.
    Bytes of a name that are not UTF-8 become a backslash and their code.
    """
    found: dict[str, list[Path]] = {}
    for repository in repositories:
        try:
            folders = sorted(folder for folder in repository.iterdir() if os.path.isdir(folder) or is_dead_link(folder))
        except OSError:
            continue
        for folder in folders:
            name = os.fsencode(folder.name).decode(errors="backslashreplace")
            if is_model_name(name):
                found.setdefault(name, []).append(folder)
    return found


def is_model_name(name: str) -> bool:
    """Whether a folder of this name in a model repository is a model."""
    return not name.startswith((".", "__")) and name != "lost+found"


def is_dead_link(path: Path) -> bool:
    """Whether a path is a broken link, or a link to itself."""
    return os.path.islink(path) and not os.path.exists(path)


def check_unique(repositories: Iterable[Path]) -> None:
    """Check that no two repositories have a model of the same name: Triton would serve one of them, or none.

    Raises:
        DuplicateModel: they do; the message names both folders and the one to delete.
    """
    for name, folders in model_folders(dict.fromkeys(path.resolve() for path in repositories)).items():
        if len(folders) > 1:
            kept, other = folders[:2]
            if is_exported(kept) and (not is_exported(other) or _age(kept) < _age(other)):
                other = kept
            raise DuplicateModel(
                f"two model repositories have a model named {name!r}: {folders[0]} and {folders[1]}; delete {other}"
            )


def is_exported(folder: Path) -> bool:
    """Whether the export wrote this folder, so that it can be written again."""
    return any(folder.glob(f"*/{EXPORT_FILE}"))


def _age(folder: Path) -> float:
    """The time of the model's config.pbtxt, in seconds; 0 if there is none."""
    return max((file.stat().st_mtime for file in folder.glob("config.pbtxt")), default=0)
