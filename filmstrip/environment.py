"""Which server and token the clients use: what the caller says, else FILMSTRIP_SERVER and FILMSTRIP_TOKEN."""

import os
from dataclasses import dataclass, field

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
SERVER_VARIABLE = "FILMSTRIP_SERVER"
_MAX_PORT = 65_535
TOKEN_VARIABLE = "FILMSTRIP_TOKEN"  # noqa: S105 - a name, not a token


@dataclass(frozen=True)
class Target:
    """A server's address and what to send it.

    Attributes:
        url: of the server.
        token: sent as `Authorization: Bearer`; None sends none.
        token_withheld: FILMSTRIP_TOKEN is set but belongs to another server.
    """

    url: httpx.URL
    token: str | None = field(default=None, repr=False)
    token_withheld: bool = False


def resolve(base_url: str | None, token: str | None) -> Target:
    """Fill in from the environment what the caller leaves out; an empty variable is as good as none.

    The environment's token goes only to the environment's server: the one FILMSTRIP_SERVER names, else
    http://127.0.0.1:8000. A caller who names another server must name its token, too.

    Args:
        base_url: None for the environment's server.
        token: None for the environment's token, an empty one for none at all.

    Raises:
        ValueError: a URL is not one of an HTTP server, a token cannot be sent in a header, or there is a token and
            a URL with a user.
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
        return Target(url)
    if base_url is not None and not _is_environments(url, variable):
        return Target(url, token_withheld=True)
    return _with_token(url, _checked(from_environment, TOKEN_VARIABLE))


def parse_url(text: str) -> httpx.URL:
    """Read a server's URL.

    Raises:
        ValueError: it is not the URL of an HTTP server; the message says what to write.
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
        raise ValueError(f"{text!r} has the port {url.port}; ports go from 1 to {_MAX_PORT}")
    return url


def _read(variable: str) -> str:
    """A variable without blanks at its ends, and the byte order mark of a file that it was filled from."""
    return os.environ.get(variable, "").removeprefix("\ufeff").strip()


def _is_environments(url: httpx.URL, variable: str) -> bool:
    try:
        return _place(url) == _place(parse_url(variable or DEFAULT_URL))
    except ValueError:
        return False


def _place(url: httpx.URL) -> tuple[object, ...]:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    return url.scheme, url.host, port, url.path.rstrip("/")


def _with_token(url: httpx.URL, token: str | None) -> Target:
    if token is not None and url.userinfo:
        raise ValueError(
            "the URL names a user, and there is a token: only one of them can be sent; leave out the other"
        )
    return Target(url, token)


def _checked(token: str, name: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise ValueError(f"{name} holds characters that cannot be sent in a header")
    return token
