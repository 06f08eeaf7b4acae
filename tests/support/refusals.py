"""What every refusal must look like."""

import json
from typing import Any

import httpx

from filmstrip import __version__
from filmstrip.errors import ERRORS
from tests.support.http import GENERATE
from tests.support.raw_client import RawResponse, raw_request, send_raw
from tests.support.server import ROOT, Frontend

MAX_REFUSAL_S = 5.0
"""On a busy machine; what must not happen takes ten seconds or longer."""
MAX_REFUSAL_BYTES = 4096


def check_refusal(frontend: Frontend, response: RawResponse | httpx.Response) -> dict[str, Any]:
    """Check that a response is a refusal: small, quick, in the one format of errors, without internals of the server.

    Returns:
        The error: code, message and maybe field.
    """
    if isinstance(response, httpx.Response):
        response = RawResponse.of(response)
    text = response.body.decode()
    assert 400 <= response.status < 500, text[:500]
    assert response.seconds < MAX_REFUSAL_S
    assert len(text) < MAX_REFUSAL_BYTES
    assert response.headers["content-type"] == "application/json"
    assert "x-evil" not in response.headers
    assert "server" not in response.headers
    body: dict[str, Any] = json.loads(text)
    error: dict[str, Any] = body["error"]
    if "type" in error:  # under /v1
        assert set(body) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
    else:
        assert set(body) == {"error", "detail"}
        assert set(error) in ({"code", "message"}, {"code", "message", "field"})
        assert error["message"] == body["detail"]
    assert ERRORS[error["code"]].status == response.status
    for secret in ("Traceback", "site-packages", str(ROOT), str(frontend.folder), __version__, "Python/", "quart"):
        assert secret not in text
    return error


def refusal_of(frontend: Frontend, line: str, *headers: str, **options: Any) -> dict[str, Any]:
    """Send a `raw_request` that must be refused; its error."""
    return check_refusal(frontend, send_raw(frontend.url, raw_request(line, *headers, **options)))


def generate_refusal(frontend: Frontend, **fields: object) -> dict[str, Any]:
    """POST /generate with fields that must be refused; the error."""
    return refusal_of(frontend, f"POST {GENERATE}", body=json.dumps(fields).encode())


def count_tracebacks(frontend: Frontend) -> int:
    """How many tracebacks are in the log."""
    return frontend.log().count("Traceback")
