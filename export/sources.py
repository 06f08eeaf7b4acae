"""Where a released model's files come from: folders, files, and repositories of the Hugging Face hub."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import BadCheckpoint
from export.tensor_files import SUFFIXES, is_weight_file

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_JSON = ("config.json", "tokenizer.json", ".index.json")
_MAX_DEPTH = 3  # of folders below a source


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Attributes:
        name: its path in the source.
        source: the folder or hub id.
        size: in bytes; None if the hub doesn't say.
        path: on this machine, None if it is not downloaded yet.
    """

    name: str
    source: str
    size: int | None
    path: Path | None


@dataclass(frozen=True)
class Source:
    """A folder, a single file or a repository of the hub, listed.

    Attributes:
        name: as given.
        files: weights and configurations in it.
        repository: hub id and revision, None for a folder.
    """

    name: str
    files: tuple[SourceFile, ...]
    repository: tuple[str, str | None] | None = None

    def file(self, name: str) -> SourceFile | None:
        """A file by its path in the source, or by the end of that path."""
        return next((file for file in self.files if f"/{file.name}".endswith(f"/{name}")), None)


def open_source(name: str) -> Source:
    """List a source.

    Raises:
        BadCheckpoint: there is no such folder, or the hub can't be reached or doesn't have it.
    """
    path = Path(name)
    if path.is_dir():
        found = sorted(file for file in _below(path, _MAX_DEPTH) if _is_interesting(file))
        files = (SourceFile(file.relative_to(path).as_posix(), name, file.stat().st_size, file) for file in found)
        return Source(name, tuple(files))
    if path.is_file():
        return Source(name, (SourceFile(path.name, name, path.stat().st_size, path),))
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise BadCheckpoint(f"{name} is neither a folder or file here nor a hub id such as Wan-AI/Wan2.1-T2V-1.3B")
    return _list_repository(name, match[1], match[2])


def _below(folder: Path, depth: int) -> list[Path]:
    files = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            files += _below(path, depth - 1) if depth else []
        else:
            files.append(path)
    return files


def _is_interesting(path: Path) -> bool:
    return is_weight_file(path) or (path.name.endswith(_JSON) and not path.name.startswith("."))


def _list_repository(name: str, repository: str, revision: str | None) -> Source:
    hub = _hub(repository)
    info = _ask(repository, lambda: hub.HfApi().model_info(repository, revision=revision, files_metadata=True))
    names = {one.rfilename: one.size for one in info.siblings or []}
    files = (
        SourceFile(file, name, size, None)
        for file, size in sorted(names.items())
        if file.endswith((*SUFFIXES, *_JSON)) and not any(part.startswith(".") for part in file.split("/"))
    )
    return Source(name, tuple(files), (repository, revision))


def download(source: Source, files: Sequence[SourceFile]) -> Source:
    """Download files of a repository, with progress; what is there already is kept, what was cut off goes on.

    Raises:
        BadCheckpoint: the hub can't be reached, or the download fails.
    """
    if source.repository is None:
        return source
    repository, revision = source.repository
    hub = _hub(repository)

    def fetch(file: SourceFile) -> SourceFile:
        local = _ask(repository, lambda: hub.hf_hub_download(repository, file.name, revision=revision))
        return SourceFile(file.name, file.source, file.size, Path(local))

    return Source(source.name, tuple(fetch(file) for file in files), source.repository)


def _hub(repository: str) -> Any:
    try:
        import huggingface_hub  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise BadCheckpoint(
            f"{repository} is not a folder here, and downloads need huggingface_hub: pip install huggingface_hub, "
            "or download the repository yourself and name its folder"
        ) from None
    return huggingface_hub


def _ask(repository: str, request: Callable[[], Any]) -> Any:
    """Run a request to the hub; its errors become ours."""
    try:
        return request()
    except Exception as error:  # the hub's library passes on those of its HTTP client and of the file system
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            why = "it does not exist, or needs a login: hf auth login"
        elif status == 404:
            why = "it does not exist on the hub, or has no such revision or file"
        elif isinstance(error, OSError) and status is None and "space" in str(error):
            why = str(error)
        else:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            why = f"the hub can't be reached ({reason}); once it can, the download goes on where it stopped"
        raise BadCheckpoint(f"{repository} can't be downloaded: {why}; or name a folder that has its files") from error
