"""Access control: API keys, host names, and the origins of web pages."""

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import cast
from urllib.parse import urlsplit

from hypercorn.typing import HTTPScope
from quart import Request, g

from filmstrip.errors import ForbiddenHost, ForbiddenOrigin, Unauthorized

from .logs import note
from .sessions import COOKIE, Sessions
from .settings import ApiKey, Authority, Settings

_ANY_HOST = ("/health", "/health/live", "/health/ready")  # monitors use an address, and learn nothing
_OPEN = ("/", *_ANY_HOST, "/docs", "/openapi.json", "/favicon.ico")
_OPEN_FOLDERS = ("/docs/", "/page/")  # what monitors and browsers need before they have a key, like _OPEN
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""HTTP methods that change nothing."""
_SCHEME = "bearer"
_ORIGIN = re.compile(r"(https?)://([^/?#\s]+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def needs_key(path: str) -> bool:
    """Whether requests to this path need a key, if keys are configured."""
    return path not in _OPEN and not path.startswith(_OPEN_FOLDERS)


def needs_known_host(path: str) -> bool:
    """Whether requests to this path must name a known host, on a loopback server without keys."""
    return path not in _ANY_HOST


class AccessControl:
    """Admits or refuses each request before its body is read."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._sessions = sessions
        self._digests = [(key, _digest(key.key)) for key in settings.api_keys]
        self._origins = frozenset(settings.cors_origins)
        self._is_local = not settings.api_keys and is_loopback_address(settings.host)
        self._allows_any_host = "*" in settings.allowed_hosts
        self._allowed_hosts = [host for name in settings.allowed_hosts if (host := Authority.parse(name))]

    def admit(self, request: Request, *, is_media: bool) -> None:
        """Admit a request and note its client, for `client_of_request`, and its key, for `key_of_request`.

        Args:
            request: the request.
            is_media: whether it reads media, for which a session's cookie is enough.

        Raises:
            ForbiddenHost: the server is for this machine only, and was addressed by another name.
            ForbiddenOrigin: a web page of another origin tries to change something.
            Unauthorized: keys are configured, and the request carries none of them.
        """
        hosts = _hosts(cast("HTTPScope", request.scope))
        if needs_known_host(request.path) and self._must_be_local(request):
            self._check_hosts(hosts)
        if request.method not in SAFE_METHODS:
            self._check_origin(request, hosts)
        g.api_key = g.session_client = None
        if not self._is_open(request):
            if is_media and request.method in ("GET", "HEAD") and "Authorization" not in request.headers:
                g.session_client = self._client_of_session(request)
            if g.session_client is None:
                g.api_key = self._key(request.headers.get("Authorization", ""))
        g.client = g.api_key.client if g.api_key else g.session_client or ""
        note(request, client=g.client)

    def _must_be_local(self, request: Request) -> bool:
        """Whether only this machine can reach the server, so that it has no other host name.

        Under plain Hypercorn the settings may not match the address it listens on; the connection then tells, in part.
        """
        server = request.scope.get("server")
        return self._is_local and server is not None and is_loopback_address(server[0])

    def _check_hosts(self, hosts: Sequence[str]) -> None:
        """Refuse a web page whose host name was made to point at this machine (DNS rebinding)."""
        if self._allows_any_host:
            return
        for text in hosts:
            host = Authority.parse(text)
            if host is None or not (host.is_loopback or host.is_among(self._allowed_hosts)):
                raise ForbiddenHost(
                    f"this server only accepts host names of its own machine, such as localhost, not {text[:80]!a}; "
                    "add others to FILMSTRIP_ALLOWED_HOSTS"
                )

    def _is_open(self, request: Request) -> bool:
        is_preflight = request.method == "OPTIONS"  # browsers send no credentials with it
        return not self._digests or is_preflight or (request.method in SAFE_METHODS and not needs_key(request.path))

    def _client_of_session(self, request: Request) -> str | None:
        """The client of a valid session among the request's cookies.

        Cookies ignore ports, and `SameSite` counts every port and subdomain as the same site. So pages of neighbours
        send the cookie, too; `Sec-Fetch-Site` is how a browser says that the page is another one.
        """
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return None
        found = (self._sessions.client(token) for token in request.cookies.getlist(COOKIE))
        return next((client for client in found if client is not None), None)

    def _key(self, authorization: str) -> ApiKey:
        scheme, _, key = authorization.partition(" ")
        key_digest = _digest(key.strip())
        found = None
        for api_key, digest in self._digests:  # all of them, so that the time reveals nothing
            if hmac.compare_digest(digest, key_digest):
                found = api_key
        if found is None or scheme.lower() != _SCHEME:
            raise Unauthorized('missing or invalid API key; send "Authorization: Bearer <key>"')
        return found

    def _check_origin(self, request: Request, hosts: Sequence[str]) -> None:
        """Refuse what pages of other origins send: browsers add `Origin` to every request that is not a plain GET."""
        host = Authority.parse(hosts[0]) if hosts else None
        for origin in request.headers.getlist("Origin"):
            if "*" in self._origins or origin in self._origins or (host and is_same_origin(origin, host)):
                continue
            raise ForbiddenOrigin(
                "web pages of this origin may not use this server; add it to FILMSTRIP_CORS_ORIGINS to allow it"
            )


def is_same_origin(origin: str, host: Authority) -> bool:
    """Whether an `Origin` header names this host and port by http or https.

    The scheme is not compared with the server's own, because TLS may end at a proxy.
    """
    found = _ORIGIN.fullmatch(origin)
    authority = Authority.parse(found[2]) if found else None
    if found is None or authority is None:
        return False
    default = _DEFAULT_PORTS[found[1].lower()]
    ports = [default if port is None else port for port in (authority.port, host.port)]
    return authority.host == host.host and ports[0] == ports[1]


def is_loopback_address(address: str) -> bool:
    """Whether an address to listen on, or a name for one, can only be reached from this machine."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        return ipaddress.ip_address(socket.gethostbyname(address)).is_loopback
    except (OSError, UnicodeError):  # then nothing can listen on it
        return True


def _hosts(scope: HTTPScope) -> list[str]:
    """The hosts that a request names: that of an absolute-form target first, as it takes precedence, then Host."""
    target = [] if scope["path"].startswith("/") else [urlsplit(scope["path"]).netloc]
    return target + [value.decode("latin1") for name, value in scope["headers"] if name.lower() == b"host"]


def client_of_request() -> str:
    """The client that sent the current request; empty if no keys are configured."""
    return str(g.client)


def key_of_request() -> ApiKey | None:
    """The API key that the current request was sent with; None if it needs none, or used a session."""
    key: ApiKey | None = g.api_key
    return key


def came_by_tls(request: Request) -> bool:
    """Whether a browser sent the request by https: its own word in `Origin`, or that of a proxy."""
    proxy = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip()
    origin = request.headers.get("Origin", "").partition(":")[0]
    return "https" in (request.scheme, origin.lower(), proxy.lower())


def is_from_session() -> bool:
    """Whether the current request was admitted by a session's cookie."""
    return g.get("session_client") is not None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
