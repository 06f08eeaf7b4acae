"""The web page: the files of the folder `page`, served as they are.

Nobody needs a key for them, and no file contains anything of a client. All links are relative, so that the page works
under a path prefix.
"""

from pathlib import Path

from quart import Quart, Response, request
from quart_schema import hide
from werkzeug.exceptions import NotFound

from .openapi import Rendered
from .settings import Settings
from .tasks import in_thread

_FOLDER = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_KEYS = b'data-keys="none"'


def add_page(app: Quart, settings: Settings) -> None:
    """Serve the page at /, and its other files below /page/."""
    names = {path.relative_to(_FOLDER).as_posix() for path in _FOLDER.rglob("*") if path.suffix in _TYPES}
    rendered: dict[str, Rendered] = {}

    def read(name: str) -> Rendered:
        content = (_FOLDER / name).read_bytes()
        if name == "index.html" and settings.api_keys:
            content = content.replace(_KEYS, b'data-keys="required"')
        return Rendered.of(_TYPES[Path(name).suffix], content)

    async def answer(name: str) -> Response:
        if name not in names:
            raise NotFound
        if name not in rendered:
            rendered[name] = await in_thread(read, name)
        response = rendered[name].response(request)
        response.headers.update(_HEADERS)
        return response

    @app.get("/")
    @hide
    async def home() -> Response:
        return await answer("index.html")

    @app.get("/page/<path:name>")
    @hide
    async def page_file(name: str) -> Response:
        return await answer(name)

    @app.get("/favicon.ico")
    @hide
    async def favicon() -> Response:
        return await answer("favicon.svg")
