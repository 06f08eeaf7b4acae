"""Waits for a server: until it is no longer busy, has started, or has loaded a pipeline."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from filmstrip.client import Client
from filmstrip.endpoints import find_pipeline
from filmstrip.errors import Busy, FilmstripError, LoadFailed, ServerUnreachable, TritonUnavailable, UnknownPipeline
from filmstrip.http_errors import retry_after_s
from filmstrip.models import PipelineInfo

SHORTEST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
LONGEST_REFUSAL_S = 60.0
_PAUSE_S = 1.0
_REMINDER_S = 60.0
_POLL_S = 0.5

ResultT = TypeVar("ResultT")


class Retry:
    """Retries a request that the server refuses for now, if the user asked to wait.

    Args:
        client: a client of the server.
        note: prints a line for the user.
        waits: whether to wait; if not, every refusal is raised.
    """

    def __init__(self, client: Client, note: Callable[[str], None], *, waits: bool) -> None:
        self._client = client
        self._waits = waits
        self._note = note
        self._noted = ""
        self._noted_at = 0.0
        self._since: float | None = None

    def call(self, attempt: Callable[[], ResultT]) -> ResultT:
        """Return what `attempt` returns, once the server accepts it.

        Raises:
            FilmstripError: the server refused, and `waits` is false or waiting would not help.
            ServerUnreachable: likewise, or it has refused connections for longer than `LONGEST_REFUSAL_S`.
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
                self._report("The server refuses connections; it may be starting")
                time.sleep(SHORTEST_PAUSE_S)
            except FilmstripError as error:
                reason = self._reason(error) if self._waits else None
                if reason is None:
                    raise
                self._report(reason)
                refused_since = None
                pause = retry_after_s(error)
                time.sleep(min(max(_PAUSE_S if pause is None else pause, SHORTEST_PAUSE_S), LONGEST_PAUSE_S))
            else:
                self._since, self._noted = None, ""
                return result

    def _reason(self, error: FilmstripError) -> str | None:
        """Why the server refuses for now; None if waiting does not help."""
        if isinstance(error, Busy):
            return "The server is busy with another generation"
        if isinstance(error, TritonUnavailable) and self._client.health().status in ("starting", "healthy"):
            return "The server is starting"
        if retry_after_s(error) is not None:
            return f"The server asks to try again later ({error.message})"
        return None

    def _report(self, reason: str) -> None:
        now = time.monotonic()
        self._since = self._since or now
        if reason != self._noted:
            self._note(f"{reason}; waiting. Press Ctrl-C to stop waiting.")
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


def loaded_pipelines(client: Client, ids: Iterable[str], note: Callable[[str], None]) -> dict[str, PipelineInfo]:
    """Pipelines by id; those that are not loaded, or not listed, are loaded first.

    Raises:
        UnknownPipeline: the server has no such pipeline; the message lists those it has.
        LoadFailed: one cannot run; the message says why.
    """
    ready = {}
    listed = client.pipelines()
    for name in ids:
        pipeline = next((pipeline for pipeline in listed if pipeline.id == name), None)
        if pipeline is not None and pipeline.state == "failed":
            raise LoadFailed(f"{name} cannot run: {pipeline.reason or 'it could not be loaded'}")
        if pipeline is None or pipeline.state != "ready":
            load_and_wait(client, name, note)
            listed = client.pipelines()
            pipeline = find_pipeline(name, listed)
        ready[name] = pipeline
    return ready


def load_and_wait(client: Client, id: str, note: Callable[[str], None]) -> None:
    """Have a pipeline loaded, and wait for it.

    Raises:
        UnknownPipeline: the server has no such pipeline.
        LoadFailed: it could not be loaded; the message says why.
    """
    try:
        if client.load(id).status == "loaded":
            return
    except UnknownPipeline as error:
        raise UnknownPipeline(error.message) from None  # without the field of a request that the user did not write
    note(f"Loading {id}.")
    while True:
        answer = client.load_status()
        if answer.pipeline_id not in (None, id):
            return  # this client has started another load since: the list of pipelines decides
        if answer.status == "error":
            raise LoadFailed(f"{id} could not be loaded: {answer.error or 'the server gives no reason'}")
        if answer.status != "loading":
            return
        time.sleep(_POLL_S)
