"""The Quart app: routes, access control, JSON errors, the API document, and the lifespan of its state."""

import logging
from contextlib import AsyncExitStack
from typing import Any

from quart import Quart, Response, jsonify, request
from quart_cors import cors
from quart_schema import APIKeySecurityScheme, HttpSecurityScheme, Info, QuartSchema, Server
from werkzeug.exceptions import HTTPException

import filmstrip
from filmstrip.errors import (
    BadRequest,
    ExpectationFailed,
    FilmstripError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RangeNotSatisfiable,
    UnsupportedMediaType,
)

from .auth import SAFE_METHODS, AccessControl, is_from_session
from .bodies import refuse_wrapped
from .connection import BoundedBody, BoundedRequest, Connection
from .generations import generations
from .logs import note
from .openai_videos import openai_error, openai_videos
from .openapi import SESSION_SCHEME, DocumentProvider, accepted_types, add_docs, is_media
from .page_files import add_page
from .routes import api
from .sessions import COOKIE, Sessions
from .settings import Settings
from .state import lifespan

log = logging.getLogger(__name__)

API_VERSION = "1"  # of the API; the server's own version is not public
_UNREAD_BYTES = 64 * 1024  # how much of an unread body is awaited before the response, to keep the connection open
_UNREAD_S = 0.5
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_EXPOSED_HEADERS = (
    *("X-Video-Frames", "X-Video-Height", "X-Video-Width", "X-Video-Channels", "X-Generation-Id"),
    *("X-Unused-Fields", "Retry-After", "openai-poll-after-ms"),
    *("Accept-Ranges", "Content-Length", "Content-Range", "ETag"),
)


class FilmstripApp(Quart):
    """Quart with back-pressure on bodies."""

    request_class = BoundedRequest
    asgi_http_class = Connection


def create_app(settings: Settings | None = None) -> Quart:
    """Create the app. By default, the settings come from the environment."""
    settings = settings or Settings()
    app = FilmstripApp(__name__, static_folder=None)
    app.config.update(
        RESPONSE_TIMEOUT=None,  # streams and downloads take as long as they take
        BODY_TIMEOUT=None,  # BoundedBody.pieces has its own limits
        MAX_CONTENT_LENGTH=None,
        PROVIDE_AUTOMATIC_OPTIONS=bool(settings.cors_origins),  # the preflights of browsers
    )
    app.url_map.merge_slashes = False  # it would redirect to the Host header's host, without a proxy's prefix
    app.register_blueprint(api)
    app.register_blueprint(generations)
    app.register_blueprint(openai_videos)
    sessions = Sessions(settings.api_keys, settings.session_secret)
    _add_access(app, settings, sessions)
    _add_errors(app)
    _add_docs(app, settings)
    add_page(app, settings)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    _add_lifespan(app, settings, sessions)

    @app.after_request
    async def finish_body(response: Response) -> Response:
        """Discard what is left of the body. The server does not wait for strangers: they could block connections."""
        note(request, status=response.status_code, **_generation_of(response))
        if isinstance(request.body, BoundedBody):
            waits = response.status_code not in (401, 403) and request.method not in SAFE_METHODS
            await request.body.discard(_UNREAD_BYTES, _UNREAD_S if waits else 0)
        return response

    return app


def _generation_of(response: Response) -> dict[str, str]:
    generation = response.headers.get("X-Generation-Id")
    return {"generation": generation} if generation else {}


def _add_access(app: Quart, settings: Settings, sessions: Sessions) -> None:
    access = AccessControl(settings, sessions)

    @app.before_request
    async def admit() -> None:
        view = app.view_functions.get(request.endpoint or "") if request.routing_exception is None else None
        access.admit(request, is_media=view is not None and is_media(view))
        if view is not None and request.method not in SAFE_METHODS:
            refuse_wrapped(request, accepted_types(view))

    @app.after_request
    async def keep_private(response: Response) -> Response:
        """Tell caches and other pages to leave alone what a cookie opened: unlike a key, it comes by itself."""
        if is_from_session():
            response.cache_control.private = True
            response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
            response.vary.add("Cookie")
        return response

    @app.before_request
    async def refuse_expectations() -> None:
        expectation = request.headers.get("Expect", "100-continue")
        if expectation.strip().lower() != "100-continue" and request.http_version != "1.0":
            raise ExpectationFailed(f"Expect: only 100-continue is supported, got {expectation[:80]!r}", "Expect")

    if settings.cors_origins:
        cors(
            app,
            allow_origin=settings.cors_origins,
            allow_methods=_METHODS,
            expose_headers=_EXPOSED_HEADERS,
            max_age=600,
        )


def _add_lifespan(app: Quart, settings: Settings, sessions: Sessions) -> None:
    stack = AsyncExitStack()

    @app.before_serving
    async def start() -> None:
        await stack.enter_async_context(lifespan(app, settings, sessions))

    @app.after_serving
    async def stop() -> None:
        await stack.aclose()


def _add_errors(app: Quart) -> None:
    @app.errorhandler(FilmstripError)
    async def filmstrip_error(error: FilmstripError) -> Response:
        response = jsonify(openai_error(error) if request.path.startswith("/v1/") else error.body())
        response.status_code = error.status
        response.headers.update(error.headers)
        return response

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        kinds: dict[int | None, type[FilmstripError]] = {
            kind.status: kind for kind in (NotFound, MethodNotAllowed, UnsupportedMediaType, RangeNotSatisfiable)
        }
        kind = kinds.get(error.code, BadRequest)
        response = await filmstrip_error(kind(f"{request.method[:20]} {request.path[:80]}: {error.name}"))
        if error.code is not None:
            response.status_code = error.code
        response.headers.update({name: value for name, value in error.get_headers() if name == "Allow"})
        return response

    @app.errorhandler(Exception)
    async def unexpected_error(error: Exception) -> Response:
        log.error("%s %a failed", request.method, request.path, exc_info=error)
        return await filmstrip_error(InternalError("internal error; see the server's log"))


def _add_docs(app: Quart, settings: Settings) -> None:
    security_schemes: dict[str, Any] = {
        "key": HttpSecurityScheme(scheme="bearer"),
        SESSION_SCHEME: APIKeySecurityScheme(in_="cookie", name=COOKIE),
    }
    schema = QuartSchema(
        openapi_path=None,  # quart-schema would generate the document for every request
        info=Info(title="Filmstrip", version=API_VERSION, description=filmstrip.__doc__),
        servers=[Server(url=".")],  # relative to the document, so that it works under a path prefix
        security_schemes=security_schemes if settings.api_keys else None,
        security=[{"key": []}] if settings.api_keys else None,
    )
    schema.openapi_provider_class = DocumentProvider
    schema.init_app(app)
    add_docs(app, schema, "Filmstrip")
