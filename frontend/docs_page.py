"""The OpenAPI document and its page: rendered once, then kept as bytes, with links that hold under any path prefix.

A proxy may serve the API below a path of its own. All links are therefore relative, also those of redirects, and
nothing that a client sends is written into an answer.
"""

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import cast

from quart import Quart, Request, Response, request
from quart_schema import QuartSchema, hide

from .bodies import JSON
from .download import names_entity_tag
from .tasks import in_thread

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


@dataclass(frozen=True)
class Rendered:
    """Something that is the same for everybody, with its compressed form.

    Attributes:
        content_type: of what it is.
        plain: its bytes.
        compressed: the same by gzip.
        tag: of the plain bytes; the compressed ones have one of their own.
    """

    content_type: str
    plain: bytes
    compressed: bytes
    tag: str

    @classmethod
    def of(cls, content_type: str, plain: bytes) -> "Rendered":
        """Compress it; call it in a thread where it is large."""
        return cls(content_type, plain, gzip.compress(plain, mtime=0), hashlib.sha256(plain).hexdigest()[:32])

    def answer(self, request: Request) -> Response:
        """It, compressed where the client takes that, or that the client has it already."""
        is_compressed = request.accept_encodings.quality("gzip") > 0
        compressed_tag = f"{self.tag}-gzip"
        has_it = any(
            names_entity_tag(request.headers, "If-None-Match", tag, weak=True) for tag in (self.tag, compressed_tag)
        )
        response = Response(b"" if has_it else self.compressed if is_compressed else self.plain)
        response.headers["Content-Type"] = self.content_type
        if is_compressed:
            response.headers["Content-Encoding"] = "gzip"
        response.headers["ETag"] = f'"{compressed_tag if is_compressed else self.tag}"'
        response.headers.update({"Cache-Control": "no-cache", "Vary": "Accept-Encoding"})
        if has_it:
            response.status_code = 304
            for name in ("Content-Type", "Content-Length", "Content-Encoding"):
                response.headers.pop(name, None)
        return response


def add_docs(app: Quart, schema: QuartSchema, title: str) -> None:
    """Give an app its document at /openapi.json, the page at /docs and what the page needs; / leads there."""
    rendered: dict[str, Rendered] = {}
    assets = cast("Path", files("flask_swagger_ui")) / "dist"

    async def answer(name: str, content_type: str, read: Callable[[], bytes]) -> Response:
        if name not in rendered:
            rendered[name] = await in_thread(Rendered.of, content_type, read())
        return rendered[name].answer(request)

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
        return _redirect("../docs")

    @app.get("/")
    @hide
    async def home() -> Response:
        return _redirect("docs")


def _redirect(where: str) -> Response:
    return Response(b"", 302, {"Location": where})
