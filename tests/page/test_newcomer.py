"""What somebody does who has never seen the page: a clip from a phone, two prompts, and a transition between them."""

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.page.visits import Visit
from tests.support import http
from tests.support.server import Frontend
from tests.unit.filmstrip.video_samples import set_display_matrix

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: see CONTRIBUTING.md")

FPS = 30
SECONDS = 6
TURNED = (math.cos(math.pi / 2), math.sin(math.pi / 2), -math.sin(math.pi / 2), math.cos(math.pi / 2))


@pytest.fixture(scope="module")
def phone_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1080x1920 as shown: stored lying on its side, with 30 frames per second and sound, like most phones do."""
    path = tmp_path_factory.mktemp("phone") / "IMG_2041.MOV"
    with av.open(str(path), "w", format="mov") as file:
        video: Any = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 1920, 1080, "yuv420p"
        audio: Any = file.add_stream("aac", rate=44100, layout="mono")
        for number in range(FPS * SECONDS):
            picture = np.full((1080, 1920, 3), 60, np.uint8)
            picture[300:700, 8 * number : 8 * number + 400] = (230, 200, 40)
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for number in range(44100 * SECONDS // 1024):
            samples = np.sin(np.arange(1024, dtype=np.float32) / 16)[None] / 4
            sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 44100, number * 1024, Fraction(1, 44100)
            file.mux(audio.encode(sound))
        file.mux(video.encode())
        file.mux(audio.encode())
    set_display_matrix(path, TURNED)
    return path


def test_two_prompts_with_a_transition_from_a_clip_of_a_phone(
    visit: Callable[..., Visit], page_server: Frontend, phone_clip: Path
) -> None:
    """Seven steps: choose the clip, a chunk, a transition, two words of its prompt, generate, play."""
    visiting = visit(page_server)
    page = visiting.open()
    held: list[Any] = []
    page.route("**/api/v1/generate/upload?*", lambda route: held.append(route))  # noqa: PLW0108 (it needs a function)
    page.locator("#input-video input[type=file]").set_input_files(phone_clip)
    make = page.get_by_role("button", name="Generate")
    sync_api.expect(page.locator("#verdict")).to_contain_text("on its way")
    sync_api.expect(make).to_be_disabled()  # the request would not have the clip yet
    while not held:
        page.wait_for_timeout(50)
    visiting.shot("newcomer-1-clip")
    held[0].continue_()
    sync_api.expect(make).to_be_enabled(timeout=60_000)
    page.get_by_role("option", name="Chunk 4").click()
    page.get_by_role("button", name="Add a transition").click()
    chunk = page.get_by_role("group", name="Chunk 4")
    chunk.get_by_role("group", name="Colour").get_by_role("button", name="blue").click()
    chunk.get_by_role("group", name="Shape").get_by_role("button", name="square").click()
    visiting.shot("newcomer-2-transition", full_page=True)
    make.click()
    page.get_by_text("Done.", exact=True).wait_for(timeout=60_000)
    visiting.eventually("document.querySelector('.clip-player video')?.readyState >= 2", 60)
    visiting.shot("newcomer-3-done")
    (newest,) = http.get(f"{page_server.url}/api/v1/generations?limit=1").json()["generations"]
    assert (newest["state"], newest["frames"], newest["video_shape"][1:]) == ("complete", 80, [64, 64, 3])
    request = http.get(f"{page_server.url}/api/v1/generations/{newest['id']}").json()["request"]
    assert request["prompt"] == "a yellow circle moving left on a green background"
    (spec,) = request["chunk_specs"]
    assert spec["transition_target_prompts"][0]["text"] == "a blue square moving left on a green background"
    media = json.loads(page.evaluate("localStorage['filmstrip.media']"))[request["input_path"]]
    assert (media["frames"], media["fps"], media["name"]) == (80, 16, "IMG_2041.MOV")
