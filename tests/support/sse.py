"""A strict parser of server-sent events: id, event and data, each on one line, in this order; `queued` has no id."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class ServerSentEvent(NamedTuple):
    """One event; the id of `queued`, which has none, is 0."""

    id: int
    name: str
    data: dict[str, Any]


class EventParser:
    """Parses a stream line by line.

    Attributes:
        comments: received so far.
    """

    def __init__(self) -> None:
        self.comments: list[str] = []
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> ServerSentEvent | None:
        """Parse a line without its line break; the event if this line completes one.

        Raises:
            ValueError: the event is not in the server's format.
        """
        if line.startswith(":"):
            self.comments.append(line)
        elif line:
            name, _, value = line.partition(": ")
            if name in self._fields:
                raise ValueError(f"an event with two lines of {name}")
            self._fields[name] = value
        elif self._fields:
            fields, self._fields = self._fields, {}
            expected = ["event", "data"] if fields.get("event") == "queued" else ["id", "event", "data"]
            if list(fields) != expected:
                raise ValueError(f"an event with {list(fields)}")
            return ServerSentEvent(int(fields.get("id", 0)), fields["event"], json.loads(fields["data"]))
        return None

    def parse(self, lines: Iterable[str]) -> Iterator[ServerSentEvent]:
        """Parse all lines of a stream.

        Raises:
            ValueError: the stream ends within an event, or one is not in the server's format.
        """
        for line in lines:
            event = self.feed(line)
            if event is not None:
                yield event
        if self._fields:
            raise ValueError(f"the stream ends within an event: {self._fields}")
