"""What the endpoints share: the body of the current request, JSON answers, and event streams."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from pydantic import BaseModel
from quart import Response, jsonify, request

from .auth import client_of_request
from .bodies import BodyReceiver
from .connection import BoundedBody, on_close
from .events import KEEP_ALIVE, NumberedEvent
from .jobs import Followed, QueuedEvent
from .openapi import EVENTS
from .state import app_state

ModelT = TypeVar("ModelT", bound=BaseModel)


def body_receiver() -> BodyReceiver:
    """Receives the body into a file of the client."""
    state = app_state()
    return BodyReceiver(
        state.blobs,
        state.store,
        client_of_request(),
        _body(),
        content_length=request.content_length,
        pace=state.pace,
    )


def json_body(model: type[ModelT]) -> AbstractAsyncContextManager[ModelT]:
    """The parsed body; see `JsonBodies.read`."""
    state = app_state()
    return state.json_bodies.read(
        model, _body(), content_length=request.content_length, client=client_of_request(), pace=state.pace
    )


def answer(model: BaseModel) -> Response:
    """A model as JSON."""
    return jsonify(model.model_dump(mode="json"))


async def event_stream(id: str, *, after: int = 0, shows_queue: bool) -> Response:
    """The response that follows a generation of the current client until the current request ends.

    Args:
        id: of the generation.
        after: number of the last event that the client has.
        shows_queue: send `queued` events.

    Raises:
        NotFound: there is no such generation.
    """
    state = app_state()
    following = state.jobs.follow(client_of_request(), id, after=after, silence_s=state.settings.keep_alive_s)
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
            yield _encode_queued(event)


def _encode_queued(event: QueuedEvent) -> bytes:
    """A place in the queue on the wire; it has no number, as it is not repeated."""
    return f"event: queued\ndata: {json.dumps(event._asdict())}\n\n".encode()


def _body() -> BoundedBody:
    body = request.body
    assert isinstance(body, BoundedBody)
    return body
