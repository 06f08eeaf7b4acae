"""What the endpoints share: the body of the current request, and JSON answers."""

from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from pydantic import BaseModel
from quart import Response, jsonify, request

from .auth import client_of_request
from .bodies import BodyReceiver
from .connection import BoundedBody
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


def _body() -> BoundedBody:
    body = request.body
    assert isinstance(body, BoundedBody)
    return body
