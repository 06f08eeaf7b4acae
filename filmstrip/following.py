"""Decides how a generation is followed across broken streams: which events are new, and when to connect again. No I/O.

The server numbers the events of a generation and replays them from any number on, so that each one arrives once and in
order. Only `queued` events have no number: they say where the generation stands now.
"""

import random
import time

from filmstrip import endpoints
from filmstrip.endpoints import Call, StreamCall
from filmstrip.errors import (
    ClientError,
    ConnectionFailed,
    FilmstripError,
    GenerationsUnsupported,
    ServerUnreachable,
    StreamBroken,
    TimedOut,
    TlsUnsupported,
    UnexpectedAnswer,
    UntrustedCertificate,
)
from filmstrip.foreign_answers import UNREACHED
from filmstrip.http_errors import retry_after_s
from filmstrip.models import LAST_EVENTS, Event, Queued, parse_event

STREAM_ENDED = "the stream ended before the generation"
MAX_RECONNECTS = 10
"""How often in a row a stream is opened again; each new event starts the count again."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
_LONGEST_RETRY_AFTER_S = 300.0
_STEADY_S = 30.0
"""A stream that lasted this long was no failed attempt, even if nothing happened meanwhile."""
_TRY_AGAIN = frozenset({429, 503})
_UNSUPPORTED = "this server has no generations with an id (/api/v1/generations); it may be older than this client"


def check_supported(error: Exception) -> None:
    """Check the error of a call that every server with generations with an id answers otherwise.

    Raises:
        GenerationsUnsupported: there are none at this address.
    """
    if endpoints.is_unsupported(error):
        raise GenerationsUnsupported(_UNSUPPORTED) from error


class Following:
    """The state of following one generation.

    Args:
        id: of the generation.
        after: number of the last event that the caller has.
        max_reconnects: how often in a row to connect again without a new event.
        start: the call that starts the generation; None if it was started before.

    Attributes:
        id: of the generation.
        after: number of the last event received.
        has_connected: the server has answered with a stream at least once.
        is_complete: the last event has been received.
    """

    def __init__(
        self, id: str, after: int = 0, *, max_reconnects: int = MAX_RECONNECTS, start: Call | None = None
    ) -> None:
        self.id = id
        self.after = after
        self.has_connected = False
        self.is_complete = False
        self._max_reconnects = max_reconnects
        self._start = start
        self._num_failures = 0
        self._connected_at: float | None = None
        self._last_event: Event | None = None

    def call(self) -> StreamCall:
        """The call that opens the stream: it continues after the last event received."""
        if isinstance(self._start, StreamCall) and not self.has_connected:
            return self._start  # repeating it is safe: the same id with the same body is the same generation
        return endpoints.generation_events(self.id, self.after)

    def connected(self) -> None:
        """The server has answered with a stream."""
        self.has_connected = True
        self._connected_at = time.monotonic()

    def receive(self, name: str, data: str, number: str) -> Event | None:
        """Take a server-sent event; None if the caller already has it, or this version does not know its name.

        Raises:
            UnexpectedAnswer: it is not an event of a generation.
        """
        event = parse_event(name, data)
        if not isinstance(event, Queued) and number.isdecimal():
            if int(number) <= self.after:
                return None
            self.after = int(number)
        if event is not None and event != self._last_event:
            self._num_failures = 0  # but not if it only says again where the generation waits
        self._last_event = event or self._last_event
        self.is_complete = isinstance(event, LAST_EVENTS)
        return event

    def pause_s(self, error: ClientError | FilmstripError) -> float:
        """How long to wait before connecting again.

        Raises:
            StreamBroken: it was tried often enough.
            GenerationsUnsupported: there are no generations with an id at this address.
            ClientError, FilmstripError: the error itself, if connecting again would not help.
        """
        if self._start is not None and not self.has_connected:
            check_supported(error)
        if self._connected_at is not None and time.monotonic() - self._connected_at > _STEADY_S:
            self._num_failures = 0
        self._connected_at = None
        if not self._may_pass(error):
            raise error
        if self._num_failures >= self._max_reconnects:
            raise StreamBroken(self.id, self.after, self._num_failures, str(error)) from error
        longest: float = min(_FIRST_PAUSE_S * 2**self._num_failures, _LONGEST_PAUSE_S)
        self._num_failures += 1
        pause: float = longest * random.uniform(0.5, 1)  # noqa: S311 - spreads clients whose server has restarted
        asked = retry_after_s(error) if isinstance(error, FilmstripError) else None
        return pause if asked is None else max(pause, min(asked, _LONGEST_RETRY_AFTER_S))

    def _may_pass(self, error: ClientError | FilmstripError) -> bool:
        if not self.has_connected:
            # Nobody listens, or the server refuses: the caller should know at once. If the connection broke after the
            # request was sent, it may have been accepted.
            return isinstance(error, ConnectionFailed) and not isinstance(error, ServerUnreachable | TimedOut)
        if isinstance(error, FilmstripError):
            return error.status in _TRY_AGAIN
        if isinstance(error, UnexpectedAnswer):
            return error.status in UNREACHED
        return isinstance(error, ConnectionFailed) and not isinstance(error, TlsUnsupported | UntrustedCertificate)
