"""Where the models are: the folders of Triton's model repositories, each of which must have a name of its own."""

import os
from collections.abc import Iterable
from pathlib import Path

EXPORT_FILE = "pipeline.json"
"""What the export writes into each version of a model, and nothing else does."""


class DuplicateModel(ValueError):
    """Two repositories hold a model of the same name."""


def model_folders(repositories: Iterable[Path]) -> dict[str, list[Path]]:
    """The folders of all models by name, in the order of the repositories; usually one each.

    Repositories that cannot be read are passed over, and so are folders that `is_model_name` does not take. A link that
    leads nowhere counts as a folder. Bytes of a name that are not UTF-8 are shown as a backslash and their code.
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
    """Whether a folder of this name in a model repository is taken for a model."""
    return not name.startswith((".", "__")) and name != "lost+found"


def is_dead_link(path: Path) -> bool:
    """Whether a path is a link that leads nowhere, or to itself."""
    return os.path.islink(path) and not os.path.exists(path)


def check_unique(repositories: Iterable[Path]) -> None:
    """Check that no two repositories hold a model of the same name: Triton would serve neither, or either.

    Raises:
        DuplicateModel: they do; the message names both folders, and the one to delete.
    """
    for name, folders in model_folders(dict.fromkeys(path.resolve() for path in repositories)).items():
        if len(folders) > 1:
            kept, other = folders[:2]
            if is_exported(kept) and (not is_exported(other) or _age(kept) < _age(other)):
                other = kept
            raise DuplicateModel(
                f"two model repositories hold a model named {name!r}: {folders[0]} and {folders[1]}; delete {other}"
            )


def is_exported(folder: Path) -> bool:
    """Whether the export made a model's folder, so that it can be made again."""
    return any(folder.glob(f"*/{EXPORT_FILE}"))


def _age(folder: Path) -> float:
    """The time of the newest file that tells a model's age, in seconds; 0 where there is none."""
    return max((file.stat().st_mtime for file in folder.glob("config.pbtxt")), default=0)
