"""A TCP proxy that cuts event streams, as a network that fails again and again does."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_EVENT = re.compile(rb"event: (?:progress|complete)\ndata: [^\n]*\n\n")
_PIECE_BYTES = 2**16


@dataclass
class CuttingProxy:
    """Forwards connections to a server, and closes some of them in the middle of a stream.

    Attributes:
        url: of the proxy.
        num_left: how many streams it still cuts, each behind its first numbered event.
        num_cut: how many it has cut.
    """

    url: str
    num_left: int
    num_cut: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def may_cut(self) -> bool:
        """Whether to cut one more stream."""
        with self._lock:
            if self.num_left == 0:
                return False
            self.num_left -= 1
            self.num_cut += 1
            return True


@contextlib.contextmanager
def cutting_proxy(server_url: str, num_cuts: int) -> Iterator[CuttingProxy]:
    """Run a proxy that cuts so many streams, and forwards everything else."""
    parts = urlsplit(server_url)
    assert parts.hostname is not None
    assert parts.port is not None
    target = parts.hostname, parts.port
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = CuttingProxy(f"http://127.0.0.1:{listener.getsockname()[1]}", num_cuts)

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=_serve, args=(proxy, connection, target), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            thread.join()


def _serve(proxy: CuttingProxy, client: socket.socket, target: tuple[str, int]) -> None:
    with client, socket.create_connection(target) as server:
        sending = threading.Thread(target=_forward, args=(client, server), daemon=True)
        sending.start()
        with contextlib.suppress(OSError):
            _forward_until_cut(proxy, server, client)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        sending.join()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _forward_until_cut(proxy: CuttingProxy, source: socket.socket, target: socket.socket) -> None:
    """Forward a response up to its first numbered event, and the start of what follows it."""
    seen = b""
    while data := source.recv(_PIECE_BYTES):
        before = len(seen)
        seen += data
        event = _EVENT.search(seen)
        if event is not None and proxy.may_cut():
            target.sendall(seen[before : event.end() + 12])
            return
        target.sendall(data)
        if event is not None:  # no more cuts
            _forward(source, target)
            return
