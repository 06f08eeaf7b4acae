"""Invalid names, addresses, methods and headers: the responses expose neither the file system nor the server."""

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support.http import DOWNLOAD, GENERATE, LOAD, UPLOAD
from tests.support.raw_client import raw_request, send_raw
from tests.support.recovery import PROBE, assert_recovers
from tests.support.refusals import check_refusal, count_tracebacks, generate_refusal, refusal_of
from tests.support.server import Frontend

SMILE = "\U0001f600"


@pytest.fixture(scope="module", autouse=True)
def server_recovers(server: Frontend) -> Iterator[None]:
    before = count_tracebacks(server)
    with assert_recovers(server, inputs=1, outputs=1):
        yield
    assert count_tracebacks(server) == before


@pytest.fixture(scope="module")
def output(server: Frontend) -> str:
    return str(server.generate(**PROBE)[-1][1]["output_path"])


@pytest.fixture(scope="module")
def blob(server: Frontend) -> str:
    return server.upload_data(b"blobs cannot be downloaded")


# -- Names of files -------------------------------------------------------------------------------------------

# fmt: off
NAMES = [
    ".", "..", "/", "//", "~", "/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "\\\\host\\share", "C:\\",
    "/proc/self/environ", "/dev/zero", "/dev/shm", "lock", "../lock", "outputs/", "%2e%2e/lock", "..%2flock",
    "..%252flock", "....//lock", "\x00", "output-\x00", "\r\nX-Evil: yes\r\n\r\n", "x" * 256, SMILE * 256,
    "output-", "output-" + "0" * 31, "output-" + "0" * 33, "output-" + "G" * 32, "OUTPUT-" + "0" * 32,
    "output-" + "\u0660" * 32, "output-" + "\uff10" * 32, "\u043eutput-" + "0" * 32, "output-" + "0" * 32 + "\n",
    "{output}/", "{output}/../{output}", "./{output}", "outputs/{output}", "{output}\x00", "{output}@", "{output} ",
    " {output}", "{output}\n", "{output}%00", "{blob}", "../blobs/{blob}", "output-{bits}", "video-{bits}",
]
# fmt: on


def test_names_that_the_server_did_not_create(
    server: Frontend, output: str, blob: str, subtests: pytest.Subtests
) -> None:
    """As a download, an input, a blob, an image, a pipeline and a LoRA."""
    for template in NAMES:
        name = template.replace("{output}", output).replace("{blob}", blob).replace("{bits}", blob.partition("-")[2])
        with subtests.test(ascii(template)[:40]):
            check_name(server, name, blob)


def check_name(server: Frontend, name: str, blob: str) -> None:
    error = refusal_of(server, f"GET {DOWNLOAD}?path={quote(name, safe='')}")
    assert (error["code"], error["field"]) == ("unknown_path", "path")
    if name.isascii() and name.isprintable() and " " not in name:
        refusal_of(server, f"GET {DOWNLOAD}?path={name}")
    for field in ("input_path", "data_blob_path"):
        if field != "data_blob_path" or name != blob:
            error = generate_refusal(server, **PROBE, **{field: name})
            assert (error["code"], error["field"]) == ("unknown_path", field)
    for spec in ({"first_frame_image": name}, {"last_frame_image": name}, {"vace_ref_images": [name]}):
        error = generate_refusal(server, **PROBE, chunk_specs=[{"chunk": 0, **spec}])
        assert (error["code"], error["field"]) == ("unknown_path", f"chunk_specs[0].{next(iter(spec))}")
    for field in ("pipeline_id", "pre_processor_id", "post_processor_id"):
        error = generate_refusal(server, **PROBE | {field: name})
        assert (error["code"], error["field"]) == ("unknown_pipeline", field)
    load = json.dumps({"pipeline_ids": [name]}).encode()
    assert refusal_of(server, f"POST {LOAD}", body=load)["code"] == "unknown_pipeline"
    generate_refusal(server, **PROBE, lora_scales={name: 1})


def test_downloads_without_a_path(server: Frontend, subtests: pytest.Subtests) -> None:
    for query in ("", "?", "?path", "?path=", "?Path=x", "?path[]=x", "?path%00=x", "?;path=x", "?&&"):
        with subtests.test(query):
            assert refusal_of(server, f"GET {DOWNLOAD}{query}")["code"] == "invalid_field"


def test_queries_that_are_not_text(server: Frontend, subtests: pytest.Subtests) -> None:
    for path in ("%ff", "%ed%a0%80", "%", "%zz", "%u0041", "x&path=y", "&".join(["x"] * 4000), "x" * 20_000):
        with subtests.test(path[:40]):
            assert refusal_of(server, f"GET {DOWNLOAD}?path={path}")["code"] == "unknown_path"


# -- Addresses ------------------------------------------------------------------------------------------------

# fmt: off
UNKNOWN_TARGETS = [
    "/docs//swagger-ui.css", "/api//v1/pipelines", "/api/v1//pipelines", "/health//live",
    "/nothing", "//evil.example/..", "/%", "/%zz%ff%00", "/%0d%0aX-Evil:%20yes%0d%0a%0d%0a", "/" + "a" * 20_000,
    "/" + quote(SMILE) * 1000, "/docs/../../etc/passwd", "/docs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/static/app.py",
    "/docs/swagger-ui.css/../index.html", "/api/v1/generate/", "/API/V1/GENERATE", "/api/v1/generate%00",
    "/.git/config", "/api/v1/generate/download/..", "/openapi.yaml", "/health;x", "http://localhost/nothing",
    "https://localhost/%2e%2e",
]
LINES_WITHOUT_A_PATH = [
    "GET http://[", "GET http://[/health", "GET http://%5b/health", "GET http://a\u00e9/", "GET health", "GET ?x",
    "GET #x", "OPTIONS *", "CONNECT localhost:80", "GET javascript:alert(1)", "GET file:///etc/passwd", "GET ",
    "GET /a b", "GET\t/health", " GET /health", "GET /health HTTP/1.1 HTTP/1.1", "G\u00cbT /health", "GET  /health",
]
# fmt: on


def test_unknown_addresses(server: Frontend, subtests: pytest.Subtests) -> None:
    for target in UNKNOWN_TARGETS:
        for method in ("GET", "POST"):
            with subtests.test(f"{method} {target[:40]}"):
                assert refusal_of(server, f"{method} {target}")["code"] == "not_found"


def test_request_lines_without_a_path(server: Frontend, subtests: pytest.Subtests) -> None:
    for line in LINES_WITHOUT_A_PATH:
        with subtests.test(ascii(line)):
            assert refusal_of(server, line)["code"] == "bad_request"


def test_methods_that_an_address_does_not_allow(server: Frontend, subtests: pytest.Subtests) -> None:
    for path in ("/", "/health", GENERATE, DOWNLOAD, "/openapi.json", "/docs"):
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "FOO", "A" * 20_000):
            with subtests.test(f"{method[:10]} {path}"):
                assert refusal_of(server, f"{method} {path}")["code"] == "method_not_allowed"
        with subtests.test(f"get {path}"):  # hypercorn accepts methods in any case
            assert send_raw(server.url, raw_request(f"get {path}")).status < 500


def test_absolute_targets_are_accepted(server: Frontend) -> None:
    """As HTTP demands; /health is open under any host name."""
    for target in ("/health", "http://evil.example/health", "//health", "/%68ealth"):
        assert send_raw(server.url, raw_request(f"GET {target}")).json()["status"] == "healthy"


# -- Headers --------------------------------------------------------------------------------------------------

# fmt: off
ORIGINS = [
    "http://[", "http://a]", "null", "\u00ff\u00fe", "", "//", "http://", "x" * 20_000, "http://localhost:1",
    "javascript:",
]
HOSTS = ["[", "a b", "\u00ff", '"><script>', "x." * 9_000, "localhost:99999999", "a,b", ""]
LONG_HOSTS = ["x" * 64, "x" * 20_000, "a." + "x" * 64 + ".b", "a..b", "\u00e9" * 60]
# fmt: on


def get_from_host(server: Frontend, target: str, host: str) -> dict[str, str]:
    """The refusal of a GET with a bad Host header."""
    response = send_raw(server.url, raw_request(f"GET {target}", host=host))
    assert "location" not in response.headers
    return check_refusal(server, response)


def test_invalid_origins(server: Frontend, subtests: pytest.Subtests) -> None:
    for origin in ORIGINS:
        with subtests.test(ascii(origin)[:30]):
            error = refusal_of(server, f"POST {GENERATE}", f"Origin: {origin}", body=b"{}")
            assert error["code"] == "forbidden_origin"


def test_invalid_hosts_are_not_repeated(server: Frontend, subtests: pytest.Subtests) -> None:
    for host in HOSTS:
        with subtests.test(host[:30]):
            for target in ("/nothing", "//nothing", "/", "/docs", "/openapi.json"):
                get_from_host(server, target, host)


def test_hosts_with_impossible_labels(server: Frontend, subtests: pytest.Subtests) -> None:
    for host in LONG_HOSTS:
        with subtests.test(host[:30]):
            for target in ("/", "/health", "/nothing", GENERATE):
                assert get_from_host(server, target, host)["code"] == "bad_request"


def test_requests_cannot_add_headers_to_responses(server: Frontend) -> None:
    """CR and LF in everything that a response may repeat."""
    evil = "x\r\nX-Evil: yes\r\n\r\nX-Evil: yes"
    for line in (f"GET /{quote(evil)}", f"GET {DOWNLOAD}?path={quote(evil)}", f"GET {DOWNLOAD}?path=x#{quote(evil)}"):
        refusal_of(server, line)
    for fields in ({evil: 1}, {"pipeline_id": evil}, {"num_frames": evil}, {"chunk_specs": [{evil: 1}]}):
        generate_refusal(server, **PROBE | fields)
    headers = ["X-Video-Frames: 1\n2", "X-Video-Height: 1\r2", "X-Video-Width: 1\r\n X-Evil: yes"]
    refusal_of(server, f"POST {UPLOAD}", *headers, body=bytes(12))
    refusal_of(server, "GET /health", "X-A: \x00")


def test_line_breaks_in_an_address_do_not_forge_log_lines(server: Frontend) -> None:
    refusal_of(server, "GET /" + quote("x\r\nforged by a client\x1b[2J"))
    lines = [line for line in server.log().splitlines() if "forged by a client" in line]
    assert lines
    assert all("GET /x\\r\\nforged by a client\\x1b[2J 404" in line for line in lines)


def test_upgrades_to_other_protocols_are_ignored(server: Frontend, subtests: pytest.Subtests) -> None:
    for headers in (
        ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        ("Upgrade: websocket",),
        ("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Upgrade: h2c", "HTTP2-Settings: !!!!"),
        ("Upgrade: TLS/1.0",),
    ):
        with subtests.test(headers):
            error = refusal_of(server, f"GET {GENERATE}", "Connection: close, Upgrade", *headers)
            assert error["code"] == "method_not_allowed"
            health = raw_request("GET /health", "Connection: close, Upgrade", *headers)
            assert send_raw(server.url, health).status == 200


def test_http_2_is_refused(server: Frontend) -> None:
    for rest in (bytes(50), b"\xff" * 500):
        response = send_raw(server.url, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rest)
        assert check_refusal(server, response)["code"] == "bad_request"


def test_unneeded_cookies_and_keys(server: Frontend) -> None:
    for header in (
        "Cookie: session=" + "x" * 20_000,
        "Cookie: \u00ff;;;==;$",
        "Authorization: \u00ff",
        "If-Range: \u00ff",
    ):
        refusal_of(server, f"GET {DOWNLOAD}?path=x", header)
        refusal_of(server, f"POST {GENERATE}", header, body=b"{}")
