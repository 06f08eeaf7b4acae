"""Names, addresses, methods and headers that are none: nothing of the file system, and nothing of the server shows."""

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
def no_harm(server: Frontend) -> Iterator[None]:
    before = count_tracebacks(server)
    with assert_recovers(server, inputs=1, outputs=1):
        yield
    assert count_tracebacks(server) == before


@pytest.fixture(scope="module")
def output(server: Frontend) -> str:
    return str(server.generate(**PROBE)[-1][1]["output_path"])


@pytest.fixture(scope="module")
def blob(server: Frontend) -> str:
    return server.upload_data(b"what nobody may download")


# -- Names of files -------------------------------------------------------------------------------------------

NAMES = [
    *(".", "..", "/", "//", "~", "/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "\\\\host\\share", "C:\\"),
    *("/proc/self/environ", "/dev/zero", "/dev/shm", "lock", "../lock", "outputs/", "%2e%2e/lock", "..%2flock"),
    *("..%252flock", "....//lock", "\x00", "output-\x00", "\r\nX-Evil: yes\r\n\r\n", "x" * 256, SMILE * 256),
    *("output-", "output-" + "0" * 31, "output-" + "0" * 33, "output-" + "G" * 32, "OUTPUT-" + "0" * 32),
    *("output-" + "\u0660" * 32, "output-" + "\uff10" * 32, "\u043eutput-" + "0" * 32, "output-" + "0" * 32 + "\n"),
    *("output-{0}", "{output}/", "{output}/../{output}", "./{output}", "outputs/{output}", "{output}\x00", "{output}@"),
    *(
        "{output} ",
        " {output}",
        "{output}\n",
        "{output}%00",
        "{blob}",
        "../blobs/{blob}",
        "output-{bits}",
        "video-{bits}",
    ),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
def test_a_name_that_the_server_did_not_make(server: Frontend, output: str, blob: str, name: str) -> None:
    """As a path to download, as an input, as a blob and as an image."""
    name = name.replace("{output}", output).replace("{blob}", blob).replace("{bits}", blob.removeprefix("blob-"))
    error = refusal_of(server, f"GET {DOWNLOAD}?path={quote(name, safe='')}")
    assert (error["code"], error["field"]) == ("unknown_path", "path")
    if name.isascii() and name.isprintable() and " " not in name and name != "":
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
    load = raw_request(f"POST {LOAD}", body=json.dumps({"pipeline_ids": [name]}).encode())
    assert check_refusal(server, send_raw(server.url, load))["code"] == "unknown_pipeline"
    generate_refusal(server, **PROBE, lora_scales={name: 1})


@pytest.mark.parametrize("query", ["", "?", "?path", "?path=", "?Path=x", "?path[]=x", "?path%00=x", "?;path=x", "?&&"])
def test_a_download_without_a_path(server: Frontend, query: str) -> None:
    assert refusal_of(server, f"GET {DOWNLOAD}{query}")["code"] == "invalid_field"


@pytest.mark.parametrize(
    "query", ["%ff", "%ed%a0%80", "%", "%zz", "%u0041", "x&path=y", "&".join(["x"] * 4000), "x" * 20_000]
)
def test_a_query_of_no_text(server: Frontend, query: str) -> None:
    assert refusal_of(server, f"GET {DOWNLOAD}?path={query}")["code"] == "unknown_path"


# -- Addresses ------------------------------------------------------------------------------------------------

NOWHERE = [
    *("/docs//swagger-ui.css", "/api//v1/pipelines", "/api/v1//pipelines", "/health//live"),
    *("/nothing", "//evil.example/..", "/%", "/%zz%ff%00", "/%0d%0aX-Evil:%20yes%0d%0a%0d%0a", "/" + "a" * 20_000),
    *("/" + quote(SMILE) * 1000, "/docs/../../etc/passwd", "/docs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/static/app.py"),
    *(
        "/docs/swagger-ui.css/../index.html",
        "/api/v1/generate/",
        "/API/V1/GENERATE",
        "/api/v1/generate%00",
        "/.git/config",
    ),
    *(
        "/api/v1/generate/download/..",
        "/openapi.yaml",
        "/health;x",
        "http://localhost/nothing",
        "https://localhost/%2e%2e",
    ),
]


@pytest.mark.parametrize("target", NOWHERE, ids=lambda target: target[:40])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_address_where_nothing_is(server: Frontend, method: str, target: str) -> None:
    assert refusal_of(server, f"{method} {target}")["code"] == "not_found"


@pytest.mark.parametrize(
    "line",
    [
        *(
            "GET http://[",
            "GET http://[/health",
            "GET http://%5b/health",
            "GET http://a\u00e9/",
            "GET health",
            "GET ?x",
        ),
        *("GET #x", "OPTIONS *", "CONNECT localhost:80", "GET javascript:alert(1)", "GET file:///etc/passwd", "GET "),
        *(
            "GET /a b",
            "GET\t/health",
            " GET /health",
            "GET /health HTTP/1.1 HTTP/1.1",
            "G\u00cbT /health",
            "GET  /health",
        ),
    ],
    ids=ascii,
)
def test_a_target_without_a_path(server: Frontend, line: str) -> None:
    assert refusal_of(server, line)["code"] == "bad_request"


@pytest.mark.parametrize(
    "method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "FOO", "get", "A" * 20_000]
)
@pytest.mark.parametrize("path", ["/", "/health", GENERATE, DOWNLOAD, "/openapi.json", "/docs"])
def test_a_method_that_is_not_for_this_address(server: Frontend, method: str, path: str) -> None:
    if method == "get":  # hypercorn reads methods in any case
        assert send_raw(server.url, raw_request(f"{method} {path}")).status < 500
    else:
        assert refusal_of(server, f"{method} {path}")["code"] == "method_not_allowed"


def test_a_whole_url_is_an_address_too(server: Frontend) -> None:
    """As HTTP demands; the health check is open by any name."""
    for target in ("/health", "http://evil.example/health", "//health", "/%68ealth"):
        assert json.loads(send_raw(server.url, raw_request(f"GET {target}")).body)["status"] == "healthy"


# -- Headers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "http://[",
        "http://a]",
        "null",
        "\u00ff\u00fe",
        "",
        "//",
        "http://",
        "x" * 20_000,
        "http://localhost:1",
        "javascript:",
    ],
    ids=lambda origin: ascii(origin)[:30],
)
def test_an_origin_that_is_none(server: Frontend, origin: str) -> None:
    error = refusal_of(server, f"POST {GENERATE}", f"Origin: {origin}", body=b"{}")
    assert error["code"] == "forbidden_origin"


@pytest.mark.parametrize("host", ["[", "a b", "\u00ff", '"><script>', "x." * 9_000, "localhost:99999999", "a,b", ""])
def test_a_host_that_is_none_shows_nowhere(server: Frontend, host: str) -> None:
    for target in ("/nothing", "//nothing", "/", "/docs", "/openapi.json"):
        sent = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin1")
        assert "location" not in send_raw(server.url, sent).headers
        check_refusal(server, send_raw(server.url, sent))


@pytest.mark.parametrize("host", ["x" * 64, "x" * 20_000, "a." + "x" * 64 + ".b", "a..b", "\u00e9" * 60])
@pytest.mark.parametrize("target", ["/", "/health", "/nothing", GENERATE])
def test_a_host_that_no_name_can_be(server: Frontend, host: str, target: str) -> None:
    sent = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin1")
    assert check_refusal(server, send_raw(server.url, sent))["code"] == "bad_request"


def test_no_header_comes_from_a_request(server: Frontend) -> None:
    """CR and LF in all that an answer may repeat."""
    evil = "x\r\nX-Evil: yes\r\n\r\nX-Evil: yes"
    for line in (f"GET /{quote(evil)}", f"GET {DOWNLOAD}?path={quote(evil)}", f"GET {DOWNLOAD}?path=x#{quote(evil)}"):
        refusal_of(server, line)
    for request_ in ({evil: 1}, {"pipeline_id": evil}, {"num_frames": evil}, {"chunk_specs": [{evil: 1}]}):
        generate_refusal(server, **PROBE | request_)
    fields = ["X-Video-Frames: 1\n2", "X-Video-Height: 1\r2", "X-Video-Width: 1\r\n X-Evil: yes"]
    refusal_of(server, f"POST {UPLOAD}", *fields, body=bytes(12))
    refusal_of(server, "GET /health", "X-A: \x00")


def test_a_line_end_in_an_address_forges_no_line_of_the_log(server: Frontend) -> None:
    refusal_of(server, f"GET /{quote('x' + chr(13) + chr(10) + 'forged by a client' + chr(27) + '[2J')}")
    lines = [line for line in server.log().splitlines() if "forged by a client" in line]
    assert lines
    assert all("GET /x\\r\\nforged by a client\\x1b[2J 404" in line for line in lines)


@pytest.mark.parametrize(
    "headers",
    [
        ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        ("Upgrade: websocket",),
        ("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Upgrade: h2c", "HTTP2-Settings: !!!!"),
        ("Upgrade: TLS/1.0",),
    ],
)
def test_offers_of_another_protocol_are_passed_over(server: Frontend, headers: tuple[str, ...]) -> None:
    answer = send_raw(server.url, raw_request(f"GET {GENERATE}", "Connection: close, Upgrade", *headers))
    assert check_refusal(server, answer)["code"] == "method_not_allowed"
    assert send_raw(server.url, raw_request("GET /health", "Connection: close, Upgrade", *headers)).status == 200


def test_http_2_is_not_spoken(server: Frontend) -> None:
    for rest in (bytes(50), b"\xff" * 500):
        assert (
            check_refusal(server, send_raw(server.url, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rest))["code"]
            == "bad_request"
        )


RANGES = [
    # range, status
    ("bytes=0-" + "9" * 30, 206),
    ("bytes=0-" + "9" * 5000, 206),
    ("bytes=-" + "9" * 30, 206),
    ("bytes=-0", 416),
    ("bytes=" + "9" * 30 + "-", 416),
    ("bytes=" + "9" * 5000 + "-", 416),
    ("bytes=" + ",".join(f"{start}-{start}" for start in range(0, 6000, 2)), 200),
    ("bytes=" + "0-,-1," * 3000, 200),
    ("bytes=5-2", 200),
    ("bytes=--1", 200),
    ("bytes=\u00b2-\u00b3", 200),
    ("bytes=0x1-0x2", 200),
    ("bytes=", 200),
    ("bytes", 200),
    ("frames=0-1", 200),
    ("bytes=0-0", 206),
]


@pytest.mark.parametrize(("range_", "status"), RANGES, ids=lambda value: ascii(value)[:30])
def test_absurd_ranges(server: Frontend, output: str, range_: str, status: int) -> None:
    """One that is no range is passed over, as HTTP says; none makes more than the file."""
    answer = send_raw(server.url, raw_request(f"GET {DOWNLOAD}?path={output}", f"Range: {range_}"))
    size = 20 + 33 * 64 * 96 * 3
    if status == 416:
        assert check_refusal(server, answer)["code"] == "range_not_satisfiable"
    else:
        assert answer.status in (status, 200)
        assert len(answer.body) == int(answer.headers["content-length"]) <= size
        assert answer.status == 206 or len(answer.body) == size


def test_cookies_and_keys_nobody_asked_for(server: Frontend) -> None:
    for header in (
        "Cookie: session=" + "x" * 20_000,
        "Cookie: \u00ff;;;==;$",
        "Authorization: \u00ff",
        "If-Range: \u00ff",
    ):
        refusal_of(server, f"GET {DOWNLOAD}?path=x", header)
        refusal_of(server, f"POST {GENERATE}", header, body=b"{}")
