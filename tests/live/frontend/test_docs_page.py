"""The API's page and document: under a path prefix, kept, compressed and conditional."""

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin, urlsplit

import httpx
import psutil
import pytest

from tests.support import http
from tests.support.browser import CHROMIUM, NO_CHROMIUM, chromium
from tests.support.raw_client import raw_request, send_raw
from tests.support.server import Frontend

PREFIX = "/film"
PATHS = ("/docs", "/openapi.json", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")


@dataclass
class Proxy:
    """A proxy that serves a frontend below a path prefix, which it takes away, and knows nothing else."""

    url: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def proxy(server: Frontend) -> Iterator[Proxy]:
    behind = urlsplit(server.url)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            if not self.path.startswith(f"{PREFIX}/"):
                self.send_error(404)
                return
            connection = HTTPConnection(str(behind.hostname), behind.port)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "accept-encoding"}
            connection.request("GET", self.path.removeprefix(PREFIX), headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            connection.close()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        found = Proxy(f"http://127.0.0.1:{listening.server_port}")
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield found
        listening.shutdown()
        thread.join()


def test_every_link_stays_below_the_prefix(proxy: Proxy) -> None:
    base = f"{proxy.url}{PREFIX}"
    for start in ("/docs", "/docs/"):
        page = http.get(f"{base}{start}", follow_redirects=True)
        assert (page.status_code, str(page.url)) == (200, f"{base}/docs")
        for link in ("docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "openapi.json"):
            assert f'"{link}"' in page.text
            assert http.get(urljoin(str(page.url), link)).status_code == 200
    document = http.get(f"{base}/openapi.json").json()
    (api,) = document["servers"]
    assert urljoin(f"{base}/openapi.json", api["url"]) == f"{base}/"


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_a_browser_shows_the_page_below_the_prefix_and_can_try_it_out(proxy: Proxy) -> None:
    proxy.asked.clear()
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"{proxy.url}{PREFIX}/docs/")
        for step in ("#operations-default-get_health .opblock-summary-control", ".try-out__btn", ".execute"):
            page.locator(step).first.click()
        page.locator(".live-responses-table").wait_for()
    assert f"{PREFIX}/health" in proxy.asked
    assert [path for path in proxy.asked if not path.startswith(PREFIX)] == []


def test_nothing_of_a_client_comes_into_an_answer(server: Frontend) -> None:
    plain = {path: send_raw(server.url, raw_request(f"GET {path}")).body for path in (*PATHS[:2], "/")}
    headers = [
        f"{name}: evil" for name in ("X-Forwarded-Prefix", "X-Forwarded-Host", "X-Script-Name", "Forwarded", "Referer")
    ]
    for path, body in plain.items():
        answer = send_raw(server.url, raw_request(f"GET {path}?evil", *headers, host="evil.localhost"))
        assert answer.body == body
        assert "evil" not in str(answer.headers)


@pytest.mark.parametrize("path", PATHS)
def test_it_is_conditional_and_compressed(server: Frontend, path: str) -> None:
    plain = send_raw(server.url, raw_request(f"GET {path}"))
    assert plain.status == 200
    assert "content-encoding" not in plain.headers
    tags = [plain.headers["etag"]]
    for coding in ("gzip", "br, gzip;q=0.5", "*", "GZIP"):
        answer = send_raw(server.url, raw_request(f"GET {path}", f"Accept-Encoding: {coding}"))
        assert answer.headers["content-encoding"] == "gzip", coding
        assert gzip.decompress(answer.body) == plain.body
        assert "accept-encoding" in answer.headers["vary"]
        tags.append(answer.headers["etag"])
    assert len(set(tags)) == 2  # of other bytes, another tag
    for coding in ("gzip;q=0", "identity", "br", "gzip;q=0, *", ""):
        assert send_raw(server.url, raw_request(f"GET {path}", f"Accept-Encoding: {coding}")).body == plain.body, coding
    for method in ("GET", "HEAD"):
        for tag in (*tags, f"W/{tags[0]}", f'"x", {tags[0]}', "*"):
            answer = send_raw(server.url, raw_request(f"{method} {path}", f"If-None-Match: {tag}"))
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["etag"] == tags[0]
            assert "content-type" not in answer.headers
    assert send_raw(server.url, raw_request(f"GET {path}", 'If-None-Match: "x"')).body == plain.body
    head = send_raw(server.url, raw_request(f"HEAD {path}"))
    assert (head.body, head.headers["content-length"]) == (b"", plain.headers["content-length"])


def test_the_document_costs_no_more_than_a_small_answer(server: Frontend) -> None:
    """It was made anew each time, at nine times the CPU of /health; compared by the process's own clock."""
    process = psutil.Process(server.process.pid)

    def cpu_s(path: str) -> float:
        with httpx.Client(base_url=server.url) as client:
            client.get(path)
            before = sum(process.cpu_times()[:2])
            for _ in range(150):
                assert client.get(path, headers={"Accept-Encoding": "identity"}).status_code in (200, 422)
            return sum(process.cpu_times()[:2]) - before

    small = cpu_s("/api/v1/generate/download")
    for path in PATHS[:2]:
        assert cpu_s(path) < 3 * small + 0.1
