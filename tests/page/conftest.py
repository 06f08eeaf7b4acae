"""The page in a real Chromium, on a real server with `longlive-small`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.page.visits import Visit
from tests.support.browser import CHROMIUM, NO_CHROMIUM, chromium
from tests.support.server import MODELS, Frontend, frontend_on, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def page_server(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend and its Triton for the tests of the page, whose gallery no other test fills."""
    repository = f"{small_repository}:{MODELS}"
    with serving(Frontend(tmp_path_factory.mktemp("page"), "--embedded", model_repository=repository)) as frontend:
        yield frontend


@pytest.fixture(scope="module")
def empty_server(page_server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend of this file's own on the same Triton: nothing was made there before."""
    with frontend_on(page_server, tmp_path_factory.mktemp("empty")) as frontend:
        yield frontend


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A browser for the tests of a file; while it runs, this thread can run no event loop of its own."""
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    pytest.importorskip("playwright", reason="playwright is not installed: see CONTRIBUTING.md")
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Callable[..., Visit]]:
    """Visit a server as a new user. After the test, nothing unexpected may have happened in any tab."""
    visits: list[Visit] = []

    def start(server: Frontend, **options: Any) -> Visit:
        options = {"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce"} | options
        visits.append(Visit(contexts.enter_context(browser.new_context(**options)), server.url))
        visits[-1].context.set_default_timeout(30_000)
        return visits[-1]

    with ExitStack() as contexts:
        yield start
        problems = [problem for each in visits for problem in each.problems]
    assert not problems, "\n".join(problems)
