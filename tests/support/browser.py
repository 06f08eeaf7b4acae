"""A real Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NO_CHROMIUM = "no Chromium here; .ci/run installs it"
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"),
    "--autoplay-policy=no-user-gesture-required",
)

_ONCE = """
  const once = (target, name) => new Promise((done, failed) => {
    target.addEventListener(name, done, {once: true});
    target.addEventListener("error", () => failed(`${name}: ${target.error?.message}`), {once: true});
  });
"""


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Run a browser; the tests of one thread can have one at a time."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 (`make setup` does not install it)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def what_a_page_reports(script: str) -> Any:
    """Run a script in an empty page.

    Args:
        script: the body of an async function, which returns what it found; `once(target, event)` waits for an event.
    """
    with chromium() as browser:
        return browser.new_page().evaluate(f"async () => {{ {_ONCE} {script} }}")
