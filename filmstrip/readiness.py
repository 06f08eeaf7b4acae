"""Waiting for a server: until it is free, until it has started, until a pipeline is loaded."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from filmstrip.calls import pick_pipeline, retry_after_s
from filmstrip.client import Client
from filmstrip.client_errors import ServerUnreachable
from filmstrip.errors import Busy, FilmstripError, LoadFailed, TritonUnavailable, UnknownPipeline

SHORTEST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
LONGEST_REFUSAL_S = 60.0
_PAUSE_S = 1.0
_REMINDER_S = 60.0
_POLL_S = 0.5

ResultT = TypeVar("ResultT")


class Patience:
    """Tries again what a server refuses for now, where the user asked to wait.

    Args:
        client: of the server.
        waits: False lets every refusal pass.
        note: tells the user.
    """

    def __init__(self, client: Client, note: Callable[[str], None], *, waits: bool) -> None:
        self._client = client
        self._waits = waits
        self._note = note
        self._noted = ""
        self._noted_at = 0.0
        self._since: float | None = None

    def call(self, attempt: Callable[[], ResultT]) -> ResultT:
        """Give what `attempt` gives, once the server takes it.

        Raises:
            FilmstripError: the server refused, and waiting was not asked for or would not help.
            ServerUnreachable: likewise, or it refused connections for longer than `LONGEST_REFUSAL_S`.
        """
        refused_since: float | None = None
        while True:
            try:
                result = attempt()
            except ServerUnreachable as error:
                refused_since = refused_since or time.monotonic()
                waited = time.monotonic() - refused_since
                if not self._waits or not _is_refused(error) or waited > LONGEST_REFUSAL_S:
                    raise
                self._tell("The server refuses connections, as when it is starting")
                time.sleep(SHORTEST_PAUSE_S)
            except FilmstripError as error:
                reason = self._reason(error) if self._waits else None
                if reason is None:
                    raise
                self._tell(reason)
                refused_since = None
                pause = retry_after_s(error)
                time.sleep(min(max(_PAUSE_S if pause is None else pause, SHORTEST_PAUSE_S), LONGEST_PAUSE_S))
            else:
                self._since, self._noted = None, ""
                return result

    def _reason(self, error: FilmstripError) -> str | None:
        """Why the server refuses for now; None when it refuses for good."""
        if isinstance(error, Busy):
            return "The server is busy with another generation"
        if isinstance(error, TritonUnavailable) and self._client.health()["status"] in ("starting", "healthy"):
            return "The server is starting"
        if retry_after_s(error) is not None:
            return f"The server asks to try again later ({error.message})"
        return None

    def _tell(self, reason: str) -> None:
        now = time.monotonic()
        self._since = self._since or now
        if reason != self._noted:
            self._note(f"{reason}; waiting. Ctrl-C stops waiting.")
        elif now - self._noted_at >= _REMINDER_S:
            self._note(f"{reason}; still waiting after {(now - self._since) / 60:.0f} min.")
        else:
            return
        self._noted, self._noted_at = reason, now


def _is_refused(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionRefusedError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def pipeline_state(facts: Mapping[str, Any]) -> str:
    """`ready`, `loading`, `unloaded` or `failed`; of older servers, which do not say, by whether it is loaded."""
    state = facts.get("state")
    return str(state) if state else "ready" if facts.get("loaded", True) else "unloaded"


def ready_pipelines(client: Client, ids: Iterable[str], note: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The facts of pipelines, by id; those that are not loaded, or not listed, are loaded first.

    Raises:
        UnknownPipeline: the server has no such pipeline; the message lists those it has.
        LoadFailed: one cannot run; the message says why.
    """
    found = {}
    known = client.pipelines()
    for name in ids:
        facts = next((pipeline for pipeline in known if pipeline.get("id") == name), {"state": "unloaded"})
        state = pipeline_state(facts)
        if state == "failed":
            raise LoadFailed(f"{name} cannot run: {facts.get('reason') or 'it could not be loaded'}")
        if state != "ready":
            load(client, name, note)
            known = client.pipelines()
            facts = pick_pipeline(name, known)
        found[name] = facts
    return found


def load(client: Client, id: str, note: Callable[[str], None]) -> None:
    """Have a pipeline loaded, and wait for it.

    Raises:
        UnknownPipeline: the server has no such pipeline.
        LoadFailed: it could not be loaded; the message says why.
    """
    try:
        if client.load(id) == "loaded":
            return
    except UnknownPipeline as error:
        raise UnknownPipeline(error.message) from None  # whatever field of that call it was
    note(f"Loading {id}, which is not loaded yet.")
    while True:
        answer = client.status()
        if answer.get("pipeline_id") not in (None, id):
            return  # another load of this client took its place: what the list says holds
        if answer.get("status") == "error":
            raise LoadFailed(f"{id} could not be loaded: {answer.get('error') or 'the server does not say why'}")
        if answer.get("status") != "loading":
            return
        time.sleep(_POLL_S)
