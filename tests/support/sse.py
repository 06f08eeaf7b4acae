"""Server-sent events, parsed strictly: id, event and data, each on one line, in this order."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class ServerSentEvent(NamedTuple):
    """One event."""

    id: int
    name: str
    data: dict[str, Any]


class EventParser:
    """Takes the lines of a stream one by one.

    Attributes:
        comments: so far.
    """

    def __init__(self) -> None:
        self.comments: list[str] = []
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> ServerSentEvent | None:
        """Take a line without its end; gives the event that it ends.

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
            if list(fields) != ["id", "event", "data"]:
                raise ValueError(f"an event with {list(fields)}")
            return ServerSentEvent(int(fields["id"]), fields["event"], json.loads(fields["data"]))
        return None

    def parse(self, lines: Iterable[str]) -> Iterator[ServerSentEvent]:
        """The events of these lines.

        Raises:
            ValueError: the stream ends within an event, or one is not in the server's format.
        """
        for line in lines:
            event = self.feed(line)
            if event is not None:
                yield event
        if self._fields:
            raise ValueError(f"the stream ends within an event: {self._fields}")
