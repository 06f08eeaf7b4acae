"""A real HTTP server that answers what a test says: as a proxy does whose server is away, say."""

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

NGINX_PAGE = (
    "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
    "<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n"
)


@dataclass(frozen=True)
class Reply:
    """One answer; `at_once` gives it before the body was read, as nginx refuses one that is too large."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    at_once: bool = False


def nginx(status: int, title: str, **headers: str) -> Reply:
    """An error page of nginx."""
    body = NGINX_PAGE.format(title=f"{status} {title}").encode()
    return Reply(
        status, body, {"Server": "nginx/1.22.1", "Content-Type": "text/html", **headers}, at_once=status == 413
    )


@contextmanager
def answering(*replies: Reply, certificate: Path | None = None, **by_path: Reply) -> Iterator[tuple[str, list[str]]]:
    """A server that gives each reply once, in turn, and the last one for ever; its URL and the requests it got.

    Args:
        replies: in turn.
        certificate: a PEM file with its key: the server speaks TLS.
        by_path: for requests whose path ends in this word, before the others.
    """

    class Handler(BaseHTTPRequestHandler):
        left: ClassVar[list[Reply]] = list(replies)

        def handle_one_request(self) -> None:
            with suppress(ConnectionError):  # a client that has read enough may leave
                super().handle_one_request()

        def answer(self) -> None:
            got.append(f"{self.command} {self.path}")
            word = self.path.partition("?")[0].rpartition("/")[2].replace("-", "_")
            reply = by_path.get(word)
            if reply is None:
                reply = self.left[0] if len(self.left) == 1 else self.left.pop(0)
            if not reply.at_once:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.wfile.write(f"HTTP/1.1 {reply.status} Whatever\r\n".encode())
            for name, value in {**reply.headers, "Content-Length": len(reply.body), "Connection": "close"}.items():
                self.wfile.write(f"{name}: {value}\r\n".encode())
            self.wfile.write(b"\r\n" + reply.body)
            self.wfile.flush()
            self.close_connection = True
            if reply.at_once:  # nginx reads on for a while, so that the client gets to see the answer
                self.connection.shutdown(socket.SHUT_WR)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))

        do_GET = do_POST = answer  # noqa: N815 - the standard library's names

        def log_message(self, *_: Any) -> None:
            pass

    got: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()
            thread.join()
