"""Session cookies: what the `<video>` and `<img>` elements of a page send instead of a key, to read media.

A cookie holds the client, the time when it expires, random bits, and an HMAC of these. The HMAC's key is derived from
the API key that the session was started with. So nothing is stored: a session survives a restart, is valid at every
server with the same keys and the same `FILMSTRIP_SESSION_SECRET`, and ends when its API key is removed.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .settings import CLIENT_PATTERN, HOURS, ApiKey

COOKIE = "filmstrip_session"
LIFETIME_S = 8 * HOURS
_NONCE_BYTES = 16
_MAX_ENDED = 10_000
_TOKEN = re.compile(rf"({CLIENT_PATTERN})\.([0-9]{{1,12}})\.([A-Za-z0-9_-]{{22}})\.([A-Za-z0-9_-]{{43}})", re.ASCII)


class Session(NamedTuple):
    """A session that was started: the value of its cookie, and when it expires (Unix seconds)."""

    token: str
    expires_at: float


class Sessions:
    """Starts, verifies and ends sessions.

    Args:
        api_keys: the keys of the server.
        secret: `FILMSTRIP_SESSION_SECRET`.
        now: the clock.
    """

    def __init__(self, api_keys: Sequence[ApiKey], secret: str = "", *, now: Callable[[], float] = time.time) -> None:
        self._keys = tuple(api_keys)
        self._salt = b"filmstrip session " + secret.encode()
        self._now = now
        self._signing_keys: dict[ApiKey, bytes] = {}
        self._ended: dict[str, int] = {}  # tokens that were ended before they expire

    def start(self, key: ApiKey) -> Session:
        """Start a session of the client with this key."""
        expires = int(self._now() + LIFETIME_S)
        content = f"{key.client}.{expires}.{_text(secrets.token_bytes(_NONCE_BYTES))}"
        return Session(f"{content}.{self._signature(key, content)}", expires)

    def client(self, token: str) -> str | None:
        """The client of a session; None if it is not valid here, or not any more."""
        found = _TOKEN.fullmatch(token)
        if found is None or int(found[2]) <= self._now() or token in self._ended:
            return None
        content, _, signature = token.rpartition(".")
        for key in self._keys:
            if key.client == found[1] and hmac.compare_digest(self._signature(key, content), signature):
                return key.client
        return None

    def end(self, token: str) -> None:
        """End a session before it expires. Other servers do not learn of it, nor does this one after a restart."""
        if self.client(token) is None:
            return
        now = self._now()
        self._ended = {other: expires for other, expires in self._ended.items() if expires > now}
        while len(self._ended) >= _MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        self._ended[token] = int(token.split(".")[1])

    def _signature(self, key: ApiKey, content: str) -> str:
        signing_key = self._signing_keys.get(key)
        if signing_key is None:
            # Slow on purpose: a stolen cookie must not be a fast way to try out weak keys.
            signing_key = hashlib.scrypt(key.key.encode(errors="surrogatepass"), salt=self._salt, n=2**14, r=8, p=1)
            self._signing_keys[key] = signing_key
        return _text(hmac.digest(signing_key, content.encode(), "sha256"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
