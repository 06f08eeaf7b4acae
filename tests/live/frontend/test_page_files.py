"""The files of the web page: what is served, to whom, and with which headers."""

import gzip
import re
from urllib.parse import urljoin

import httpx
import pytest

from tests.support import http
from tests.support.raw_client import raw_request, send_raw
from tests.support.refusals import refusal_of
from tests.support.server import ROOT, Frontend

FOLDER = ROOT / "frontend" / "page"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
LINKS = re.compile(r"""(?:href|src)="([^":]+)\"""")
IMPORTS = re.compile(r"""(?:from\s*|import\()"(\.[^"]+)\"""")


def loaded_files(url: str) -> dict[str, httpx.Response]:
    """The page and everything that it loads, by address."""
    found: dict[str, httpx.Response] = {}
    waiting = [url]
    while waiting:
        address = waiting.pop()
        if address in found or address == urljoin(url, "docs"):
            continue
        found[address] = answer = http.get(address)
        assert answer.status_code == 200, address
        pattern = LINKS if answer.headers["content-type"].startswith("text/html") else IMPORTS
        waiting += [urljoin(address, link) for link in pattern.findall(answer.text)]
    return found


def test_the_page_loads_its_own_files_and_no_others(server: Frontend) -> None:
    found = loaded_files(f"{server.url}/")
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.suffix in (".js", ".css")}
    assert {f"{server.url}/page/{name}" for name in files} < found.keys()
    for address, answer in found.items():
        assert address.startswith(server.url)
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        assert http.get(address, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_nothing_of_the_page_is_inline(server: Frontend) -> None:
    page = http.get(f"{server.url}/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_its_own_code_is_small_on_the_way_to_a_browser() -> None:
    own = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes())) for path in own) < 100_000


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/favicon.ico"])
def test_it_can_only_be_read(server: Frontend, path: str) -> None:
    read = send_raw(server.url, raw_request(f"GET {path}"))
    head = send_raw(server.url, raw_request(f"HEAD {path}"))
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", read.headers["content-length"])
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert refusal_of(server, f"{method} {path}")["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "name", ["", "index", "../page_files.py", "..%2fpage_files.py", "%2e%2e/app.py", "vendor", "vendor/", "/app.js"]
)
def test_nothing_else_is_served(server: Frontend, name: str) -> None:
    assert refusal_of(server, f"GET /page/{name}")["code"] == "not_found"
