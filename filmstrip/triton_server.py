"""How tritonserver is started for Filmstrip, wherever it runs: its flags, its secret, and its private folder.

Triton's Python backend starts each model's process with `bash -c "exec STUB MODEL.py ..."` and quotes nothing. So
Triton only sees links in a folder of ours, whose path has nothing in it that a shell reads. The folder is open to its
owner alone, so the Unix socket in it is too.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from filmstrip.model_folders import model_folders

SECRET_NAME = "filmstrip"  # noqa: S105  name of the header in Triton's flag; on the wire it has a prefix
SECRET_HEADER = f"triton-grpc-protocol-{SECRET_NAME}"
RESTRICTED = "health,metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging"
"""All protocols of the gRPC port: each needs the secret."""
ALL_MODELS = ("*",)
NO_PROXY = ("grpc.enable_http_proxy", 0)
"""Channel argument of every gRPC client: never go through the environment's web proxy to reach Triton."""

PREFIX = "filmstrip-triton-"
SOCKET_BYTES = 107  # the longest path of a Unix socket, as Linux and gRPC have it
_PORT = 1  # Triton appends it to the address; with a path in front, it is part of the file's name
_SAFE_PATH = re.compile(r"/[A-Za-z0-9/._+-]*")
_SAFE_MODEL = re.compile(r"[A-Za-z0-9_.+@,:-]+")
_RANDOM_CHARACTERS = 8  # of tempfile.mkdtemp


def flags(
    repositories: Sequence[Path],
    *,
    address: str,
    port: int,
    shm_prefix: str,
    exit_timeout_s: int,
    secret: str = "",
    models: Sequence[str] = ALL_MODELS,
    metrics_port: int | None = None,
    backends: Path | None = None,
) -> list[str]:
    """The flags that all versions of tritonserver take.

    Args:
        repositories: folders of models.
        address: to listen on.
        port: of gRPC; there is no HTTP.
        shm_prefix: of the names of the models' own shared memory.
        exit_timeout_s: how long Triton waits for open sequences when it stops.
        secret: secret that every call must carry; empty for none.
        models: models to load at the start; others are loaded on request.
        metrics_port: port of Triton's own metrics, which need no secret; None for none.
        backends: folder of the backends, if it is not Triton's own.
    """
    chosen = [f"--model-repository={folder}" for folder in repositories]
    if backends is not None:
        chosen.append(f"--backend-directory={backends}")
    # Explicit: in other modes Triton refuses to load a model again.
    chosen += ["--model-control-mode=explicit", *(f"--load-model={model}" for model in models)]
    # One broken model must not fail the start, nor make the server unready.
    chosen += ["--exit-on-error=false", "--strict-readiness=false"]
    chosen += ["--allow-http=false", f"--grpc-address={address}", f"--grpc-port={port}"]
    if metrics_port is None:
        chosen.append("--allow-metrics=false")
    else:
        chosen += [f"--metrics-address={address}", f"--metrics-port={metrics_port}"]
    if secret:
        chosen.append(f"--grpc-restricted-protocol={RESTRICTED}:{SECRET_NAME}={secret}")
    return [
        *chosen,
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={64 * 2**20}",
    ]


# -- The private folder ------------------------------------------------------------------------------------------


class NoTritonFolder(OSError):
    """The folder cannot be made anywhere on this machine; the message says what was tried."""


class TritonFolder:
    """The folder of one tritonserver; other processes leave it alone while this one has it open.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._models: dict[str, Path] = {}
        self._models_lock = threading.Lock()

    @classmethod
    def create(cls) -> Self:
        """Make a folder in `$XDG_RUNTIME_DIR` or /tmp, and remove those of processes that have ended.

        Raises:
            NoTritonFolder: neither can hold one.
        """
        refusals = []
        for parent in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), "/tmp")):  # noqa: S108
            refusal = _refusal(parent)
            if refusal is None:
                sweep(Path(parent))
                try:
                    return cls(*_make(parent))
                except OSError as error:
                    refusal = str(error.strerror)
            refusals.append(f"{parent} ({refusal})")
        raise NoTritonFolder(
            f"Triton needs a private folder for its socket, but none can be made in {' or '.join(refusals)}"
        )

    @property
    def address(self) -> str:
        """The value of tritonserver's `--grpc-address`, together with `port`."""
        return f"unix:{self.path / 'grpc'}"

    @property
    def port(self) -> int:
        """The value of tritonserver's `--grpc-port`."""
        return _PORT

    @property
    def url(self) -> str:
        """The address for a gRPC client."""
        return f"{self.address}:{_PORT}"

    def link(self, target: Path, *names: str) -> Path:
        """Make a link to `target` at this place in the folder, and return its path."""
        return make_link(target, self.path.joinpath(*names))

    @property
    def models(self) -> Path:
        """The model repository in the folder, which `link_models` fills."""
        return self.path / "models"

    def link_models(self, repositories: Iterable[Path]) -> None:
        """Make a link to each model that Triton can start, and remove broken links.

        One broken link, or one name that is not UTF-8, in Triton's repository would keep Triton from listing any model.

        Raises:
            OSError: a link cannot be made or removed.
        """
        with self._models_lock:
            self.models.mkdir(mode=0o700, exist_ok=True)
            for name, target in list(self._models.items()):
                if not os.path.isdir(target):
                    (self.models / name).unlink(missing_ok=True)
                    del self._models[name]
            for name, folders in model_folders(repositories).items():
                target = folders[0]
                if name not in self._models and is_safe_model(name) and os.path.isdir(target):
                    make_link(target, self.models / name)
                    self._models[name] = target

    def renew(self) -> None:
        """Make the folder again if it was removed, and remove what an ended Triton left in it.

        Raises:
            OSError: it can't be made, or something else is in its place.
        """
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        fd = _open_own(self.path)
        if not os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fd, self._fd = self._fd, fd
        os.close(fd)
        (self.path / f"grpc:{_PORT}").unlink(missing_ok=True)
        with self._models_lock:
            shutil.rmtree(self.models, ignore_errors=True)
            self._models.clear()

    def keep_open(self) -> None:
        """Keep the folder locked across an exec of this process."""
        os.set_inheritable(self._fd, True)

    def remove(self) -> None:
        """Remove the folder, but not the targets of its links."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._fd)


def make_link(target: Path, link: Path) -> Path:
    """Make or replace a link to `target`, whose own links are not resolved, since they may change later."""
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.abspath(target))
    return link


def sweep(parent: Path) -> None:
    """Remove our own folders in `parent` that no process has open."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, in use, or just removed
            fd = _open_own(path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(fd)


def is_safe_model(name: str) -> bool:
    """Whether Triton can start a model of this name: it passes through a shell, and ASCII-only Python code."""
    return _SAFE_MODEL.fullmatch(name) is not None


def is_safe_path(path: Path) -> bool:
    """Whether a shell reads this path literally."""
    return _SAFE_PATH.fullmatch(str(path)) is not None


def unsafe_models(repository: Path) -> list[str]:
    """Names of the models in a repository that Triton cannot start."""
    return sorted(
        folder.name
        for folder in repository.iterdir()
        if not is_safe_model(folder.name) and (os.path.exists(folder / "config.pbtxt") or os.path.exists(folder / "1"))
    )


def _make(parent: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Systemd's cleaning of /tmp leaves locked folders alone, too. Another process that sweeps right now may have
        # taken the folder for one that was left.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            fd = _open_own(path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return path, fd
            except OSError:
                os.close(fd)
                raise


def _open_own(path: Path) -> int:
    """Open a folder that belongs to this user and that no other user can access."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(fd)
        raise PermissionError(f"{path} is not a private folder of this user")
    return fd


def _refusal(parent: str) -> str | None:
    """Why the folder cannot be in `parent`; None if it can."""
    if _SAFE_PATH.fullmatch(parent) is None:
        return "its name has characters that a shell would read"
    longest = len(os.fsencode(parent)) + len(f"/{PREFIX}/grpc:{_PORT}") + _RANDOM_CHARACTERS
    if longest > SOCKET_BYTES:
        return "its name is too long for a Unix socket"
    try:
        found = os.stat(parent)
    except OSError as error:
        return str(error.strerror)
    others_may_rename = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if found.st_uid not in (os.geteuid(), 0) or others_may_rename:
        return "other users can change it"
    return None
