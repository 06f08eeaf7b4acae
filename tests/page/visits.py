"""What a test sees of the page: a browser's tab in which nothing may go wrong unnoticed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.server import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, Response

SCREENSHOTS = ROOT / "out" / "page"
PHONE = {"width": 390, "height": 844}
_NOT_LOADED = "Failed to load resource"  # how Chromium's console repeats a failed request


class Visit:
    """A tab, and everything in it that users should never meet.

    Attributes:
        page: Playwright's page.
        url: address of the server.
        problems: errors, messages on the console, violations of the Content-Security-Policy, and refused requests.
    """

    def __init__(self, context: "BrowserContext", url: str) -> None:
        self.context, self.url = context, url
        self.problems: list[str] = []
        self._is_expected: Callable[[str], bool] = lambda _: False
        context.add_init_script(
            "document.addEventListener('securitypolicyviolation', event => "
            "console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`))"
        )
        self.page = context.new_page()
        self.watch(self.page)

    def watch(self, page: "Page") -> None:
        """Note what goes wrong in another tab, too."""
        page.on("console", self._message)
        page.on("pageerror", lambda error: self._note(f"error: {error}"))
        page.on("response", self._response)
        page.on("requestfailed", self._failed)

    def open(self, path: str = "/") -> "Page":
        """Open the page, and wait until it has loaded what it shows first."""
        self.page.goto(self.url + path)
        self.page.get_by_label("Prompt", exact=True).wait_for()
        return self.page

    def expect(self, is_expected: Callable[[str], bool]) -> None:
        """Ignore those problems that a test provokes: refused and failed requests, by their text."""
        self._is_expected = is_expected

    def eventually(self, script: str, timeout_s: float = 30) -> None:
        """Wait until a script finds something; Playwright's own `wait_for_function` would violate the policy."""
        deadline = time.monotonic() + timeout_s
        while not self.page.evaluate(script):
            assert time.monotonic() < deadline, script
            self.page.wait_for_timeout(50)

    def shot(self, name: str, **options: Any) -> Path:
        """Write a screenshot of a state, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path, animations="disabled", **options)
        return path

    def check_accessible(self, name: str) -> None:
        """Check this state, dark on a screen and light on a phone, with screenshots of both schemes at both widths.

        Raises:
            AssertionError: axe-core found violations, or the page is wider than the phone.
        """
        from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 (`make setup` does not install it)

        usual = self.page.viewport_size
        for scheme, size in (("dark", usual), ("light", usual), ("dark", PHONE), ("light", PHONE)):
            self.page.emulate_media(color_scheme=scheme)
            if self.page.viewport_size != size:
                self.page.set_viewport_size(size)
            self.shot(f"{name}-{scheme}{'-phone' if size is PHONE else ''}", full_page=True)
            if (scheme == "light") is (size is PHONE):  # a run takes a second or more
                result = Axe().run(self.page)
                assert result.violations_count == 0, f"{name}, {scheme}, {size}:\n{result.generate_report()}"
            width = self.page.evaluate("document.documentElement.scrollWidth")
            assert width <= size["width"], f"{name} is {width} pixels wide"
        self.page.set_viewport_size(usual)
        self.page.emulate_media(color_scheme=None)

    def _note(self, problem: str) -> None:
        if not self._is_expected(problem):
            self.problems.append(problem)

    def _message(self, message: "ConsoleMessage") -> None:
        if not message.text.startswith(_NOT_LOADED):  # the events of requests have more to say
            self._note(f"console {message.type}: {message.text}")

    def _response(self, response: "Response") -> None:
        if response.status >= 400:
            self._note(f"{response.request.method} {response.url} {response.status}")

    def _failed(self, request: "Request") -> None:
        if request.failure != "net::ERR_ABORTED":  # the page itself ends requests, such as those of a video
            self._note(f"{request.method} {request.url} failed: {request.failure}")
