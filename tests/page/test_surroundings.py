"""The page on other servers: with keys, below a path prefix, out of reach, and with a model that fails."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.page.test_making import (
    DONE_MS,
    cells,
    generate,
    ready,
    wait_for_plan,
    wait_for_video,
    wait_until_done,
    write,
)
from tests.page.visits import Visit
from tests.support import http
from tests.support.server import Frontend, frontend_on

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

KEY = "a-key-of-alice-0123456789"
PREFIX = "/film"


@pytest.fixture(scope="module")
def locked_server(page_server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The same Triton behind a frontend with a key."""
    folder: Path = tmp_path_factory.mktemp("locked")
    with frontend_on(page_server, folder, api_keys=f"alice:{KEY}") as frontend:
        yield frontend


def unlock(page: "Page", key: str) -> None:
    page.get_by_role("dialog", name="API key").get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Unlock").click()


def test_a_key_is_asked_for_once_and_stays_secret(visit: Callable[..., Visit], locked_server: Frontend) -> None:
    visiting = visit(locked_server)
    visiting.context.grant_permissions(["clipboard-read", "clipboard-write"])
    addresses: list[str] = []
    page = visiting.open()
    page.on("request", lambda request: addresses.append(request.url))
    visiting.shot("key")
    visiting.expect(lambda problem: problem.endswith("/api/v1/pipelines 401"))
    unlock(page, "wrong")
    page.get_by_role("dialog").get_by_text("missing or invalid API key").wait_for()
    visiting.expect(lambda _: False)
    unlock(page, KEY)
    wait_for_plan(page)
    generate(page)
    wait_until_done(page)
    wait_for_video(page)
    assert cells(page).locator("img").count() > 0
    page.get_by_role("button", name="JSON", exact=True).click()
    for what in ("curl", "Python"):
        page.get_by_role("button", name=f"Copy as {what}").click()
        page.get_by_text(f"Copied as {what}.").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert "FILMSTRIP_TOKEN" in copied
        assert KEY not in copied
    assert page.evaluate("JSON.stringify(localStorage)").find(KEY) < 0
    page.reload()
    wait_for_plan(page)
    assert page.get_by_role("dialog").count() == 0
    assert not [address for address in addresses if KEY in address]
    assert KEY not in page.content()


def test_a_key_is_remembered_if_the_user_wants_that(visit: Callable[..., Visit], locked_server: Frontend) -> None:
    visiting = visit(locked_server)
    page = visiting.open()
    page.get_by_label("Remember it in this browser").check()
    unlock(page, KEY)
    wait_for_plan(page)
    other = visiting.context.new_page()
    visiting.watch(other)
    other.goto(locked_server.url)
    wait_for_plan(other)


def test_a_refused_key_does_not_replace_the_remembered_one(
    visit: Callable[..., Visit], locked_server: Frontend
) -> None:
    visiting = visit(locked_server)
    page = visiting.open()
    page.get_by_label("Remember it in this browser").check()
    unlock(page, KEY)
    wait_for_plan(page)
    visiting.expect(lambda problem: problem.endswith("/api/v1/pipelines 401"))
    page.get_by_role("button", name="API key").click()
    unlock(page, "wrong")
    page.get_by_role("alert").filter(has_text="key").wait_for()
    other = visiting.context.new_page()
    visiting.watch(other)
    other.goto(locked_server.url)
    wait_for_plan(other)


def test_the_page_works_below_a_path_prefix(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    asked: list[str] = []

    def proxy(route: "Route") -> None:
        asked.append(route.request.url)
        route.continue_(url=route.request.url.replace(f"{page_server.url}{PREFIX}/", f"{page_server.url}/"))

    visiting.context.route(f"{page_server.url}/**", lambda route: (asked.append(route.request.url), route.abort()))
    visiting.context.route(f"{page_server.url}{PREFIX}/**", proxy)
    page = visiting.open(f"{PREFIX}/")
    wait_for_plan(page)
    generate(page)
    wait_until_done(page)
    wait_for_video(page)
    assert [address for address in asked if not address.startswith(f"{page_server.url}{PREFIX}/")] == []


def test_a_server_that_is_out_of_reach_is_waited_for(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    visiting.expect(lambda problem: "net::ERR_INTERNET_DISCONNECTED" in problem)
    visiting.context.set_offline(True)
    page.get_by_label("Prompt", exact=True).fill("a red circle moving up on a white background")
    page.get_by_text("The server cannot be reached. Trying again…").wait_for()
    visiting.shot("offline")
    visiting.context.set_offline(False)
    wait_for_plan(page)
    page.get_by_text("Trying again…").wait_for(state="detached")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a red circle moving up on a white background"


def test_a_model_that_fails_says_so(visit: Callable[..., Visit], page_server: Frontend) -> None:
    visiting = visit(page_server)
    page = ready(visiting)
    write(page, {"pipeline_id": "probe", "prompt": "!error", "num_frames": 24})
    wait_for_plan(page)
    generate(page)
    page.get_by_text("No video.", exact=True).wait_for(timeout=DONE_MS)
    page.get_by_text("model_error").wait_for()
    visiting.shot("failed")
    page.get_by_role("button", name="Try again").click()
    page.get_by_text(re.compile("Starting…|No video.")).first.wait_for()


def test_moved_chunks_keep_their_prompts(visit: Callable[..., Visit], page_server: Frontend) -> None:
    """Each chunk shows the same prompt before and after; checked on random requests."""
    page = ready(visit(page_server))
    wrong = page.evaluate(
        """async () => {
            const { moveChunk } = await import("./page/chunks.js");
            const { promptsInForce } = await import("./page/request.js");
            let seed = 1;
            const below = limit => (seed = (seed * 48271) % 2147483647) % limit;
            for (let trial = 0; trial < 500; trial += 1) {
                const chunks = 2 + below(6);
                const chunk_specs = [];
                for (let chunk = 0; chunk < chunks; chunk += 1) {
                    if (below(3) === 0) chunk_specs.push({ chunk, text: "p" + below(3) });
                    else if (below(4) === 0) chunk_specs.push({ chunk, seed: below(9) });
                }
                const request = { pipeline_id: "p", prompt: "p0", num_frames: 12 * chunks, chunk_specs };
                const from = below(chunks), to = below(chunks);
                const prompts = promptsInForce(request, chunks).map(({ prompt }) => prompt);
                prompts.splice(to, 0, ...prompts.splice(from, 1));
                const moved = moveChunk(request, from, to, chunks);
                const found = promptsInForce(moved, chunks).map(({ prompt }) => prompt);
                if (found.join() !== prompts.join()) return { request, from, to, moved, prompts };
            }
            return null;
        }"""
    )
    assert wrong is None, json.dumps(wrong)


def test_a_deleted_generation_is_gone_from_the_screen(visit: Callable[..., Visit], page_server: Frontend) -> None:
    page = ready(visit(page_server))
    generate(page)
    wait_until_done(page)
    newest = http.get(f"{page_server.url}/api/v1/generations?limit=1").json()["generations"][0]["id"]
    assert http.delete(f"{page_server.url}/api/v1/generations/{newest}").status_code == 204
    page.reload()
    page.get_by_text("Your video appears here").wait_for()
