"""Who may ask: bearer keys, and web pages of other origins."""

import hashlib
import hmac
from urllib.parse import urlsplit

from quart import Request, g

from filmstrip.errors import ForbiddenOrigin, Unauthorized
from frontend.settings import Settings

HEALTH_PATHS = ("/health", "/health/live", "/health/ready")
_OPEN = ("/", *HEALTH_PATHS, "/docs", "/openapi.json")  # what a monitor or a browser asks for before it has a key
_HARMLESS = ("GET", "HEAD", "OPTIONS")
_SCHEME = "bearer"


def needs_key(path: str) -> bool:
    """Whether a key is wanted there, once keys are set."""
    return path not in _OPEN and not path.startswith("/docs/")


class Access:
    """Decides about each request before its body is read."""

    def __init__(self, settings: Settings) -> None:
        self._digests = [(client, _digest(key)) for client, key in settings.api_keys]
        self._origins = frozenset(settings.cors_origins)

    def admit(self, request: Request) -> None:
        """Let a request in, as that of the client whose key it carries; `client_of` tells which.

        Raises:
            ForbiddenOrigin: a web page of another origin wants to change something.
            Unauthorized: keys are set, and it carries none of them.
        """
        if request.method not in _HARMLESS:
            self._check_origin(request)
        g.client = "" if self._is_open(request) else self._client(request.headers.get("Authorization", ""))

    def _is_open(self, request: Request) -> bool:
        is_preflight = request.method == "OPTIONS"  # browsers send no credentials with it
        return not self._digests or is_preflight or (request.method in _HARMLESS and not needs_key(request.path))

    def _client(self, authorization: str) -> str:
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        found = None
        for client, digest in self._digests:  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, given):
                found = client
        if found is None or scheme.lower() != _SCHEME:
            raise Unauthorized("a key is wanted: Authorization: Bearer <key>")
        return found

    def _check_origin(self, request: Request) -> None:
        """Browsers send `Origin` with what pages post; a page elsewhere must not drive a server on this machine."""
        origin = request.headers.get("Origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        host = _host(origin)
        if not host or host != request.host:
            raise ForbiddenOrigin("pages of this origin may not post here; FILMSTRIP_CORS_ORIGINS would allow it")


def _host(origin: str) -> str:
    """Host and port of an origin, empty where it has none, such as `null`."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def client_of_request() -> str:
    """The client that sent the present request, empty where no keys are set."""
    return str(g.client)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
