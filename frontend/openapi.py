"""The OpenAPI document, complete for streams and binary bodies too, which quart-schema by itself cannot tell."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from quart_schema.openapi import OpenAPIProvider
from werkzeug.routing.rules import Rule

from .access import needs_key, needs_known_host
from .bodies import JSON
from .schema import ErrorAnswer

F = TypeVar("F", bound=Callable[..., Any])

EVENTS = "text/event-stream"
_OPERATION = "_filmstrip_operation"
_GENERATE, _BATCH = "/api/v1/generate", "/api/v1/batch"
_MEANINGS = {
    400: "The request cannot be understood.",
    401: "No key, or a wrong one.",
    403: "Pages of this origin may not post here, or the server does not answer to this host name.",
    404: "Nothing of this name is here, or it has expired.",
    408: "The body stopped arriving.",
    409: "Another generation runs, or the file is in use.",
    412: "The file is not the one that If-Match names.",
    413: "The body is over its limit.",
    415: "The body is compressed, or a form.",
    416: "The range lies outside the file.",
    422: "A field holds a value that cannot be served.",
    503: "Triton is not ready, or could not load the pipeline; or the server has no memory left for the request.",
    507: "The stored files would go over their limits, or the disk is full.",
}


def content(media_type: str, model: type[BaseModel] | None = None, description: str = "") -> dict[str, Any]:
    """A body of this type: a model for JSON, text for events, else bytes."""
    schema: dict[str, Any] = {"type": "string"}
    if model is not None:
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    elif media_type != EVENTS:
        schema["format"] = "binary"
    body: dict[str, Any] = {"content": {media_type: {"schema": schema}}}
    if description or model is not None:
        body["description"] = description or _first_line(model)
    return body


def parameter(name: str, place: str, schema: Mapping[str, Any], description: str, *, required: bool) -> dict[str, Any]:
    """A header or a part of the query."""
    return {"name": name, "in": place, "required": required, "schema": schema, "description": description}


def describe(
    *,
    answers: Mapping[int, Mapping[str, Any]],
    errors: tuple[int, ...] = (),
    body: Mapping[str, Any] | None = None,
    parameters: tuple[Mapping[str, Any], ...] = (),
    models: tuple[type[BaseModel], ...] = (),
) -> Callable[[F], F]:
    """Document a route; `models` are those that its bodies name."""
    responses = {str(status): {"description": "", **answer} for status, answer in answers.items()}
    responses |= {str(status): _refusal(status) for status in errors}
    operation: dict[str, Any] = {"responses": responses, "parameters": list(parameters)}
    if body is not None:
        operation["requestBody"] = {"required": True, **body}

    def mark(view: F) -> F:
        setattr(view, _OPERATION, (operation, (*models, ErrorAnswer)))
        return view

    return mark


def accepted_types(view: Callable[..., Any]) -> Collection[str]:
    """The media types that a route documents for its body, none where it takes none."""
    described: tuple[dict[str, Any], Any] = getattr(view, _OPERATION, ({}, ()))
    body: dict[str, Any] = described[0].get("requestBody", {})
    return list(body.get("content", ()))


class Provider(OpenAPIProvider):
    """quart-schema's document with our routes' own descriptions."""

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        """The paths and components of one route."""
        paths, components = super().build_paths(rule)
        operation, models = getattr(self._app.view_functions[rule.endpoint], _OPERATION, ({}, ()))
        for path, methods in paths.items():
            for method, described in methods.items():
                described.update(operation)
                if path.startswith(_BATCH):
                    described["summary"] = f"Another name of {path.replace(_BATCH, _GENERATE)}"
                    described["tags"] = ["aliases"]
                    described["operationId"] += "_batch"
                described["responses"] |= {str(status): _refusal(status) for status in _by_access(path, method)}
                described["description"] = re.sub(r"\n?(Raises|Args):\n(.|\n)*", "", described["description"]).strip()
        for model in models:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            components |= schema.pop("$defs", {})
            components[model.__name__] = schema
        return paths, components


def _refusal(status: int) -> dict[str, Any]:
    return content(JSON, ErrorAnswer, _MEANINGS[status])


def _by_access(path: str, method: str) -> list[int]:
    """Statuses that `frontend.access` and `frontend.bodies` answer with, on every route alike."""
    return [401] * needs_key(path) + [403] * needs_known_host(path) + [415] * (method not in ("get", "head", "options"))


def _first_line(model: type[BaseModel] | None) -> str:
    return (model.__doc__ or "").partition("\n")[0] if model else ""
