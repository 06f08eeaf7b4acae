"""Event streams: a generation's events as server-sent events."""

import json
from collections.abc import AsyncIterator

from quart import Request, Response

from .connection import on_close
from .events import KEEP_ALIVE, NumberedEvent
from .jobs import Followed, Jobs, QueuedEvent
from .openapi import EVENTS


async def event_stream(
    request: Request, jobs: Jobs, client: str, id: str, *, after: int = 0, silence_s: float, shows_queue: bool
) -> Response:
    """The response that follows a generation until the request ends.

    Args:
        request: to answer.
        jobs: where the generation is.
        client: whose it is.
        id: which.
        after: number of the last event that the client has.
        silence_s: longest silence before a comment.
        shows_queue: send `queued` events.

    Raises:
        NotFound: there is no such generation.
    """
    following = jobs.follow(client, id, after=after, silence_s=silence_s)
    events = await on_close(request).enter_async_context(following)
    response = Response(_encoded(events, shows_queue=shows_queue), content_type=EVENTS)
    response.headers.update({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Generation-Id": id})
    return response


async def _encoded(events: AsyncIterator[Followed], *, shows_queue: bool) -> AsyncIterator[bytes]:
    async for event in events:
        if isinstance(event, NumberedEvent):
            yield event.encode()
        elif event is None:
            yield KEEP_ALIVE
        elif shows_queue:
            yield encode_queued(event)


def encode_queued(event: QueuedEvent) -> bytes:
    """A place in the queue on the wire; it has no number, as it is not repeated."""
    return f"event: queued\ndata: {json.dumps(event._asdict())}\n\n".encode()
