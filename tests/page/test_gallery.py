"""The gallery and the player: what was made, watched frame by frame, compared, downloaded, reused and deleted."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.page.visits import Visit
from tests.support import http
from tests.support.recovery import eventually
from tests.support.server import Frontend, frontend_on

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: see CONTRIBUTING.md")
expect = sync_api.expect
expect.set_options(timeout=30_000)

ROOT = "/api/v1/generations"
SMALL = {"pipeline_id": "longlive-small", "num_frames": 21, "seed": 7}
RED, BLUE = "a red square moving up on a white background", "a blue circle moving left on a black background"
NUM_FRAMES = 24
STEP = 10  # of brightness between the frames of the ramp

Visits = Callable[..., Visit]


def clear(server: Frontend) -> None:
    while entries := http.get(f"{server.url}{ROOT}?limit=100").json()["generations"]:
        for entry in entries:
            assert http.delete(f"{server.url}{ROOT}/{entry['id']}").status_code in (204, 404)


def submit(server: Frontend, id: str, **request: Any) -> dict[str, Any]:
    answer = http.put(f"{server.url}{ROOT}/{id}", json=request)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def make(server: Frontend, id: str, **request: Any) -> dict[str, Any]:
    """Generate a video; its resource."""
    submit(server, id, **request)
    eventually(lambda: resource(server, id)["ended_at"])
    return resource(server, id)


def resource(server: Frontend, id: str) -> dict[str, Any]:
    return dict(http.get(f"{server.url}{ROOT}/{id}").json())


@pytest.fixture
def server(empty_server: Frontend) -> Iterator[Frontend]:
    """A server on which nothing was generated yet."""
    clear(empty_server)
    yield empty_server
    clear(empty_server)


@pytest.fixture
def ramp(server: Frontend) -> str:
    """The id of a video whose frames get brighter one by one."""
    brightness = np.arange(NUM_FRAMES, dtype=np.uint8) * STEP
    video = np.broadcast_to(brightness[:, None, None, None], (NUM_FRAMES, 64, 64, 3))
    request = {"pipeline_id": "passthrough", "prompt": "", "num_frames": NUM_FRAMES}
    make(server, "ramp", **request, input_path=server.upload(np.ascontiguousarray(video)))
    return "ramp"


SHOWN = """() => {
  const video = document.querySelector("#watch video, section[aria-label=Video] video");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [4, 4];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0, 4, 4);
  return context.getImageData(2, 2, 1, 1).data[0];
}"""


def watch(visiting: Visit, name: str | re.Pattern[str] = re.compile("^Watch: ")) -> Any:
    """Watch a video of the gallery; the region of the player."""
    visiting.page.get_by_role("region", name="Gallery").get_by_role("button", name=name).click()
    player = visiting.page.get_by_role("region", name="Video")
    player.get_by_role("slider", name="Frame").wait_for()
    visiting.eventually("document.querySelector('section[aria-label=Video] video')?.readyState >= 2")
    return player


def frame(player: Any) -> int:
    return int(player.get_by_role("slider", name="Frame").input_value())


def wait_for_posters(visiting: Visit, count: int) -> None:
    visiting.eventually(
        f"(images => images.length === {count} && images.every(image => image.naturalWidth))"
        "([...document.querySelectorAll('.thumb img')])",
        60,
    )


# -- The gallery ----------------------------------------------------------------------------------------------


def test_an_empty_gallery_says_what_it_is_for(visit: Visits, server: Frontend) -> None:
    visiting = visit(server)
    gallery = visiting.open().get_by_role("region", name="Gallery")
    expect(gallery).to_contain_text("No videos yet")
    visiting.check_accessible("gallery-empty")


def test_it_shows_what_was_made_and_how_it_ended(visit: Visits, server: Frontend) -> None:
    make(server, "red", **SMALL, prompt=RED)
    make(server, "broken", pipeline_id="probe", prompt="!raise", num_frames=12)
    submit(server, "half", pipeline_id="probe", prompt="!sleep 0.5", num_frames=1200)
    eventually(lambda: resource(server, "half")["chunk"])
    http.post(f"{server.url}{ROOT}/half/cancel")
    eventually(lambda: resource(server, "half")["state"] == "cancelled")
    submit(server, "runs", pipeline_id="probe", prompt="!sleep 2", num_frames=960)
    submit(server, "waits", **SMALL, prompt=BLUE)
    visiting = visit(server)
    gallery = visiting.open().get_by_role("region", name="Gallery")
    cards = gallery.get_by_role("listitem")
    expect(cards).to_have_count(5)
    for index, text in enumerate((BLUE, "!sleep 2", "!sleep 0.5", "!raise", RED)):  # newest first
        expect(cards.nth(index)).to_contain_text(text)
    for index, text in enumerate(("waiting", "chunk", "cancelled", "failed", "21 frames", "seed 7")):
        expect(cards.nth(min(index, 4))).to_contain_text(text)
    wait_for_posters(visiting, 2)
    visiting.check_accessible("gallery")
    http.post(f"{server.url}{ROOT}/runs/cancel")  # by somebody else: the page notices without a reload
    expect(cards.nth(1)).to_contain_text("cancelled")
    expect(cards.nth(0)).to_contain_text("21 frames")


def test_it_shows_more_on_request(visit: Visits, server: Frontend) -> None:
    for number in range(14):
        make(server, f"n{number}", pipeline_id="passthrough", prompt="", num_frames=1, input_path=server.upload(FRAME))
    visiting = visit(server)
    gallery = visiting.open().get_by_role("region", name="Gallery")
    expect(gallery.get_by_role("listitem")).to_have_count(12)
    gallery.get_by_role("button", name="Show more").click()
    expect(gallery.get_by_role("listitem")).to_have_count(14)
    expect(gallery.get_by_role("button", name="Show more")).to_have_count(0)


FRAME = np.full((1, 64, 64, 3), 200, np.uint8)


def test_a_gallery_that_cannot_be_loaded_says_why_and_tries_again(visit: Visits, server: Frontend) -> None:
    make(server, "red", **SMALL, prompt=RED)
    visiting = visit(server)
    error = {"error": {"code": "triton_unavailable", "message": "Triton is not ready"}}
    visiting.page.route("**/api/v1/generations?*", lambda route: route.fulfill(status=503, json=error))
    visiting.expect(lambda problem: problem.endswith("503"))
    gallery = visiting.open().get_by_role("region", name="Gallery")
    expect(gallery.get_by_role("alert")).to_contain_text("Triton is not ready")
    visiting.check_accessible("gallery-error")
    visiting.page.unroute_all()
    gallery.get_by_role("button", name="Try again").click()
    expect(gallery.get_by_role("listitem")).to_have_count(1)
    expect(gallery.get_by_role("alert")).to_have_count(0)


def test_what_is_shown_stays_while_the_server_cannot_be_reached(visit: Visits, server: Frontend) -> None:
    submit(server, "runs", pipeline_id="probe", prompt="!sleep 1", num_frames=1200)
    visiting = visit(server)
    gallery = visiting.open().get_by_role("region", name="Gallery")
    expect(gallery.get_by_role("listitem")).to_have_count(1)
    visiting.expect(lambda problem: "net::ERR" in problem)
    visiting.context.set_offline(True)
    expect(visiting.page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(gallery.get_by_role("listitem")).to_have_count(1)
    visiting.shot("gallery-offline")
    visiting.context.set_offline(False)
    expect(visiting.page.get_by_role("alert")).to_have_count(0)


# -- The player -----------------------------------------------------------------------------------------------


def test_every_frame_can_be_reached(visit: Visits, server: Frontend, ramp: str) -> None:
    visiting = visit(server)
    page = visiting.open()
    player = watch(visiting)

    def shows(number: int) -> None:
        expect(player.get_by_role("slider", name="Frame")).to_have_value(str(number))
        visiting.eventually(f"Math.abs(({SHOWN})() - {number * STEP}) <= 4")

    shows(0)
    for key, number in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("Shift+ArrowRight", 11),
        ("End", NUM_FRAMES - 1),
        ("ArrowRight", NUM_FRAMES - 1),
        ("Home", 0),
        ("ArrowLeft", 0),
    ):
        page.keyboard.press(key)
        shows(number)
    player.get_by_role("button", name="One frame on").click()
    shows(1)
    player.get_by_role("slider", name="Frame").fill("17")
    shows(17)
    page.keyboard.press("ArrowRight")  # the slider has the focus
    shows(18)
    player.get_by_role("button", name="One frame back").click()
    shows(17)
    visiting.check_accessible("player")


def test_space_plays_and_pauses_but_types_in_fields(visit: Visits, server: Frontend, ramp: str) -> None:
    visiting = visit(server)
    page = visiting.open()
    player = watch(visiting)
    page.locator("body").click(position={"x": 2, "y": 2})
    page.keyboard.press("Space")
    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    visiting.eventually("document.querySelector('.clip-player video').currentTime > 0.2")
    page.keyboard.press("Space")
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    at = frame(player)
    visiting.eventually(f"Math.abs(({SHOWN})() - {at * STEP}) <= 4")
    prompt = page.get_by_label("Prompt", exact=True)
    before = prompt.input_value()
    prompt.press("End")
    prompt.press("Space")
    prompt.press("ArrowLeft")
    assert prompt.input_value() == f"{before} "
    assert frame(player) == at
    expect(player.get_by_role("button", name="Play")).to_be_visible()


def test_it_loops_if_that_is_wanted(visit: Visits, server: Frontend, ramp: str) -> None:
    visiting = visit(server)
    visiting.open()
    player = watch(visiting)
    loop = player.get_by_role("button", name="Loop")
    expect(loop).to_have_attribute("aria-pressed", "true")
    visiting.page.keyboard.press("End")
    player.get_by_role("button", name="Play").click()
    video = "document.querySelector('.clip-player video')"
    visiting.eventually(f"!{video}.paused && {video}.currentTime < 1")
    visiting.page.evaluate(
        "document.querySelector('.clip-player video').addEventListener('ended', () => { globalThis.hasEnded = true })"
    )
    visiting.eventually("globalThis.hasEnded && document.querySelector('.clip-player video').currentTime < 1")
    loop.click()
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    assert frame(player) == NUM_FRAMES - 1


def test_two_videos_play_in_step(visit: Visits, server: Frontend) -> None:
    make(server, "red", **SMALL, prompt=RED)
    make(server, "blue", **SMALL | {"num_frames": 33}, prompt=BLUE)
    visiting = visit(server)
    page = visiting.open()
    buttons = page.get_by_role("region", name="Gallery").get_by_role("button", name="Compare")
    buttons.nth(0).click()
    expect(page.get_by_role("region", name="Gallery")).to_contain_text("Choose another video")
    buttons.nth(1).click()
    dialog = page.get_by_role("dialog", name="Compare")
    for text in (RED, BLUE, "Seed 7 (the same)", "num_frames 21", "num_frames 33"):
        expect(dialog).to_contain_text(text)
    times = "[...document.querySelectorAll('dialog video')].map(video => Math.floor(video.currentTime * 16))"
    visiting.eventually("[...document.querySelectorAll('dialog video')].every(video => video.readyState >= 2)")
    expect(dialog.get_by_role("slider", name="Frame")).to_have_attribute("max", "20")  # of the shorter one
    page.keyboard.press("End")
    visiting.eventually(f"({times}).every(time => time === 20)")
    page.keyboard.press("ArrowLeft")
    visiting.eventually(f"({times}).every(time => time === 19)")
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    visiting.eventually(f"({times})[0] > 3")
    page.keyboard.press("Space")
    visiting.eventually(f"(([left, right]) => left === right)({times})")
    visiting.check_accessible("compare")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


# -- What can be done with a video ------------------------------------------------------------------------------


def open_menu(page: Any) -> Any:
    """The first video's menu."""
    page.get_by_role("region", name="Gallery").locator("summary").first.click()
    return page.locator("details[open] .entries")


def test_downloads(visit: Visits, server: Frontend, tmp_path: Path) -> None:
    made = make(server, "red", **SMALL, prompt=RED)
    visiting = visit(server)
    page = visiting.open()
    found = {}
    for name in ("MP4", "GIF", "Raw frames"):
        menu = open_menu(page)
        if name == "MP4":
            visiting.check_accessible("gallery-menu")
        with page.expect_download() as download:
            menu.get_by_role("link", name=name).click()
        found[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(found[name])
    assert [path.name for path in found.values()] == ["red.mp4", "red.gif", "red.thwc"]
    assert found["MP4"].read_bytes()[4:8] == b"ftyp"
    with Image.open(found["GIF"]) as gif:
        assert (gif.format, gif.n_frames, gif.size) == ("GIF", 21, (256, 256))
    assert np.array_equal(
        np.frombuffer(found["Raw frames"].read_bytes()[20:], np.uint8).reshape(made["video_shape"]),
        server.download(made["output_path"]),
    )


def test_its_settings_are_used_again_with_its_seed(visit: Visits, server: Frontend) -> None:
    request = {"pipeline_id": "longlive-small", "prompt": RED, "num_frames": 33, "seed": -1}
    request["chunk_specs"] = [{"chunk": 1, "text": BLUE}]
    made = make(server, "red", **request)
    visiting = visit(server)
    page = visiting.open()
    page.get_by_role("region", name="Gallery").get_by_role("button", name="Reuse").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(RED)
    visiting.eventually(f"JSON.parse(localStorage['filmstrip.request']).seed === {made['seed']}")
    kept = json.loads(page.evaluate("localStorage['filmstrip.request']"))
    assert {name: kept[name] for name in request} == request | {"seed": made["seed"]}
    assert http.post(f"{server.url}{ROOT}?dry_run=1", json=kept).status_code == 200


def test_it_becomes_the_next_input(visit: Visits, server: Frontend) -> None:
    made = make(server, "red", **SMALL, prompt=RED)
    visiting = visit(server)
    page = visiting.open()
    open_menu(page).get_by_role("button", name="Use as next input").click()
    expect(page.get_by_role("status").filter(has_text="next input")).to_be_visible()
    kept = json.loads(page.evaluate("localStorage['filmstrip.request']"))
    frames = server.generate_frames(pipeline_id="passthrough", prompt="", input_path=kept["input_path"], num_frames=21)
    assert np.array_equal(frames, server.download(made["output_path"]))
    media = json.loads(page.evaluate("localStorage['filmstrip.media']"))[kept["input_path"]]
    assert (media["frames"], media["width"], media["height"]) == (21, 64, 64)
    assert media["poster"].startswith("data:image/png;base64,")


def test_it_is_deleted_only_when_that_is_confirmed(visit: Visits, server: Frontend, ramp: str) -> None:
    visiting = visit(server)
    page = visiting.open()
    player = watch(visiting)
    gallery = page.get_by_role("region", name="Gallery")
    dialog = page.get_by_role("dialog", name="Delete this video?")
    open_menu(page).get_by_role("button", name="Delete").click()
    visiting.check_accessible("delete")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_have_count(0)
    assert resource(server, ramp)["state"] == "complete"
    open_menu(page).get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(gallery).to_contain_text("No videos yet")
    expect(player.locator("video")).to_have_count(0)
    assert http.get(f"{server.url}{ROOT}/{ramp}").status_code == 404


def test_media_are_shown_on_a_server_with_keys(visit: Visits, page_server: Frontend, tmp_path: Path) -> None:
    with frontend_on(page_server, tmp_path, api_keys="alice:a-key") as frontend:
        headers = {"Authorization": "Bearer a-key", "Accept": "text/event-stream"}
        answer = http.put(f"{frontend.url}{ROOT}/red", json=SMALL | {"prompt": RED}, headers=headers)
        assert "event: complete" in answer.text
        visiting = visit(frontend)
        visiting.context.add_init_script("sessionStorage.setItem('key', 'a-key')")
        page = visiting.open()
        wait_for_posters(visiting, 1)
        watch(visiting)
        with page.expect_download() as download:
            open_menu(page).get_by_role("link", name="Raw frames").click()
        assert Path(download.value.path()).stat().st_size == 20 + 21 * 64 * 64 * 3
        (cookie,) = visiting.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/api/v1")
        assert "a-key" not in frontend.log()


def test_a_key_that_is_forgotten_opens_nothing_any_more(visit: Visits, page_server: Frontend, tmp_path: Path) -> None:
    with frontend_on(page_server, tmp_path, api_keys="alice:a-key") as frontend:
        visiting = visit(frontend)
        page = visiting.open()
        dialog = page.get_by_role("dialog", name="API key")
        dialog.get_by_label("Key", exact=True).fill("a-key")
        dialog.get_by_label("Remember it").check()
        dialog.get_by_role("button", name="Unlock").click()
        expect(page.get_by_role("region", name="Gallery")).to_contain_text("No videos yet")
        (cookie,) = visiting.context.cookies()
        page.get_by_role("button", name="API key").click()
        visiting.check_accessible("key")
        dialog.get_by_role("button", name="Forget the key").click()
        expect(dialog.get_by_role("button", name="Unlock")).to_be_disabled()  # the page asks again
        expect(dialog.get_by_role("button", name="Forget the key")).to_have_count(0)
        assert visiting.context.cookies() == []
        assert page.evaluate("JSON.stringify([localStorage, sessionStorage])").count("a-key") == 0
        header = {"Cookie": f"{cookie['name']}={cookie['value']}"}
        answer = http.get(f"{frontend.url}/api/v1/generate/download?path=output-{'0' * 32}", headers=header)
        assert answer.status_code == 401
