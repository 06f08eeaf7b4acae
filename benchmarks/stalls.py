"""How long the frontend's event loop serves nobody, while it works."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import stalled, wire
from benchmarks.options import Options
from benchmarks.report import Row, percentile
from benchmarks.servers import Frontend, Process, Transport, frontends

_MB = 10**6
_MOST_MS = 20.0
_SETTLE_S = 0.2
_IDLE_S = 1.0
_BROKEN = 5


@dataclass(frozen=True)
class _Video:
    """A file of noise and its shape."""

    path: Path
    frames: int
    height: int
    width: int

    @classmethod
    def make(cls, path: Path, num_bytes: int, height: int, width: int) -> "_Video":
        frames = num_bytes // (height * width * 3)
        return cls(wire.write_noise(path, frames * height * width * 3), frames, height, width)


class _Loads:
    """What keeps a frontend busy; each in turn."""

    def __init__(self, server: Frontend, small: _Video, large: _Video) -> None:
        self._server = server
        self._small = small
        self._large = large
        self._stored: list[str] = []

    def all(self) -> dict[str, Callable[[], None]]:
        """Loads by name."""
        return {
            "nothing": lambda: time.sleep(_IDLE_S),
            "an upload": lambda: self._upload(self._small),
            "two uploads at once": self._two_uploads,
            "a generation of 320 x 576": lambda: self._generate(self._small),
            "a generation of 720 x 1024": lambda: self._generate(self._large),
            "a download": self._download,
            "a generation and an upload": self._both,
            f"an upload broken off after {_BROKEN} x {self._small.path.stat().st_size // _MB} MB": self._broken,
        }

    def forget(self) -> None:
        """Remove what the server has stored."""
        self._server.forget(*self._stored)

    def _upload(self, video: _Video) -> None:
        name = wire.upload(self._server.url, video.path, video.frames, video.height, video.width)
        self._stored.append(name)

    def _two_uploads(self) -> None:
        other = threading.Thread(target=self._upload, args=(self._small,))
        other.start()
        self._upload(self._small)
        other.join()

    def _generate(self, video: _Video) -> None:
        self._upload(video)
        fields = {"input_path": self._stored[-1], "num_frames": 2 * video.frames}
        *_, last = wire.generate(self._server.url, pipeline_id="passthrough", **fields)
        self._stored.append(last.data["output_path"])

    def _download(self) -> None:
        wire.receive_file(self._server.url, f"/api/v1/generate/download?path={self._stored[-1]}")

    def _broken(self) -> None:
        wire.break_upload(self._server.url, self._small.path, _BROKEN)

    def _both(self) -> None:
        other = threading.Thread(target=self._upload, args=(self._large,))
        other.start()
        self._generate(self._small)
        other.join()


@dataclass
class _Waits:
    """Waits in the frontend's loop, and in one that idles beside it at the same time."""

    own: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)


def measure(options: Options) -> list[Row]:
    """Each load on each transport, all of them in turns."""
    idle_path = options.folder / "idle.samples"
    idle = Process(options.folder / "idle.log", "benchmarks.stalled", str(idle_path), "--idle")
    size = (20 if options.quick else 100) * _MB
    small = _Video.make(options.folder / "small", size, 320, 576)
    large = _Video.make(options.folder / "large", size, 720, 1024)
    found: dict[tuple[str, Transport], _Waits] = {}
    try:
        with frontends(options.folder / "stalls", *Transport, sampled=True) as servers:
            for _ in range(options.rounds):
                for transport, server in servers.items():
                    loads = _Loads(server, small, large)
                    for name, load in loads.all().items():
                        waits = found.setdefault((name, transport), _Waits())
                        _sample(load, server, idle_path, waits)
                    loads.forget()
    finally:
        idle.stop()
    small.path.unlink()
    large.path.unlink()
    return [_row(name, transport, waits) for (name, transport), waits in sorted(found.items())]


def _sample(load: Callable[[], None], server: Frontend, idle_path: Path, waits: _Waits) -> None:
    assert server.samples is not None
    begin = time.monotonic()
    load()
    end = time.monotonic() + _SETTLE_S / 2
    time.sleep(_SETTLE_S)
    waits.own += stalled.waits(server.samples, begin, end)
    waits.idle += stalled.waits(idle_path, begin, end)


def _row(load: str, transport: Transport, waits: _Waits) -> Row:
    own_ms, idle_ms = (1000 * percentile(values, 0.99) for values in (waits.own, waits.idle))
    return Row(
        f"loop's stall during {load}, {transport}",
        f"p99 {own_ms:.1f} ms, longest {1000 * max(waits.own):.1f} ms",
        f"an idle loop p99 {idle_ms:.1f} ms, longest {1000 * max(waits.idle):.1f} ms",
        target=f"p99 <= {_MOST_MS:.0f} ms",
        holds=own_ms <= _MOST_MS,
    )
