"""Every example runs by the command that its documentation gives, and leaves a video, a sheet and its numbers."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples.gallery import HEADING
from filmstrip.video import probe
from tests.support.server import PROXIES, ROOT, Frontend
from tests.unit.test_docs import rows, section

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the export

README = ROOT / "examples" / "README.md"
SHARED = {"__init__", "show", "curves", "gallery"}
TABLE = {row[1].strip("`").rpartition(".")[2]: row for row in rows(section(README.read_text(), "## The examples"))}

PRINTED = {
    "text_to_video": [r"last chunk shows: .+ moving .+ on .+"],
    "prompt_schedule": [r"chunk 8 shows: .+ moving .+ on .+", r"chunk 6 shows: .+ - asked for: a white square .+"],
    "weighted_prompts": [r"50 % yellow: the colour is \d+% of the way from red to yellow"],
    "transition": [r"chunk 8: the colour is \d+% of the way from red to yellow"],
    "video_to_video": [r"noise_scale 0\.3: \d+\.\d dB from the source, shows: .+", r"noise_scale 0\.7: .+"],
    "inpainting": [r"kept region: \d+\.\d dB, the autoencoder's \d+\.\d dB"],
    "control": [
        r"gray: the object overlaps the leading one's place by \d\.\d\d",
        r"scribble: shows: .+; frames of one's own make the same video",
    ],
    "reference_image": [r"the image shows a yellow triangle, the video: .+"],
    "key_images": [r"last_frame_image: in frame 8 the object overlaps the image's by \d\.\d\d"],
    "lora_ramp": [r"chunk 0, scale 0\.0: \d+% of the object is filled", r"chunk 5, scale 1\.0: .+"],
    "chain": [r"values in the video: \[0(, 255)?\]", r"the contours overlap those .+ by \d\.\d\d"],
    "cancel": [r"after chunk 3 of 101: cancelling", r"cancelled before chunk \d+: \d+ of 1200 frames are kept"],
    "plain_http": [r"complete: .*'num_frames': 45.*", r"last chunk shows: .+"],
}
FRAMES = {
    "text_to_video": 69,
    "prompt_schedule": 105,
    "weighted_prompts": 21,
    "transition": 105,
    "video_to_video": 36,
    "inpainting": 36,
    "control": 36,
    "reference_image": 45,
    "key_images": 33,
    "lora_ramp": 69,
    "chain": 36,
    "plain_http": 45,
}


def run(name: str, server: Frontend, out: Path) -> str:
    """What a command of the table prints."""
    words = shlex.split(TABLE[name][1].strip("`"))
    assert words[:2] == [".venv/bin/python", "-m"]
    command = [sys.executable, *words[1:], "--server", server.url, "--out", str(out)]
    environment = os.environ | PROXIES
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_in_the_table():
    modules = {path.stem for path in README.parent.glob("*.py")} - SHARED
    assert set(TABLE) == set(PRINTED) == modules
    assert set(FRAMES) == modules - {"cancel"}


@pytest.mark.parametrize("name", PRINTED)
def test_an_example(small_server: Frontend, tmp_path: Path, name: str):
    printed = run(name, small_server, tmp_path).splitlines()
    for pattern in PRINTED[name]:
        assert any(re.fullmatch(pattern, line) for line in printed), printed
    assert printed[-1] == f"{tmp_path / name}.mp4, {tmp_path / name}.png"
    info = probe(tmp_path / f"{name}.mp4")
    num_frames = FRAMES.get(name) or int(re.search(r": (\d+) of 1200", "\n".join(printed))[1])
    assert info.num_frames == num_frames
    assert info.height == 320
    with Image.open(tmp_path / f"{name}.png") as sheet:
        assert min(sheet.size) > 96


@pytest.mark.parametrize(
    ("name", "url", "code"),
    [
        ("text_to_video", "http://127.0.0.1:9", 1),
        ("text_to_video", "127.0.0.1:8000", 2),
        ("curves", "http://127.0.0.1:9", 1),
        ("curves", "127.0.0.1:8000", 2),
        ("plain_http", "http://127.0.0.1:9", 1),
        ("plain_http", "127.0.0.1:8000", 1),  # httpx says so, as it sends
    ],
)
def test_an_example_says_what_is_wrong(tmp_path: Path, name: str, url: str, code: int):
    command = [sys.executable, "-m", f"examples.{name}", "--server", url]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_curves_are_drawn(small_server: Frontend, tmp_path: Path):
    command = [sys.executable, "-m", "examples.curves", "--server", small_server.url, "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--scenes", "1"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^noise_scale, the source's own prompt: 0: \d+\.\d\d, 0\.3: ", done.stdout, re.MULTILINE)
    assert (tmp_path / "noise_scale.svg").read_text().count("<polyline") == 2
    assert (tmp_path / "lora_scale.svg").read_text().count("<polyline") == 1


def test_the_gallery_writes_its_sections_alone(small_server: Frontend, tmp_path: Path):
    readme = tmp_path / "README.md"
    before = README.read_text().partition(f"{HEADING}\n")[0]
    readme.write_text(f"{before}{HEADING}\n\n### Cancel\n\nkept\n\n### Text to video\n\nreplaced\n")
    command = [sys.executable, "-m", "examples.gallery", "--server", small_server.url, "--folder", str(tmp_path)]
    for _ in range(2):
        subprocess.run([*command, "--only", "text_to_video"], cwd=ROOT, check=True, timeout=120)
    head, _, rest = readme.read_text().partition(f"{HEADING}\n")
    assert head == before
    assert rest.startswith("\n### Cancel\n\nkept\n\n### Text to video\n")
    assert "replaced" not in rest
    assert rest.count("![Text to video](images/text_to_video.png)") == 1
    assert "last chunk shows: " in rest
    assert str(tmp_path) not in rest
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["text_to_video.png"]
