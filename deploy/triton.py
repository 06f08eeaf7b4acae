"""`python -m deploy.triton`: start tritonserver with the flags that Filmstrip needs, and ask whether it is ready."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from filmstrip import triton_server
from filmstrip.model_folders import DuplicateModel, check_unique
from filmstrip.triton_server import NoTritonFolder, TritonFolder, is_safe_model, is_safe_path, unsafe_models

SHM_DIR = Path("/dev/shm")  # noqa: S108
SHM_PREFIX = "filmstrip-triton-"
EXIT_TIMEOUT_S = 5
_MODEL_FOLDERS = ("model_repository", "models")

_secret_file = click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the secret that every call must carry.  [default: no secret]",
)
_port = click.option("--port", type=int, default=8001, show_default=True, help="gRPC port.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Start an external Triton for Filmstrip and check its health."""


@main.command()
@click.option(
    "--models",
    "repositories",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="Model repository; repeatable.  [default: model_repository and models, if they exist]",
)
@click.option(
    "--load",
    "models",
    multiple=True,
    default=triton_server.ALL_MODELS,
    show_default=True,
    help="Model to load at startup; repeatable. Others are loaded on demand.",
)
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@_port
@click.option("--metrics-port", type=int, help="Port of Triton's metrics.  [default: none]")
@_secret_file
@click.option("--server", default="tritonserver", show_default=True, help="The tritonserver binary.")
@click.option(
    "--backends",
    type=click.Path(exists=True, path_type=Path),
    help="Folder of the backends.  [default: tritonserver's default]",
)
@click.option(
    "--shm-prefix",
    default=SHM_PREFIX,
    show_default=True,
    help="Prefix of shared memory names; must be unique on the machine.",
)
def start(
    *,
    repositories: tuple[Path, ...],
    models: tuple[str, ...],
    address: str,
    port: int,
    metrics_port: int | None,
    secret_file: Path | None,
    server: str,
    backends: Path | None,
    shm_prefix: str,
) -> None:
    """Replace this process with tritonserver."""
    binary = shutil.which(server)
    if binary is None:
        raise click.ClickException(f"there is no {server}: give --server, or run this in Triton's container")
    repositories = repositories or tuple(filter(Path.is_dir, map(Path, _MODEL_FOLDERS)))
    if not repositories:
        raise click.ClickException(f"there is no folder {' or '.join(_MODEL_FOLDERS)} here: give --models")
    try:
        check_unique(repositories)
    except DuplicateModel as error:
        raise click.ClickException(str(error)) from None
    _check_names(repositories, shm_prefix)
    repositories, backends = _shell_safe(repositories, backends)
    flags = triton_server.flags(
        repositories,
        address=address,
        port=port,
        shm_prefix=shm_prefix,
        exit_timeout_s=EXIT_TIMEOUT_S,
        secret=_read_secret(secret_file),
        models=models,
        metrics_port=metrics_port,
        backends=backends,
    )
    # Clients that carry the secret may have their memory mapped. Before 26.04 there is no such flag, and any may.
    if "--allow-client-shm" in _help(binary):
        flags.append("--allow-client-shm=true")
    for left in SHM_DIR.glob(f"{shm_prefix}*"):  # by a Triton that was killed
        left.unlink(missing_ok=True)
    sys.stdout.flush()
    # The models find their packages through the python3 that comes first: ours.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    os.execve(binary, [binary, *flags], os.environ | {"PATH": path})  # noqa: S606


@main.command()
@_port
@_secret_file
def health(*, port: int, secret_file: Path | None) -> None:
    """Exit with status 0 if the Triton on this machine is ready, otherwise 1."""
    secret = _read_secret(secret_file)
    headers = {triton_server.SECRET_HEADER: secret} if secret else None
    try:
        address = f"127.0.0.1:{port}"
        with triton_grpc.InferenceServerClient(address, channel_args=[triton_server.NO_PROXY]) as client:
            is_ready = client.is_server_ready(headers, client_timeout=5)
    except InferenceServerException as error:
        raise click.ClickException(str(error.message())) from None
    if not is_ready:
        raise click.ClickException("not ready")


def _check_names(repositories: tuple[Path, ...], shm_prefix: str) -> None:
    """Refuse what Triton would fail over without saying why.

    Raises:
        click.ClickException: a name that no link can stand in for.
    """
    if not is_safe_model(shm_prefix):
        raise click.ClickException("--shm-prefix may only have the letters A-Z and a-z, digits and . _ - + @ , :")
    for folder in repositories:
        for model in unsafe_models(folder):
            raise click.ClickException(
                f"{folder / model}: the name of a model's folder may only have the letters A-Z and a-z, digits and "
                ". _ - + @ , :"
            )
    python = Path(sys.executable).parent
    if os.pathsep in str(python):
        raise click.ClickException(
            f"the folder of Python, {python}, has a colon in its name, so the models cannot find it in PATH; move it"
        )


def _shell_safe(repositories: tuple[Path, ...], backends: Path | None) -> tuple[tuple[Path, ...], Path | None]:
    """Put links in place of folders whose path Triton's shell would read otherwise.

    Their folder outlives us, as we become tritonserver; the next start removes it.

    Raises:
        click.ClickException: there is no place for links.
    """
    folders = [folder.absolute() for folder in (*repositories, *filter(None, [backends]))]
    if all(map(is_safe_path, folders)):
        return repositories, backends
    try:
        links = TritonFolder.create()
    except NoTritonFolder as error:
        raise click.ClickException(str(error)) from None
    links.keep_open()
    safe = tuple(links.link(folder, "models", str(number)) for number, folder in enumerate(repositories))
    return safe, None if backends is None else links.link(backends, "backends")


def _read_secret(file: Path | None) -> str:
    """The secret, or nothing where no file is given.

    Raises:
        click.ClickException: the file is empty: whoever gives one does not mean that anybody may call.
    """
    if file is None:
        return ""
    secret = file.read_text("utf-8-sig").strip()
    if not secret:
        raise click.ClickException(f"{file} is empty")
    return secret


def _help(binary: str) -> str:
    done = subprocess.run([binary, "--help"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
