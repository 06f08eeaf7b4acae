"""The address and the API key that are not in a workflow: saved by the page's settings, or in the environment.

A workflow from someone else may name any address, so a key is only sent to the address that it was given for.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import Any
from urllib.parse import urlsplit

from .errors import FilmstripError

DEFAULT_URL = "http://127.0.0.1:8000"
_FILE = "filmstrip.json"


def default_url() -> str:
    """The address of a new Server node."""
    return _saved().get("address") or os.environ.get("FILMSTRIP_SERVER", "").strip() or DEFAULT_URL


def token_for(url: str) -> str:
    """The API key for a Server node without one; empty if there is none for this address."""
    saved = _saved()
    if saved.get("token") and same_address(url, saved.get("address", "")):
        return saved["token"]
    from_environment = os.environ.get("FILMSTRIP_SERVER", "").strip() or DEFAULT_URL
    return os.environ.get("FILMSTRIP_TOKEN", "").strip() if same_address(url, from_environment) else ""


def allowed(url: str) -> bool:
    """Whether the page may have this address asked for its pipelines."""
    others = os.environ.get("FILMSTRIP_ALLOWED_SERVERS", "").replace(",", " ").split()
    return any(same_address(url, other) for other in (default_url(), *others))


def has_token() -> bool:
    """Whether a key is saved; it is never read back."""
    return bool(_saved().get("token"))


def save(address: str, token: str | None) -> None:
    """Save the address, and the key for it, in a file that only this user can read.

    Args:
        address: empty for none.
        token: the key; empty to forget it; None keeps the one that was saved for the same address.

    Raises:
        FilmstripError: the file cannot be written.
    """
    before = _saved()
    if token is None:
        token = before.get("token", "") if same_address(address, before.get("address", "")) else ""
    path = _path()
    if path is None:
        raise FilmstripError("this ComfyUI has no folder for a user's settings")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=".filmstrip-", dir=os.path.dirname(path))  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"address": address, "token": token}, file)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(part)
            raise
    except OSError as error:
        raise FilmstripError(f"the settings cannot be saved: {error.strerror or error}") from None


def same_address(one: str, other: str) -> bool:
    """Whether two addresses name the same server."""
    return _endpoint(one) == _endpoint(other)


def _endpoint(url: str) -> tuple[str, str | None, int | None, str]:
    try:
        parts = urlsplit(url.strip())
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None, url
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")


def _path() -> str | None:
    try:
        import folder_paths
    except ImportError:  # the pack is loaded without ComfyUI, as by a registry
        return None
    return os.path.join(folder_paths.get_user_directory(), _FILE)


def _saved() -> dict[str, str]:
    path = _path()
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            values: Any = json.load(file)
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if isinstance(value, str)}
