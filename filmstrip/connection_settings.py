"""Where a client connects and how: the server's address and token, its certificate, and timeouts."""

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from filmstrip import __version__

DEFAULT_URL = "http://127.0.0.1:8000"
SERVER_VARIABLE = "FILMSTRIP_SERVER"
TOKEN_VARIABLE = "FILMSTRIP_TOKEN"  # noqa: S105 - a name, not a token
TIMEOUT_S = 60.0
"""Longest silence of a connection, streams included: the server comments every 15 s at the latest."""
CONNECT_TIMEOUT_S = 10.0
_MAX_PORT = 65_535

Verify = ssl.SSLContext | str | Path | bool
"""How a server's TLS certificate is checked: a context; or a PEM file, or a folder of them, of trusted authorities."""

_PEM_CERTIFICATE = re.compile(r"-----BEGIN ((?:TRUSTED |X509 )?CERTIFICATE)-----.*?-----END \1-----", re.DOTALL)

# -- Address and token -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerAddress:
    """The address of a server and the token to send.

    Attributes:
        url: of the server.
        token: sent as `Authorization: Bearer`; None sends none.
        token_withheld: FILMSTRIP_TOKEN is set but belongs to another server.
    """

    url: httpx.URL
    token: str | None = field(default=None, repr=False)
    token_withheld: bool = False


def resolve_server(base_url: str | None, token: str | None) -> ServerAddress:
    """Fill in from the environment what the caller leaves out; an empty variable counts as unset.

    The environment's token is only sent to the environment's server: that in FILMSTRIP_SERVER, else
    http://127.0.0.1:8000. A caller who names another server must pass its token too.

    Args:
        base_url: None for the environment's server.
        token: None for the environment's token, an empty string for none.

    Raises:
        ValueError: a URL is not that of an HTTP server, a token cannot be sent in a header, or there is both a token
            and a URL with a user.
    """
    variable = _read(SERVER_VARIABLE)
    if base_url is None and variable:
        try:
            url = parse_url(variable)
        except ValueError as error:
            raise ValueError(f"{SERVER_VARIABLE}: {error}") from None
    else:
        url = parse_url(DEFAULT_URL if base_url is None else base_url)
    if token is not None:
        return _with_token(url, _checked(token.strip(), "the token") or None)
    from_environment = _read(TOKEN_VARIABLE)
    if not from_environment:
        return ServerAddress(url)
    if base_url is not None and not _is_environment_server(url, variable):
        return ServerAddress(url, token_withheld=True)
    return _with_token(url, _checked(from_environment, TOKEN_VARIABLE))


def parse_url(text: str) -> httpx.URL:
    """Read a server's URL.

    Raises:
        ValueError: it is not the URL of an HTTP server; the message says what to write instead.
    """
    text = text.strip()
    if text and "://" not in text:
        raise ValueError(f"{text!r} is not a URL; write http://{text.lstrip('/')}")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"{text!r} is not the URL of a server, such as {DEFAULT_URL}")
    if url.port is not None and not 0 < url.port <= _MAX_PORT:
        raise ValueError(f"{text!r} has port {url.port}; a port must be 1 to {_MAX_PORT}")
    return url


def _read(variable: str) -> str:
    """A variable, without surrounding blanks and without a byte order mark from the file that it was read from."""
    return os.environ.get(variable, "").removeprefix("\ufeff").strip()


def _is_environment_server(url: httpx.URL, variable: str) -> bool:
    try:
        return _endpoint(url) == _endpoint(parse_url(variable or DEFAULT_URL))
    except ValueError:
        return False


def _endpoint(url: httpx.URL) -> tuple[object, ...]:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    return url.scheme, url.host, port, url.path.rstrip("/")


def _with_token(url: httpx.URL, token: str | None) -> ServerAddress:
    if token is not None and url.userinfo:
        raise ValueError("the URL has a user, and there is a token: only one of them can be sent")
    return ServerAddress(url, token)


def _checked(token: str, name: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise ValueError(f"{name} has characters that cannot be sent in a header")
    return token


# -- For httpx ----------------------------------------------------------------------------------------------------


def connection_options(
    base_url: str | None, token: str | None, timeout_s: float, verify: Verify = True
) -> dict[str, Any]:
    """The arguments of httpx's two clients; see `resolve_server` for the first two.

    Raises:
        ValueError: the URL is not that of an HTTP server, the token cannot be sent, or `verify` has no certificates.
    """
    target = resolve_server(base_url, token)
    headers = {"User-Agent": f"filmstrip/{__version__}"}
    if target.token is not None:
        headers["Authorization"] = f"Bearer {target.token}"
    return {
        "base_url": target.url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
        "trust_env": not _is_loopback(target.url.host),  # a proxy cannot reach this machine's loopback
        "verify": _checked_certificates(verify),
    }


def _checked_certificates(verify: Verify) -> ssl.SSLContext | bool:
    if isinstance(verify, bool | ssl.SSLContext):
        return verify
    path = Path(verify)
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=path)
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
        certificates = [found[0] for found in _PEM_CERTIFICATE.finditer(text)]
        if certificates:
            # Only the certificates: OpenSSL takes ASCII only here, and comments between them may be something else.
            return ssl.create_default_context(cadata="\n".join(certificates))
    except ssl.SSLError:
        pass
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    raise ValueError(f"{path}: has no certificate in PEM format")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
