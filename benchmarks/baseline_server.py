"""The least that an asyncio server does with a body: `python -m benchmarks.baseline_server FOLDER`.

POST writes the body to `FOLDER/sink`; GET answers with `FOLDER/source`. One uvloop loop and no framework, no
threads, no checks: what a server in this language could reach on this machine. It prints its port.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import cast

import uvloop

_PIECE_BYTES = 2**20
_END_OF_HEAD = b"\r\n\r\n"


class BaselineServer(asyncio.Protocol):
    """One connection, one request."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._head = b""
        self._sink: int | None = None
        self._left = 0
        self._resumed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Write what belongs to the body."""
        if self._sink is None:
            self._head += data
            if _END_OF_HEAD not in self._head:
                return
            head, _, data = self._head.partition(_END_OF_HEAD)
            if head.startswith(b"GET"):
                self._source = asyncio.ensure_future(self._send())
                return
            self._left = int(head.lower().partition(b"content-length:")[2].split()[0])
            self._sink = os.open(self._folder / "sink", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        view = memoryview(data)
        self._left -= len(view)
        while view:
            view = view[os.write(self._sink, view) :]
        if self._left == 0:
            os.close(self._sink)
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async def _send(self) -> None:
        fd = os.open(self._folder / "source", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            self._transport.write(f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n".encode())
            self._resumed.set()
            while piece := os.read(fd, _PIECE_BYTES):
                self._transport.write(piece)
                await self._resumed.wait()
        finally:
            os.close(fd)

    def pause_writing(self) -> None:
        """See asyncio."""
        self._resumed.clear()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._resumed.set()


async def _serve(folder: Path) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: BaselineServer(folder), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(Path(sys.argv[1])))
