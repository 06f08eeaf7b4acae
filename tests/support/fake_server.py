"""An HTTP server with scripted responses, such as those of a proxy whose server is down."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from filmstrip.errors import NotFound

NGINX_PAGE = (
    "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
    "<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n"
)


NO_GENERATIONS = json.dumps(NotFound("there is nothing at this address").body()).encode()


@dataclass(frozen=True)
class Reply:
    """One response; `before_body` sends it before the request body is read, as nginx refuses one that is too large."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    before_body: bool = False


def nginx_error(status: int, title: str, **headers: str) -> Reply:
    """An error page of nginx."""
    body = NGINX_PAGE.format(title=f"{status} {title}").encode()
    return Reply(
        status, body, {"Server": "nginx/1.22.1", "Content-Type": "text/html", **headers}, before_body=status == 413
    )


@contextmanager
def fake_server(*replies: Reply, certificate: Path | None = None, **by_path: Reply) -> Iterator[tuple[str, list[str]]]:
    """Run an older server that sends each reply once, then repeats the last one; its URL and the requests it received.

    Args:
        replies: the replies in order.
        certificate: a PEM file with a certificate and its key, for TLS.
        by_path: replies for requests whose path ends in this name; they take precedence.
    """

    class Handler(BaseHTTPRequestHandler):
        remaining: ClassVar[list[Reply]] = list(replies)

        def handle_one_request(self) -> None:
            with suppress(ConnectionError):  # the client may close once it has read enough
                super().handle_one_request()

        def respond(self) -> None:
            received.append(f"{self.command} {self.path}")
            word = self.path.partition("?")[0].rpartition("/")[2].replace("-", "_")
            reply = by_path.get(word)
            if reply is None:
                reply = self.remaining[0] if len(self.remaining) == 1 else self.remaining.pop(0)
            if not reply.before_body:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.wfile.write(f"HTTP/1.1 {reply.status} Whatever\r\n".encode())
            for name, value in {**reply.headers, "Content-Length": len(reply.body), "Connection": "close"}.items():
                self.wfile.write(f"{name}: {value}\r\n".encode())
            self.wfile.write(b"\r\n" + reply.body)
            self.wfile.flush()
            self.close_connection = True
            if reply.before_body:  # nginx reads on for a while, so that the client sees the response
                self.connection.shutdown(socket.SHUT_WR)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def refuse(self) -> None:
            """As an older server, which has no generations with an id."""
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(404)
            self.send_header("Content-Length", str(len(NO_GENERATIONS)))
            self.end_headers()
            self.wfile.write(NO_GENERATIONS)

        do_GET = do_POST = respond  # noqa: N815 - the standard library's names
        do_PUT = refuse  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    received: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()
