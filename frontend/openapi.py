"""The OpenAPI document, with the streams and binary bodies that quart-schema cannot describe, and its Swagger page.

Both are rendered once and kept as bytes. A proxy may serve the API under a path prefix, so all links are relative, in
redirects too. Nothing that a client sends is written into them.
"""

import functools
import gzip
import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from quart import Quart, Request, Response, request
from quart_schema import QuartSchema, hide
from quart_schema.openapi import OpenAPIProvider
from werkzeug.routing.rules import Rule

from .auth import needs_key, needs_known_host
from .bodies import JSON
from .download import names_entity_tag
from .schema import ErrorAnswer
from .tasks import in_thread

F = TypeVar("F", bound=Callable[..., Any])

EVENTS = "text/event-stream"
SESSION_SCHEME = "session"
_OPERATION = "_filmstrip_operation"
_IS_MEDIA = "_filmstrip_is_media"
_GENERATE, _BATCH = "/api/v1/generate", "/api/v1/batch"
_MEANINGS = {
    400: "The request is malformed.",
    401: "The API key is missing or invalid.",
    403: "Web pages of this origin may not use the server, or it does not accept this host name.",
    404: "There is nothing of this name, or it has expired.",
    408: "The body stopped arriving.",
    409: "Another generation is running, the file is in use, the id is taken, or nothing has been made yet.",
    412: "If-Match names another file.",
    413: "The body, or what it is decoded to, exceeds its limit.",
    415: "The body is compressed or a form.",
    416: "The range lies outside of the file.",
    422: "A field has an invalid or unsupported value.",
    429: "As many generations wait as may; Retry-After says when to try again.",
    503: "Triton is not ready or could not load the pipeline, or the server has no memory left for the request.",
    507: "The stored files would exceed their limits, or the disk is full.",
}
_ASSETS = {"swagger-ui-bundle.js": "text/javascript; charset=utf-8", "swagger-ui.css": "text/css; charset=utf-8"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width">
  <title>{title}</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="docs/swagger-ui-bundle.js"></script>
  <script>
    const ui = SwaggerUIBundle({{
      deepLinking: true,
      dom_id: "#swagger-ui",
      layout: "BaseLayout",
      presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
      showExtensions: true,
      showCommonExtensions: true,
      url: new URL("openapi.json", window.location.href).href
    }});
  </script>
</body>
</html>
"""


def content(media_type: str, model: type[BaseModel] | None = None, description: str = "") -> dict[str, Any]:
    """A body of this media type: a model for JSON, text for events, otherwise bytes."""
    schema: dict[str, Any] = {"type": "string"}
    if model is not None:
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    elif media_type != EVENTS:
        schema["format"] = "binary"
    body: dict[str, Any] = {"content": {media_type: {"schema": schema}}}
    if description or model is not None:
        body["description"] = description or _first_line(model)
    return body


def parameter(
    name: str, location: str, schema: Mapping[str, Any], description: str, *, required: bool
) -> dict[str, Any]:
    """A parameter in the path, the query or a header."""
    return {"name": name, "in": location, "required": required, "schema": schema, "description": description}


def query_parameters(model: type[BaseModel], *, without: Collection[str] = ()) -> tuple[dict[str, Any], ...]:
    """The fields of a model as optional parameters of the query."""
    return tuple(found for found in _query_parameters(model) if found["name"] not in without)


@functools.cache
def _query_parameters(model: type[BaseModel]) -> tuple[dict[str, Any], ...]:
    schema = model.model_json_schema(ref_template="{model}")
    fields, definitions = schema["properties"], schema.get("$defs", {})
    return tuple(
        parameter(name, "query", _plain(field, definitions), field["description"], required=False)
        for name, field in fields.items()
    )


def _plain(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a field without its title and without null, which a query cannot express."""
    found = next((option for option in schema.get("anyOf", ()) if option.get("type") != "null"), schema)
    found = definitions.get(found.get("$ref", ""), found)
    default = {"default": schema["default"]} if schema.get("default") is not None else {}
    return {name: value for name, value in found.items() if name not in ("title", "anyOf", "description")} | default


def one_of(*models: type[BaseModel]) -> dict[str, Any]:
    """A schema for several forms of an answer."""
    return {"anyOf": [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]}


def describe(
    *,
    answers: Mapping[int, Mapping[str, Any]],
    errors: tuple[int, ...] = (),
    body: Mapping[str, Any] | None = None,
    parameters: tuple[Mapping[str, Any], ...] = (),
    models: tuple[type[BaseModel], ...] = (),
    error_model: type[BaseModel] = ErrorAnswer,
    is_media: bool = False,
) -> Callable[[F], F]:
    """Document a route.

    Args:
        answers: by status.
        errors: statuses of its errors, without those of the checks that all routes share.
        body: of the request.
        parameters: of the path, the query and the headers.
        models: those that its bodies refer to.
        error_model: that of its errors.
        is_media: whether it can be read with the cookie of a session, too.
    """
    responses = {str(status): {"description": "", **answer} for status, answer in answers.items()}
    responses |= {str(status): _refusal(status, error_model) for status in errors}
    operation: dict[str, Any] = {"responses": responses, "parameters": list(parameters)}
    if body is not None:
        operation["requestBody"] = {"required": True, **body}

    def mark(view: F) -> F:
        setattr(view, _OPERATION, (operation, (*models, error_model)))
        setattr(view, _IS_MEDIA, is_media)
        return view

    return mark


def is_media(view: Callable[..., Any]) -> bool:
    """Whether a route can be read with the cookie of a session."""
    return bool(getattr(view, _IS_MEDIA, False))


def accepted_types(view: Callable[..., Any]) -> Collection[str]:
    """The media types that a route documents for its body; empty if it takes none."""
    described: tuple[dict[str, Any], Any] = getattr(view, _OPERATION, ({}, ()))
    body: dict[str, Any] = described[0].get("requestBody", {})
    return list(body.get("content", ()))


class DocumentProvider(OpenAPIProvider):
    """quart-schema's document, with what `describe` says of each route."""

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        """The paths and components of one route."""
        paths, components = super().build_paths(rule)
        view = self._app.view_functions[rule.endpoint]
        operation, models = getattr(view, _OPERATION, ({}, (ErrorAnswer,)))
        for path, methods in paths.items():
            for method, described in methods.items():
                described.update(operation)
                if is_media(view) and self._extension.security:
                    described["security"] = [*self._extension.security, {SESSION_SCHEME: []}]
                if path.startswith(_BATCH):
                    described["summary"] = f"Alias of {path.replace(_BATCH, _GENERATE)}"
                    described["tags"] = ["aliases"]
                    described["operationId"] += "_batch"
                described["responses"] |= {
                    str(status): _refusal(status, models[-1]) for status in _admission_statuses(path, method)
                }
                described["description"] = re.sub(r"\n?(Raises|Args):\n(.|\n)*", "", described["description"]).strip()
        for model in models:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            components |= schema.pop("$defs", {})
            components[model.__name__] = schema
        return paths, components


def _refusal(status: int, model: type[BaseModel]) -> dict[str, Any]:
    return content(JSON, model, _MEANINGS[status])


def _admission_statuses(path: str, method: str) -> list[int]:
    """The statuses of the checks that all routes share: access, and how the body is wrapped."""
    return [401] * needs_key(path) + [403] * needs_known_host(path) + [415] * (method not in ("get", "head", "options"))


def _first_line(model: type[BaseModel] | None) -> str:
    return (model.__doc__ or "").partition("\n")[0] if model else ""


@dataclass(frozen=True)
class Rendered:
    """Content that is the same for every client, plain and compressed.

    Attributes:
        content_type: media type.
        plain: the bytes.
        compressed: the bytes compressed with gzip.
        tag: entity tag of the plain bytes; the compressed ones have another.
    """

    content_type: str
    plain: bytes
    compressed: bytes
    tag: str

    @classmethod
    def of(cls, content_type: str, plain: bytes) -> "Rendered":
        """Compress the content, which takes a moment: call it in a thread."""
        return cls(content_type, plain, gzip.compress(plain, mtime=0), hashlib.sha256(plain).hexdigest()[:32])

    def response(self, request: Request) -> Response:
        """The content, compressed if the client accepts that, or 304 if the client already has it."""
        is_compressed = request.accept_encodings.quality("gzip") > 0
        compressed_tag = f"{self.tag}-gzip"
        is_known = any(
            names_entity_tag(request.headers, "If-None-Match", tag, weak=True) for tag in (self.tag, compressed_tag)
        )
        response = Response(b"" if is_known else self.compressed if is_compressed else self.plain)
        response.headers["Content-Type"] = self.content_type
        if is_compressed:
            response.headers["Content-Encoding"] = "gzip"
        response.headers["ETag"] = f'"{compressed_tag if is_compressed else self.tag}"'
        response.headers.update({"Cache-Control": "no-cache", "Vary": "Accept-Encoding"})
        if is_known:
            response.status_code = 304
            for name in ("Content-Type", "Content-Length", "Content-Encoding"):
                response.headers.pop(name, None)
        return response


def add_docs(app: Quart, schema: QuartSchema, title: str) -> None:
    """Add the document at /openapi.json, and the page at /docs with its assets."""
    rendered: dict[str, Rendered] = {}
    assets = cast("Path", files("flask_swagger_ui")) / "dist"

    async def answer(name: str, content_type: str, read: Callable[[], bytes]) -> Response:
        if name not in rendered:
            rendered[name] = await in_thread(Rendered.of, content_type, read())
        return rendered[name].response(request)

    @app.get("/openapi.json")
    @hide
    async def openapi() -> Response:
        def document() -> bytes:
            return app.json.dumps(schema.openapi_provider.schema()).encode()

        return await answer("openapi.json", JSON, document)

    @app.get("/docs")
    @hide
    async def docs() -> Response:
        return await answer("docs", "text/html; charset=utf-8", _PAGE.format(title=escape(title)).encode)

    @app.get("/docs/<any('swagger-ui-bundle.js', 'swagger-ui.css'):name>")
    @hide
    async def docs_asset(name: str) -> Response:
        return await answer(name, _ASSETS[name], (assets / name).read_bytes)

    @app.get("/docs/")
    @hide
    async def docs_folder() -> Response:
        return Response(b"", 302, {"Location": "../docs"})
