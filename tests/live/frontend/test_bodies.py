"""Bodies that arrive wrapped: compressed, or as a form."""

import gzip
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from filmstrip.errors import ERRORS
from tests.support import http
from tests.support.http import ASSETS, CANCEL, GENERATE, LOAD, UPLOAD, UPLOAD_DATA
from tests.support.raw_client import RawClient, raw_request, send_raw
from tests.support.refusals import check_refusal, refusal_of
from tests.support.server import Frontend

RAW = (UPLOAD, UPLOAD_DATA, ASSETS)
SHAPE = ("X-Video-Frames: 1", "X-Video-Height: 2", "X-Video-Width: 2")
CODINGS = [
    ["Content-Encoding: gzip"],
    ["content-encoding: GZIP"],
    ["Content-Encoding: x-gzip"],
    ["Content-Encoding: br"],
    ["Content-Encoding: deflate, gzip"],
    ["Content-Encoding: identity, gzip"],
    ["Content-Encoding: gzip, identity"],
    ["Content-Encoding: identity", "Content-Encoding: zstd"],
    ["Content-Encoding: gzip;q=1"],
    ["Content-Encoding: \u00ff"],
    ["Content-Encoding: " + "x" * 10_000],
]
FORMS = [
    ["Content-Type: multipart/form-data; boundary=x"],
    ["Content-Type: Multipart/Form-Data"],
    ["Content-Type:  multipart/mixed"],
    ["Content-Type: multipart/x-" + "y" * 10_000],
    ["Content-Type: application/octet-stream", "Content-Type: multipart/form-data"],
]


@pytest.mark.parametrize("path", [*RAW, GENERATE, LOAD, CANCEL])
def test_a_compressed_body_is_refused(server: Frontend, path: str) -> None:
    stored = server.stored()
    body = gzip.compress(bytes(12))
    for headers in CODINGS:
        answer = send_raw(server.url, raw_request(f"POST {path}", *SHAPE, *headers, body=body))
        error = check_refusal(server, answer)
        assert error["code"] == "unsupported_media_type", headers
        assert "uncompressed" in error["message"]
        assert answer.headers["accept-encoding"] == "identity"
    assert server.stored() == stored


@pytest.mark.parametrize("path", [*RAW, GENERATE, LOAD, CANCEL])
def test_a_form_is_refused_with_what_to_send(server: Frontend, path: str) -> None:
    stored = server.stored()
    for headers in FORMS:
        error = refusal_of(server, f"POST {path}", *SHAPE, *headers, body=bytes(12))
        assert error["code"] == "unsupported_media_type", headers
        expected = "raw bytes" if path in RAW else "JSON" if path in (GENERATE, LOAD) else "takes no body"
        assert expected in error["message"]
    assert server.stored() == stored


def test_every_route_that_takes_a_body_refuses_wrapped_ones(server: Frontend) -> None:
    """Those of the document, so that no new one is left out; where there is no route it is still a 404 or 405."""
    document = http.get(f"{server.url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "head"):
                continue
            for header in ("Content-Encoding: gzip", "Content-Type: multipart/form-data"):
                answer = send_raw(server.url, raw_request(f"{method.upper()} {path}", header, body=b"{}"))
                takes_forms = "multipart/form-data" in operation.get("requestBody", {}).get("content", {})
                is_form = "multipart" in header and takes_forms  # without a boundary
                expected = "bad_request" if is_form else "unsupported_media_type"
                assert check_refusal(server, answer)["code"] == expected, path
            assert method == "delete" or "415" in operation["responses"], path
    for line, code in (("POST /nothing", "not_found"), ("PUT /health", "method_not_allowed")):
        assert refusal_of(server, line, "Content-Encoding: gzip", body=b"{}")["code"] == code


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Content-Encoding: identity"],
        ["Content-Encoding: Identity, identity"],
        ["Content-Encoding:"],
        ["Content-Encoding: identity, ,"],
        ["Content-Type: application/x-www-form-urlencoded"],
        ["Content-Type: image/png"],
        ["Content-Type: application/multipart"],
        ["Content-Type: text/plain; x=multipart/form-data"],
        ["Content-Type: \u00ff"],
        ["Content-Type:"],
    ],
)
def test_an_unwrapped_body_is_stored_unchanged(server: Frontend, headers: list[str]) -> None:
    answer = send_raw(server.url, raw_request(f"POST {UPLOAD_DATA}", *headers, body=b"bytes of a blob"))
    assert answer.status == 200, answer.body
    path = httpx.Response(200, content=answer.body).json()["data_blob_path"]
    assert (server.data_dir / "blobs" / path).read_bytes() == b"bytes of a blob"


def test_nothing_is_read_or_stored_before_the_refusal(server: Frontend) -> None:
    """The answer is there while the body is not: a client that never sends it is not waited for long."""
    began = time.monotonic()
    with RawClient(server.url) as client:
        client.send_head("POST", UPLOAD_DATA, {"Content-Encoding": "gzip", "Content-Length": str(2**30)})
        status, body = client.read_json()
    assert (status, body["error"]["code"]) == (415, "unsupported_media_type")
    assert ERRORS[body["error"]["code"]].status == 415
    assert time.monotonic() - began < 30  # and not the 60 s that a body may pause
    assert server.stored("partial") == []


def test_what_curl_sends(server: Frontend, tmp_path: Path) -> None:
    """`-F` is refused in a sentence, `--data-binary` and `-T` are taken."""
    blob = tmp_path / "v.raw"
    blob.write_bytes(bytes(range(256)) * 100)

    def curl(*arguments: str) -> str:
        command = ["curl", "-sS", "--noproxy", "*", *arguments, f"http://{urlsplit(server.url).netloc}{UPLOAD_DATA}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert "--data-binary" in curl("-F", f"file=@{blob}")
    assert '"size_bytes":25600' in curl("--data-binary", f"@{blob}").replace(" ", "")
    assert '"size_bytes":25600' in curl("-X", "POST", "-T", str(blob)).replace(" ", "")
    assert "uncompressed" in curl("-H", "Content-Encoding: gzip", "--data-binary", f"@{blob}")
