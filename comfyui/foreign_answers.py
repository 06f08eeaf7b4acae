"""Explains answers that do not come from Filmstrip: a proxy's error, a login page, another program.

The explanation never contains HTML. `comfyui/foreign_answers.py` is a copy of this file, since that folder is installed
on its own.
"""

from __future__ import annotations

import http
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

Header = Callable[[str], str | None]

_SHOWN_CHARACTERS = 200
_SERVER_CHARACTERS = 40
_HTTPS_PORT = b"plain HTTP request was sent to HTTPS port"
_NO_SERVER = "there is no Filmstrip server at this address; check the URL, with its path"

_CAUSES = {
    401: "a proxy in front of the server asks for a login",
    403: "a proxy or firewall in front of the server forbids this request",
    404: _NO_SERVER,
    405: _NO_SERVER,
    407: "the proxy that http_proxy or https_proxy names asks for a login",
    408: "a proxy in front of the server got the request too slowly; raise its timeout (client_body_timeout in nginx)",
    410: _NO_SERVER,
    413: "a proxy in front of the server refuses a body of this size; raise its limit (client_max_body_size in nginx)",
    414: "a proxy in front of the server refuses a URL of this length",
    429: "a proxy in front of the server limits the rate of requests; try again later",
    431: "a proxy in front of the server refuses headers of this length",
    501: _NO_SERVER,
    502: "a proxy in front of the server cannot reach it; Filmstrip is not running, or the proxy forwards elsewhere",
    503: "a proxy in front of the server has nothing to forward to; Filmstrip is not running, or is overloaded",
    504: "a proxy in front of the server waited too long for it; Filmstrip does not answer, or the proxy's timeout"
    " (proxy_read_timeout in nginx) is too short",
}

UNREACHED = frozenset({502, 503, 504})
"""Statuses with which a proxy reports that it did not reach the server."""


def describe(url: str, status: int, header: Header, body: bytes) -> str:
    """One line that names the server, the status and the likely cause.

    Args:
        url: the requested URL.
        status: HTTP status of the answer.
        header: returns a header of the answer by its case-insensitive name, or None.
        body: of the answer, or its beginning.
    """
    parts = urlsplit(url)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return f"{address}: {_cause(url, status, header, body)} ({_status(status, header)}){_quoted(header, body)}"


def is_html(header: Header, body: bytes) -> bool:
    """Whether an answer is a page for people."""
    return "html" in (header("Content-Type") or "").lower() or _stripped(body).startswith(b"<")


def _cause(url: str, status: int, header: Header, body: bytes) -> str:
    if _HTTPS_PORT in body:
        return "this port only accepts HTTPS; write https:// in the URL"
    if 300 <= status < 400:
        return _redirect(url, header)
    if status in _CAUSES:
        return _CAUSES[status]
    if status < 300 and is_html(header, body):
        return "the answer is a web page, perhaps a network's or a proxy's login page; it is not Filmstrip's"
    if status < 300:
        return "the answer is not Filmstrip's"
    return f"a proxy in front of the server, or another program, {'failed' if status >= 500 else 'refused the request'}"


def _redirect(url: str, header: Header) -> str:
    location = header("Location") or ""
    try:
        source, target = urlsplit(url), urlsplit(urljoin(url, location))
        moved_to_https = (source.scheme, target.scheme) == ("http", "https") and source.hostname == target.hostname
        port = f":{target.port}" if target.port else ""
    except ValueError:
        location = ""
    if not location:
        return "the answer redirects elsewhere; it is not Filmstrip's"
    host = _printable(f"{target.scheme}://{target.hostname or ''}{port}", _SHOWN_CHARACTERS)
    if moved_to_https and source.path == target.path:
        return f"this address redirects to {host}; write that in the URL"
    # Without its query: that of a login page may have secrets.
    page = _printable(target.path, _SHOWN_CHARACTERS)
    return f"this address redirects to {host}{page}, perhaps a login page in front of the server"


def _status(status: int, header: Header) -> str:
    try:
        named = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        named = str(status)
    server = _printable(header("Server") or "", _SERVER_CHARACTERS)
    return f"{named} from {server}" if server else named


def _quoted(header: Header, body: bytes) -> str:
    """The answer itself, if it is text that a person can read."""
    text = _printable(_stripped(body).decode(errors="replace"), _SHOWN_CHARACTERS)
    if not text:
        return ""
    return "" if is_html(header, body) else f": {text!r}"


def _stripped(body: bytes) -> bytes:
    return body.removeprefix(b"\xef\xbb\xbf").lstrip()


def _printable(text: str, most: int) -> str:
    """The text on one line, without control characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= most else f"{line[:most]}..."
