"""Making videos on the page: settings, the timeline, what the server would refuse, and watching."""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.page.visits import PHONE, Visit
from tests.support import http
from tests.support.server import ROOT, Frontend

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

CLIP = ROOT / "demo" / "big_buck_bunny.mp4"
PICTURE = ROOT / "docs" / "images" / "longlive-small.png"
DONE_MS = 60_000


def drawer(page: "Page") -> "Locator":
    """The request as JSON, in its drawer."""
    button = page.get_by_role("button", name="JSON", exact=True)
    if button.get_attribute("aria-pressed") != "true":
        button.click()
    return page.get_by_label("Request as JSON")


def request_of(page: "Page") -> dict[str, Any]:
    """The request that the page would send."""
    found: dict[str, Any] = json.loads(drawer(page).input_value())
    return found


def spec_of(page: "Page", chunk: int) -> dict[str, Any]:
    """What the request sets for one chunk."""
    specs = request_of(page).get("chunk_specs", [])
    return next((spec for spec in specs if spec["chunk"] == chunk), {})


def write(page: "Page", request: dict[str, Any]) -> None:
    drawer(page).fill(json.dumps(request))


def generate(page: "Page") -> None:
    page.get_by_role("button", name="Generate").click()


def wait_until_done(page: "Page", text: str = "Done.") -> None:
    page.get_by_text(text, exact=True).wait_for(timeout=DONE_MS)


def wait_for_plan(page: "Page") -> None:
    """Wait until the server has planned the request as it is now."""
    page.locator("#verdict").get_by_text(re.compile(r"^\d+x\d+, .* chunks?")).wait_for()


def wait_for_video(page: "Page") -> None:
    """Wait until the player has a frame to show; the policy of the page forbids Playwright's `wait_for_function`."""
    page.evaluate(
        """() => new Promise(resolve => {
            const look = () => document.querySelector('video')?.readyState >= 2 ? resolve() : setTimeout(look, 50);
            look();
        })"""
    )


def ready(visiting: Visit) -> "Page":
    """Open the page, and wait until it has the pipelines and a plan; before that it still fills in defaults."""
    page = visiting.open()
    wait_for_plan(page)
    return page


def cells(page: "Page") -> "Locator":
    return page.get_by_role("listbox", name="Chunks").get_by_role("option")


# -- Settings -------------------------------------------------------------------------------------------------------


def test_one_click_makes_a_video(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    visiting.shot("before")
    generate(page)
    wait_until_done(page)
    images = cells(page).locator("img")
    images.nth(5).wait_for()
    assert images.count() == 6
    visiting.shot("done")
    newest = http.get(f"{page_server.url}/api/v1/generations?limit=1").json()["generations"][0]
    assert (newest["state"], newest["frames"], newest["seed"]) == ("complete", 69, 42)


def test_words_of_the_model_can_be_clicked(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server))
    prompt = page.get_by_label("Prompt", exact=True)
    assert prompt.input_value() == "a yellow circle moving left on a green background"
    page.get_by_role("group", name="Shape").get_by_role("button", name="square").click()
    page.get_by_role("group", name="Background").get_by_role("button", name="orange").click()
    assert prompt.input_value() == "a yellow square moving left on a orange background"
    prompt.fill("a horse")
    page.get_by_text("only understands sentences of these words").wait_for()
    page.get_by_role("group", name="Colour").get_by_role("button", name="red").click()
    assert prompt.input_value() == "a red square moving left on a orange background"


def test_prompts_can_be_blended(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server))
    page.get_by_role("button", name="Blend with another prompt").click()
    page.get_by_label("Prompt 2", exact=True).fill("a red circle moving left on a white background")
    page.get_by_label("Weight of prompt 2").fill("50")
    prompts = request_of(page)["prompt"]
    assert [entry["weight"] for entry in prompts] == [100, 50]
    assert prompts[1]["text"].startswith("a red circle")
    page.get_by_role("button", name="Remove prompt 2").click()
    assert isinstance(request_of(page)["prompt"], str)


def test_length_is_seconds_or_frames(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server))
    page.get_by_label("Length", exact=True).fill("2")
    assert page.get_by_label("Frames", exact=True).input_value() == "32"
    assert request_of(page)["num_frames"] == 32
    page.get_by_role("button", name="use 33 frames").click()
    assert cells(page).count() == 3
    page.get_by_label("Frames", exact=True).fill("9")
    assert page.get_by_label("Length", exact=True).input_value() == "0.56"
    assert cells(page).count() == 1


def test_the_seed_is_rolled_typed_or_random(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server))
    page.get_by_role("button", name="Roll a new seed").click()
    rolled = request_of(page)["seed"]
    assert 0 <= rolled < 2**32
    page.get_by_label("Seed", exact=True).fill("7")
    assert request_of(page)["seed"] == 7
    page.get_by_label("New each time").check()
    assert request_of(page)["seed"] == -1
    page.get_by_label("New each time").uncheck()
    assert "seed" not in request_of(page)


def test_what_a_pipeline_lacks_is_grey(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    seed, dice = page.get_by_label("Seed", exact=True), page.get_by_role("button", name="Roll a new seed")
    assert seed.is_enabled()
    assert page.get_by_label("Noise scale", exact=True).is_disabled()  # there is nothing to add noise to
    page.get_by_label("Pipeline").select_option("gray")
    assert seed.is_disabled()
    assert dice.is_disabled()
    assert page.get_by_label("First frame").is_disabled()
    page.locator("#verdict").get_by_text("input_path: missing, gray needs an input video").wait_for()
    visiting.shot("frame-processor")
    generate(page)  # which says no more than that
    page.get_by_label("Pipeline").select_option("longlive-small")
    wait_for_plan(page)


def test_a_clip_is_trimmed_to_what_fits_and_becomes_the_input(
    visit: Callable[..., Visit], page_server: Frontend
) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    page.get_by_label("Drop a video here, or choose one").set_input_files(CLIP)
    page.get_by_text(re.compile(r"\d+ frames of 64x64 at 16 per second")).wait_for()
    first = request_of(page)
    assert first["num_frames"] == 39
    assert page.get_by_label("Noise scale", exact=True).is_enabled()
    page.get_by_label("Noise scale", exact=True).fill("0.3")
    page.get_by_text("Shapes and motion stay").wait_for()
    page.get_by_label("Out", exact=True).fill("1.5")
    page.get_by_label("Out", exact=True).press("Enter")
    page.get_by_label("In", exact=True).fill("0.5")
    page.get_by_label("In", exact=True).press("Enter")
    page.get_by_text("16 frames of 64x64").wait_for()
    assert request_of(page)["input_path"] != first["input_path"]
    assert request_of(page)["num_frames"] == 16
    visiting.shot("clip")
    page.get_by_label("Filter before").select_option("gray")
    wait_for_plan(page)
    generate(page)
    wait_until_done(page)
    page.get_by_role("button", name="Remove the input video").click()
    assert "input_path" not in request_of(page)


def test_a_clip_that_the_browser_cannot_play_shows_the_poster_of_the_server(
    visit: Callable[..., Visit], page_server: Frontend
) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    page.evaluate("Object.defineProperty(HTMLVideoElement.prototype, 'videoWidth', {get: () => 0})")
    page.get_by_label("Drop a video here, or choose one").set_input_files(CLIP)
    page.get_by_text("This browser cannot play the file; the server can.").wait_for()
    poster = page.get_by_alt_text("First frame of the input video")
    assert (poster.get_attribute("src") or "").startswith("data:image/webp")
    visiting.shot("clip-poster")


def test_a_file_that_is_no_video_is_refused_where_it_was_dropped(
    visit: Callable[..., Visit], page_server: Frontend
) -> None:
    visiting = visit(page_server)
    visiting.expect(lambda problem: problem.startswith("POST") and "/generate/upload?" in problem)
    page = ready(visiting)
    files = {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": b"this is no video"}
    page.get_by_label("Drop a video here, or choose one").set_input_files(files)  # type: ignore[arg-type]
    page.locator(".clip .problem").wait_for()
    assert "input_path" not in request_of(page)


def test_images_are_first_and_last_frame_and_reference(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    page.get_by_label("Frames", exact=True).fill("21")
    for role in ("First frame", "Last frame", "Reference"):
        page.get_by_label(role, exact=True).set_input_files(PICTURE)
        page.get_by_role("button", name=re.compile(f"^Remove: {role.lower()}")).wait_for()
    first, last = spec_of(page, 0), spec_of(page, 1)
    assert first["first_frame_image"] == last["vace_ref_images"][0] or len(first["vace_ref_images"]) == 1
    assert first["vace_ref_images"] == last["vace_ref_images"]
    assert "last_frame_image" not in first
    wait_for_plan(page)
    page.get_by_label("Frames", exact=True).fill(
        "33"
    )  # the last frame stays the last one, and the new chunk has the reference
    assert spec_of(page, 2)["last_frame_image"] == last["last_frame_image"]
    assert spec_of(page, 2)["vace_ref_images"] == first["vace_ref_images"]
    assert "last_frame_image" not in spec_of(page, 1)
    wait_for_plan(page)
    visiting.shot("images")
    page.get_by_role("button", name="Remove: first frame").click()
    assert "first_frame_image" not in spec_of(page, 0)


# -- Timeline -------------------------------------------------------------------------------------------------------


def test_chunks_are_added_moved_and_removed_and_that_can_be_undone(
    visit: Callable[..., Visit], page_server: Frontend
) -> None:
    page = ready(visit(page_server))
    page.get_by_label("Frames", exact=True).fill("33")
    wait_for_plan(page)
    cells(page).nth(1).click()
    page.get_by_role("button", name="Change the prompt here").click()
    page.get_by_label("Prompt from here on").fill("a blue square moving up on a white background")
    start = request_of(page)
    page.get_by_role("button", name="Add a chunk after this one").click()
    assert request_of(page)["num_frames"] == 45
    assert cells(page).count() == 4
    cells(page).nth(1).click()
    page.get_by_role("button", name="Move the chunk to the left").click()
    moved = request_of(page)
    assert moved["prompt"] == "a blue square moving up on a white background"
    assert {spec["chunk"]: spec["text"] for spec in moved["chunk_specs"]} == {
        1: start["prompt"],
        2: "a blue square moving up on a white background",
    }
    page.get_by_role("button", name="Remove the chunk", exact=True).click()
    assert request_of(page)["num_frames"] == 33
    assert request_of(page)["prompt"] == start["prompt"]
    for _ in range(3):
        page.get_by_role("button", name="Undo").click()
    assert request_of(page) == start
    page.keyboard.press("Control+Shift+z")
    assert request_of(page)["num_frames"] == 45


def test_a_chunk_has_settings_of_its_own(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    page.get_by_label("Frames", exact=True).fill("33")
    wait_for_plan(page)
    cells(page).nth(1).click()
    chunk = page.get_by_role("group", name="Chunk 2")
    chunk.get_by_role("button", name="Add a transition to another prompt").click()
    chunk.get_by_label("Transition to").fill("a red circle moving left on a green background")
    chunk.get_by_label("Transition takes").fill("2")
    chunk.get_by_label("Seed of this chunk").fill("5")
    chunk.get_by_label("Start afresh here").check()
    chunk.get_by_label("Starts with").set_input_files(PICTURE)
    chunk.get_by_role("button", name="Remove: starts with").wait_for()
    page.get_by_role("slider", name="LoRA outlines in chunk 3").focus()
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    spec = spec_of(page, 1)
    assert spec["transition_target_prompts"] == [{"text": "a red circle moving left on a green background"}]
    assert (spec["transition_num_steps"], spec["seed"], spec["reset_cache"]) == (2, 5, True)
    assert spec["first_frame_image"].startswith("asset-")
    assert spec_of(page, 2)["lora_scales"] == {"outlines": 0.2}
    assert "lora_scales" not in spec
    assert page.get_by_role("button", name="⇢ a red circle moving left on a green background").count() == 1
    wait_for_plan(page)
    visiting.shot("timeline")
    generate(page)
    wait_until_done(page)


def test_a_curve_is_drawn_with_the_pointer(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server))
    page.get_by_label("Frames", exact=True).fill("33")
    wait_for_plan(page)
    points = page.get_by_role("slider", name=re.compile("LoRA outlines in chunk"))
    points.first.scroll_into_view_if_needed()
    boxes = [box for box in (point.bounding_box() for point in points.all()) if box]
    page.mouse.move(boxes[0]["x"] + 5, boxes[0]["y"] + 5)
    page.mouse.down()
    for box in boxes:
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5, steps=5)
    page.mouse.up()
    top = request_of(page)["lora_scales"]["outlines"]
    assert top > 1
    assert "chunk_specs" not in request_of(page)  # the same everywhere
    points.first.press("Shift+PageDown")
    assert request_of(page)["lora_scales"]["outlines"] == pytest.approx(top - 0.2)


def test_a_mask_is_drawn_on_the_input_video(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    cells(page).first.click()
    assert page.get_by_role("button", name="Draw a mask").is_disabled()
    page.get_by_label("Drop a video here, or choose one").set_input_files(CLIP)
    page.get_by_text("39 frames of 64x64").wait_for()
    for chunk, area in ((0, "Left"), (2, "Middle")):
        cells(page).nth(chunk).click()
        page.get_by_role("button", name="Draw a mask").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name=area).click()
        canvas = dialog.get_by_role("img", name="Mask to paint").bounding_box()
        assert canvas
        page.mouse.move(canvas["x"] + 10, canvas["y"] + 10)
        page.mouse.down()
        page.mouse.move(canvas["x"] + 60, canvas["y"] + 60, steps=4)
        page.mouse.up()
        visiting.shot("mask")
        dialog.get_by_role("button", name="Use the mask").click()
        page.get_by_alt_text("The mask: white is replaced").wait_for()
    masks = [spec_of(page, chunk) for chunk in (0, 2)]
    assert [mask["vace_masks_shape"] for mask in masks] == [[1, 1, 1, 64, 64]] * 2
    assert {mask["vace_masks_offset"] for mask in masks} == {0, 64 * 64 * 4}
    wait_for_plan(page)
    generate(page)
    wait_until_done(page)


# -- What the server would refuse -------------------------------------------------------------------------------------


def test_a_refusal_is_shown_before_posting_at_its_field(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    visiting.expect(lambda problem: "dry_run=1 422" in problem)
    page = ready(visiting)
    before = http.get(f"{page_server.url}/api/v1/generations?limit=1").json()["generations"]
    request = request_of(page)
    write(page, request | {"height": 65, "width": 64})
    size = page.locator(".field", has=page.get_by_label("Size"))
    size.get_by_text("height: 65 is not a multiple of 16, try 64 or 80").wait_for()
    visiting.shot("refused")
    write(page, request | {"chunk_specs": [{"chunk": 0}, {"chunk": 2, "lora_scales": {"sepia": 1}}]})
    message = "'sepia' is not a LoRA of this pipeline; longlive-small has: outlines"
    page.locator("#verdict").get_by_text(message).wait_for()
    page.get_by_role("button", name="Show chunk 3").click()
    page.get_by_role("group", name="Chunk 3").get_by_text(message).wait_for()
    assert "refused" in (cells(page).nth(2).get_attribute("aria-label") or "")
    generate(page)
    page.wait_for_timeout(500)
    assert http.get(f"{page_server.url}/api/v1/generations?limit=1").json()["generations"] == before


def test_the_drawer_writes_back_and_copies_without_the_key(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    visiting.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = ready(visiting)
    text = drawer(page)
    text.fill("{")
    page.get_by_role("complementary", name="JSON").get_by_role("alert").wait_for()
    write(page, {"pipeline_id": "longlive-small", "prompt": "it's a square", "num_frames": 21, "seed": 3})
    assert page.get_by_label("Prompt", exact=True).input_value() == "it's a square"
    assert page.get_by_label("Seed", exact=True).input_value() == "3"
    page.get_by_label("Seed", exact=True).fill("4")
    assert request_of(page)["seed"] == 4
    page.get_by_role("button", name="Copy as curl").click()
    page.get_by_text("Copied as curl.").wait_for()
    curl = page.evaluate("navigator.clipboard.readText()")
    assert curl.startswith(f"curl -X POST '{page_server.url}/api/v1/generations'")
    assert "it'\\''s a square" in curl
    page.get_by_role("button", name="Copy as Python").click()
    page.get_by_text("Copied as Python.").wait_for()
    python = page.evaluate("navigator.clipboard.readText()")
    compile(python, "copied.py", "exec")
    assert 'prompt="it\'s a square"' in python
    visiting.shot("drawer")


# -- Watching -------------------------------------------------------------------------------------------------------


def long_request(page: "Page", frames: int = 1209) -> None:
    """A request that runs for as long as a test looks at it."""
    page.get_by_label("Frames", exact=True).fill(str(frames))
    wait_for_plan(page)


def test_it_goes_on_after_a_reload_and_on_another_device_until_it_is_cancelled(
    visit: Callable[..., Visit], page_server: Frontend
) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    long_request(page)
    generate(page)
    page.get_by_text(re.compile(r"Chunk [2-9] of 101")).wait_for(timeout=DONE_MS)
    page.get_by_text(re.compile(r"\d fps$")).wait_for()
    cells(page).locator("img").nth(1).wait_for()
    wait_for_video(page)
    visiting.shot("running")
    page.reload()
    page.get_by_text(re.compile(r"Chunk \d+ of 101")).wait_for()
    cells(page).locator("img").nth(1).wait_for()
    other = visit(page_server, viewport=PHONE)
    phone = other.open()
    phone.get_by_text(re.compile(r"Chunk \d+ of 101")).wait_for()
    assert phone.get_by_label("Frames", exact=True).input_value() == "1209"
    other.shot("running-phone")
    phone.keyboard.press("Escape")
    for tab in (phone, page):
        wait_until_done(tab, "Cancelled.")
        tab.get_by_text(re.compile(r"\d+ of 1209 frames are kept")).wait_for()
    wait_for_video(page)


def test_a_second_one_waits_and_shows_its_place(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    long_request(page)
    page.keyboard.press("Control+Enter")
    page.get_by_text(re.compile(r"^(Starting…|Chunk \d+ of 101)$")).wait_for(timeout=DONE_MS)
    other = visit(page_server)
    second = other.page
    second.goto(page_server.url)
    second.get_by_text(re.compile(r"^(Starting…|Chunk \d+ of 101)$")).wait_for()
    wait_for_plan(second)
    generate(second)
    second.get_by_text("Next in the queue").wait_for()
    other.shot("queued")
    second.get_by_role("button", name="Cancel").click()
    wait_until_done(second, "Cancelled.")
    second.get_by_text("No frames were made.").wait_for()
    page.get_by_role("button", name="Cancel").click()
    wait_until_done(page, "Cancelled.")


# -- Habits -----------------------------------------------------------------------------------------------------------


def test_the_page_is_accessible_in_its_states(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    visiting.check_accessible("make")
    cells(page).nth(1).click()
    page.get_by_role("button", name="Add a transition to another prompt").click()
    drawer(page)
    wait_for_plan(page)
    visiting.check_accessible("timeline-open")
    page.get_by_label("Drop a video here, or choose one").set_input_files(CLIP)
    page.get_by_text("39 frames of 64x64").wait_for()
    page.get_by_role("button", name="Draw a mask").click()
    visiting.check_accessible("mask-open")


def test_the_strip_is_used_with_the_keyboard(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server))
    cells(page).first.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert cells(page).nth(2).get_attribute("aria-selected") == "true"
    assert page.evaluate("document.activeElement.dataset.chunk") == "2"
    page.keyboard.press("ArrowLeft")
    page.get_by_role("group", name="Chunk 2").wait_for()


def test_colours_are_chosen_and_kept(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server, color_scheme="dark"))
    page.get_by_role("button", name="Light colours").click()
    page.reload()
    page.get_by_role("button", name="Dark colours").wait_for()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_what_is_loaded_for_the_first_paint_is_small(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server))
    sizes = page.evaluate(
        """() => {
            const painted = performance.getEntriesByType('paint')[0].startTime;
            return performance.getEntriesByType('resource')
                .filter(entry => entry.name.includes('/page/') && !entry.name.includes('/vendor/'))
                .map(entry => [entry.startTime < painted, entry.encodedBodySize]);
        }"""
    )
    assert 0 < sum(size for _, size in sizes) < 100_000
    assert sum(is_early for is_early, _ in sizes) > 0


def test_values_that_the_page_cannot_show_are_refused_in_the_words_of_the_server(
    visit: Callable[..., Visit], page_server: Frontend
) -> None:
    visiting = visit(page_server)
    visiting.expect(lambda problem: "dry_run=1 422" in problem)
    page = ready(visiting)
    before = request_of(page)
    panel = page.get_by_role("complementary", name="JSON")
    for bad, message in (({"prompt": 5}, "prompt: "), ({"chunk_specs": {"chunk": 1}}, "chunk_specs: ")):
        write(page, before | bad)
        panel.get_by_role("alert").get_by_text(message).wait_for()
        assert page.get_by_label("Prompt", exact=True).input_value() == before["prompt"]
