"""`python -m tools.release_check`: build the package, install it as a user does and generate a video.

The wheel is installed into an empty environment twice: alone, where it must be the client without the server; then with
the `server` extra, where `filmstrip serve` must start a Triton in an empty folder and generate a video. This takes
minutes and needs a package index.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "demo" / "big_buck_bunny.mp4"
SERVER_PACKAGES = ("quart", "hypercorn", "tritonclient", "pytriton", "torch", "cv2")
START_S = 120.0
STOP_S = 20.0


class CheckFailed(click.ClickException):
    """The package is not ready for a release."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Build the wheel, install it into an empty environment, and generate a video with `filmstrip serve`."""
    with tempfile.TemporaryDirectory(prefix="filmstrip-release-") as folder:
        wheel = build(Path(folder) / "dist")
        check_contents(wheel)
        bin_folder = environment(Path(folder) / "venv")
        install(bin_folder, str(wheel))
        check_client(bin_folder, Path(folder))
        install(bin_folder, f"{wheel}[server]")
        check_server(bin_folder, Path(folder))
    click.echo(f"{wheel.name} is ready for a release")


def build(folder: Path) -> Path:
    """Build the source distribution and from it the wheel, check both with twine, and return the wheel."""
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, folder.iterdir()))
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Check for one top-level package, with a type marker and the model folders of the frame processors."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    if tops != {"filmstrip"}:
        raise CheckFailed(f"the wheel has the top-level packages {sorted(tops)}")
    expected = {
        "filmstrip/py.typed",
        *(
            f"filmstrip/{path.relative_to(ROOT)}"
            for pattern in ("config.pbtxt", "1/model.py")
            for path in (ROOT / "model_repository").glob(f"*/{pattern}")
        ),
    }
    if missing := expected - set(names):
        raise CheckFailed(f"the wheel lacks {sorted(missing)}")


def environment(folder: Path) -> Path:
    """Create an empty virtual environment; its `bin` folder."""
    venv.create(folder, with_pip=True)
    return folder / "bin"


def install(bin_folder: Path, requirement: str) -> None:
    """Install from the package index, as a user does."""
    run(str(bin_folder / "pip"), "install", "--quiet", requirement)


def check_client(bin_folder: Path, folder: Path) -> None:
    """Check that the client works without the server, and that `filmstrip serve` says how to install it."""
    code = f"""
import importlib.util, filmstrip.client
found = [name for name in {SERVER_PACKAGES} if importlib.util.find_spec(name)]
assert not found, f"the client also installs {{found}}"
"""
    run(str(bin_folder / "python"), "-c", code, cwd=folder)
    run(str(bin_folder / "filmstrip"), "--version", cwd=folder)
    answer = subprocess.run(
        [bin_folder / "filmstrip", "serve"],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 1 or "pip install 'filmstrip[server]'" not in answer.stderr:
        raise CheckFailed(f"`filmstrip serve` without the server: {answer.returncode}, {answer.stderr}")


def check_server(bin_folder: Path, folder: Path) -> None:
    """Check that `filmstrip serve --embedded` in an empty folder generates a video with a model of the wheel."""
    with serving(bin_folder, folder / "empty") as url:
        out = folder / "gray.mp4"
        command = ("generate", "--server", url, "--wait", "--pipeline", "gray", "--video", str(CLIP), "-o", str(out))
        run(str(bin_folder / "filmstrip"), *command, cwd=folder)
        if not out.stat().st_size:
            raise CheckFailed("the video is empty")


@contextmanager
def serving(bin_folder: Path, folder: Path) -> Iterator[str]:
    """Run a server in an empty folder; its URL."""
    folder.mkdir()
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        command = [str(bin_folder / "filmstrip"), "serve", "--embedded", "--port", "0"]
        server = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=output, stderr=output)
    try:
        yield wait_for_url(server, log)
        server.send_signal(signal.SIGTERM)
        if server.wait(STOP_S) != 0:
            raise CheckFailed(f"the server ended with status {server.returncode}:\n{log.read_text()[-4000:]}")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def wait_for_url(server: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait for the address in the server's log."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"listens on (http://[\w.:]+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise CheckFailed(f"the server did not start:\n{log.read_text()[-4000:]}")


def run(*command: str, cwd: Path = ROOT) -> None:
    """Run a command; its failure fails the check."""
    click.echo(f"$ {' '.join(command)}")
    done = subprocess.run(command, cwd=cwd, env=clean_environment(), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CheckFailed(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def clean_environment() -> dict[str, str]:
    """The environment, without variables that lead to this checkout or to another server."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and "FILMSTRIP_" not in name}


if __name__ == "__main__":
    main()
