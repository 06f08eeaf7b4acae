"""That a test of the page notices what goes wrong in its tab, and that the page loads without any of it."""

from collections.abc import Callable

import pytest

from tests.page.visits import Visit
from tests.support.server import Frontend


def test_the_page_opens_without_a_sound(visit: Callable[..., Visit], empty_server: Frontend) -> None:
    page = visit(empty_server).open()
    assert page.title() == "Filmstrip"
    assert page.get_by_role("button", name="Generate").count() == 1
    first = page.locator("textarea, input:not([type]), input[type=text]").first
    assert first.evaluate("element => element.labels[0].textContent").strip() == "Prompt"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("console.log('hello')", "console log: hello"),
        ("console.warn('careful')", "console warning: careful"),
        ("setTimeout(() => { throw new Error('lost') })", "error: lost"),
        ("fetch('api/v1/generations/none')", "GET {url}/api/v1/generations/none 404"),
        (
            "document.head.append(Object.assign(document.createElement('style'), {textContent: 'a {}'}))",
            "CSP: style-src",
        ),
        ("document.body.setAttribute('style', 'color: red')", "CSP: style-src"),
        ("fetch('http://127.0.0.1:9/').catch(() => {})", "CSP: connect-src"),
        ("void new Image().setAttribute('src', 'http://127.0.0.1:9/')", "CSP: img-src"),
    ],
)
def test_what_goes_wrong_is_noticed(
    visit: Callable[..., Visit], empty_server: Frontend, script: str, problem: str
) -> None:
    visiting = visit(empty_server)
    page = visiting.open()
    page.evaluate(f"() => {{ {script} }}")
    expected = problem.format(url=empty_server.url)
    for _ in range(100):
        if any(expected in found for found in visiting.problems):
            break
        page.wait_for_timeout(50)
    assert any(expected in found for found in visiting.problems), visiting.problems
    visiting.problems.clear()
    visiting.expect(lambda _: True)


def test_violations_of_accessibility_are_noticed(visit: Callable[..., Visit], empty_server: Frontend) -> None:
    visiting = visit(empty_server)
    page = visiting.open()
    page.evaluate("document.body.append(document.createElement('button'))")
    with pytest.raises(AssertionError, match="button-name"):
        visiting.check_accessible("unnamed-button")
