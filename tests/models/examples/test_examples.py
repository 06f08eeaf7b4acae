"""Each example runs as it was pasted: alone in an empty folder, with the client and nothing of this repository."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from filmstrip.video import count_frames, probe
from tests.support.server import PROXIES, ROOT, Frontend

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the export

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ALLOWED = {"filmstrip.client", "filmstrip.video", "httpx", "numpy", "PIL"}
"""What `pip install filmstrip` brings and documents."""
FRAMES = {
    "chain.mp4": 36,
    "control.mp4": 36,
    "detach.mp4": 69,
    "inpainting.mp4": 36,
    "key_images.mp4": 33,
    "lora_ramp.mp4": 69,
    "prompt_schedule.mp4": 105,
    "reference_image.mp4": 45,
    "text_to_video.mp4": 69,
    "transition.mp4": 105,
    "video_to_video_0.3.mp4": 36,
    "video_to_video_0.7.mp4": 36,
    "weighted_prompts_25.mp4": 21,
    "weighted_prompts_50.mp4": 21,
    "weighted_prompts_75.mp4": 21,
}


def run(path: Path, folder: Path, url: str) -> "subprocess.CompletedProcess[str]":
    """Run a copy of an example in a folder of its own."""
    return run_code(path.read_text(), folder / path.name, url)


def run_code(code: str, pasted: Path, url: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a file, whose folder is the current one."""
    pasted.write_text(code)
    environment = os.environ | PROXIES | {"FILMSTRIP_SERVER": url}
    return subprocess.run(
        [sys.executable, pasted.name],
        cwd=pasted.parent,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_pasted(small_server: Frontend, tmp_path: Path, path: Path):
    done = run(path, tmp_path, small_server.url)
    assert done.returncode == 0, done.stderr
    files = sorted(file for file in tmp_path.iterdir() if file.name != path.name)
    assert files
    for file in files:
        assert file.name.startswith(path.stem)
        if file.name == "plain_http.npy":
            assert np.load(file).shape == (45, 64, 64, 3)
            continue
        info = probe(file)
        assert (info.width, info.height) == (64, 64)
        if path.stem == "cancel":
            assert 33 <= count_frames(file) < 1200
        else:
            assert count_frames(file) == FRAMES[file.name]


def test_the_code_of_the_clients_page_runs_as_pasted(small_server: Frontend, tmp_path: Path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "client.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    done = run_code("\n".join(blocks), tmp_path / "page.py", small_server.url)
    assert done.returncode == 0, done.stderr
    assert count_frames(tmp_path / "circle.mp4") == 64


def test_examples_import_only_what_the_client_brings(subtests: pytest.Subtests):
    for path in EXAMPLES:
        with subtests.test(path.name):
            imported = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module)
            assert {name for name in imported if name not in sys.stdlib_module_names} <= ALLOWED


def test_every_example_is_in_the_readme():
    readme = (ROOT / "examples" / "README.md").read_text()
    assert {path.name for path in EXAMPLES} == set(re.findall(r"^\| \[(\w+\.py)\]", readme, re.MULTILINE))
    for image in re.findall(r"\]\((images/\w+\.png)\)", readme):
        assert (ROOT / "examples" / image).is_file()


def test_an_example_without_a_server_says_so(tmp_path: Path):
    done = run(ROOT / "examples" / "text_to_video.py", tmp_path, "http://127.0.0.1:9")
    assert done.returncode != 0
    assert "ServerUnreachable" in done.stderr
