"""The private folder between Triton and what a user named: where it may be, and who may remove it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from filmstrip.triton_server import (
    SOCKET_BYTES,
    NoTritonFolder,
    TritonFolder,
    is_safe_model,
    is_safe_path,
    sweep,
    unsafe_models,
)


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_it_lies_in_the_runtime_folder_and_only_its_owner_can_open_it(runtime_dir: Path) -> None:
    folder = TritonFolder.create()
    assert folder.path.parent == runtime_dir
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert folder.url == f"unix:{folder.path}/grpc:1"
    odd = runtime_dir / "it's (odd) & $HOME; ü\n"
    odd.mkdir()
    link = folder.link(odd, "models", "0")
    assert (link.resolve(), is_safe_path(link), is_safe_path(odd)) == (odd, True, False)
    folder.remove()
    assert not folder.path.exists()
    assert odd.is_dir()


@pytest.mark.parametrize(
    "name", ["has a space", "quo'te", "semi;colon", "$HOME", "x" * SOCKET_BYTES, "missing", "open"]
)
def test_where_the_runtime_folder_does_not_serve_it_lies_in_tmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    parent = tmp_path / name
    if name != "missing":
        parent.mkdir()
        parent.chmod(0o777 if name == "open" else 0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(parent))
    folder = TritonFolder.create()
    try:
        assert folder.path.parent == Path("/tmp")
        assert len(os.fsencode(folder.url.removeprefix("unix:"))) <= SOCKET_BYTES
        assert is_safe_path(folder.path)
    finally:
        folder.remove()


def test_what_an_ended_process_left_is_swept_and_nothing_else(runtime_dir: Path) -> None:
    """A process holds its folder until it ends, and the program that it becomes does too, if it is to."""
    script = (
        "from filmstrip.triton_server import TritonFolder as T; import os; f = T.create(); print(f.path, flush=True); "
    )
    live, become, dead = (
        subprocess.Popen(
            [sys.executable, "-c", script + then], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for then in ("input()", "f.keep_open(); os.execlp('cat', 'cat')", "os.kill(os.getpid(), 9)")
    )
    paths = []
    for process in (live, become, dead):
        assert process.stdout is not None
        paths.append(Path(process.stdout.readline().strip()))
    dead.communicate()
    unrelated, file = runtime_dir / "filmstrip-other", runtime_dir / "filmstrip-triton-file"
    unrelated.mkdir()
    file.touch()
    elsewhere = runtime_dir / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    link = runtime_dir / "filmstrip-triton-link"
    link.symlink_to(elsewhere)
    shared = runtime_dir / "filmstrip-triton-shared"  # not as we make them
    shared.mkdir()
    shared.chmod(0o755)
    sweep(runtime_dir)
    assert [path.exists() for path in paths] == [True, True, False]
    assert all(path.exists() for path in (unrelated, file, elsewhere, link, shared))
    for process in (live, become):
        process.communicate("\n")
    sweep(runtime_dir)
    assert not any(path.exists() for path in paths)


def test_a_folder_that_was_removed_is_made_again_and_never_in_place_of_anothers(runtime_dir: Path) -> None:
    folder = TritonFolder.create()
    folder.path.rmdir()
    folder.renew()
    sweep(runtime_dir)  # it is held again
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.path.rmdir()
    folder.path.mkdir()
    folder.path.chmod(0o755)
    with pytest.raises(OSError, match="not a private folder"):
        folder.renew()
    folder.remove()


def test_without_a_place_it_says_what_was_tried(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmstrip.triton_server.tempfile.mkdtemp", lambda **_: os.mkdir("/proc/nothing"))
    with pytest.raises(NoTritonFolder, match=rf"{runtime_dir} \(.*\) or /tmp \("):
        TritonFolder.create()


def test_models_whose_name_reaches_the_shell(tmp_path: Path) -> None:
    safe = ["longlive-small", "v1.5_x", "a+b@c"]
    odd = [
        "my model",
        "grün",
        "日本",
        "a;b",
        "a&b",
        "$HOME",
        "a'b",
        'a"b',
        "a(b)",
        "a`b`",
        "a\nb",
        "a*",
        "a|b",
        "~",
        "a#b",
        "a\\b",
        "<a>",
    ]
    for name in (*safe, *odd):
        (tmp_path / name / "1").mkdir(parents=True)
    (tmp_path / "no model").mkdir()
    assert all(map(is_safe_model, safe))
    assert unsafe_models(tmp_path) == sorted(odd)
