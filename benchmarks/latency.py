"""How soon events and cancels arrive, and how long the frontend's event loop is blocked under load."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import loop_sampler, wire
from benchmarks.report import Options, Row, median, percentile
from benchmarks.servers import MeasuredFrontend, Transport, frontends
from benchmarks.wire import Arrival
from tests.support.server import Process

_MAX_DELAY_MS = 100.0
_HEIGHT, _WIDTH, _CHUNK = 320, 576, 12
_SLOW_MODEL = "optical-flow"  # some tenths of a second a chunk: time enough to be cancelled within one


def measure_latency(options: Options) -> list[Row]:
    """All transports in turns."""
    video = wire.write_noise(options.folder / "video", _CHUNK * _HEIGHT * _WIDTH * 3)
    found: dict[Transport, _Latency] = {}
    with frontends(options.folder / "latency", *Transport, sampled=True) as servers:
        inputs = {
            transport: wire.upload(server.url, video, _CHUNK, _HEIGHT, _WIDTH) for transport, server in servers.items()
        }
        for _ in range(options.rounds):
            for transport, server in servers.items():
                latency = found.setdefault(transport, _Latency(server, inputs[transport]))
                latency.events(4 if options.quick else 20)
                latency.cancel()
    video.unlink()
    return [row for transport, latency in found.items() for row in latency.rows(transport)]


class _Latency:
    """What was measured of one server."""

    def __init__(self, server: MeasuredFrontend, input_path: str) -> None:
        self._server = server
        self._input_path = input_path
        self._first_ms: list[float] = []
        self._later_ms: list[float] = []
        self._post_ms: list[float] = []
        self._cancel_ms: list[float] = []
        self._chunk_ms: list[float] = []
        self._chunks_after: list[int] = []

    def events(self, num_chunks: int) -> None:
        """A generation of quick chunks: how long after Triton's answer does the event of it come?"""
        began = time.monotonic()
        *progress, last = self._generate("passthrough", num_chunks)
        assert self._server.samples is not None
        ends = loop_sampler.answers(self._server.samples, began, last.at)
        delays = [1000 * (event.at - end) for event, end in zip(progress, ends, strict=True)]
        self._first_ms.append(delays[0])
        self._later_ms += delays[1:]
        self._post_ms.append(1000 * (progress[0].at - began))
        self._server.forget(str(last.data["output_path"]))

    def cancel(self) -> None:
        """A generation of slow chunks, cancelled somewhere within its third."""
        began = time.monotonic()
        sent: list[tuple[float, float]] = []
        progress: list[Arrival] = []
        for event in self._generate(_SLOW_MODEL, 8):
            if event.name != "progress":
                break
            progress.append(event)
            if len(progress) == 2:
                delay_s = 0.9 * random.random() * event.data["latency"]  # noqa: S311 - any moment will do
                timer = threading.Timer(delay_s, lambda: sent.append(wire.cancel(self._server.url)))
                timer.start()
        timer.join()
        if event.name != "cancelled":
            raise RuntimeError(f"the generation was to be cancelled and ended with {event}")
        left, answered = sent[0]
        self._cancel_ms.append(1000 * (event.at - left))
        self._chunk_ms.append(1000 * progress[1].data["latency"])
        assert self._server.samples is not None
        # By the server's own clock: an event may have been on its way to us when the cancel was answered.
        ends = loop_sampler.answers(self._server.samples, began, event.at)
        self._chunks_after.append(sum(end > answered for end in ends))
        self._server.forget(str(event.data["output_path"]))

    def _generate(self, model: str, num_chunks: int) -> Iterator[Arrival]:
        num_frames = num_chunks * _CHUNK
        return wire.generate(self._server.url, pipeline_id=model, input_path=self._input_path, num_frames=num_frames)

    def rows(self, transport: Transport) -> list[Row]:
        """The lines of the table."""
        first_ms, chunk_ms = max(self._first_ms), median(self._chunk_ms)
        return [
            Row(
                f"first event after its chunk's end, {transport}",
                f"{median(self._first_ms):.1f} ms, at most {first_ms:.1f} ms",
                f"later events {median(self._later_ms):.1f} ms, p99 {percentile(self._later_ms, 0.99):.1f} ms",
                target=f"<= {_MAX_DELAY_MS:.0f} ms",
                holds=first_ms <= _MAX_DELAY_MS,
            ),
            Row(f"first event after the POST, {transport}", f"{median(self._post_ms):.0f} ms"),
            Row(
                f"end of the stream after a cancel, {transport}",
                f"{median(self._cancel_ms):.0f} ms, at most {max(self._cancel_ms):.0f} ms",
                f"a chunk of {_SLOW_MODEL} {chunk_ms:.0f} ms",
                f"{median(self._cancel_ms) / chunk_ms:.2f}",
                "no chunk after the one under way",
                max(self._chunks_after) <= 1,
            ),
        ]


_MB = 10**6
_MAX_STALL_MS = 20.0
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

    def __init__(self, server: MeasuredFrontend, small: _Video, large: _Video) -> None:
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
    """Delays of the frontend's event loop, and of an idle one measured at the same time."""

    own: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)


def measure_stalls(options: Options) -> list[Row]:
    """Each load on each transport, all of them in turns."""
    idle_path = options.folder / "idle.samples"
    idle = Process(options.folder / "idle.log", "benchmarks.loop_sampler", str(idle_path), "--idle")
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


def _sample(load: Callable[[], None], server: MeasuredFrontend, idle_path: Path, waits: _Waits) -> None:
    assert server.samples is not None
    begin = time.monotonic()
    load()
    end = time.monotonic() + _SETTLE_S / 2
    time.sleep(_SETTLE_S)
    waits.own += loop_sampler.waits(server.samples, begin, end)
    waits.idle += loop_sampler.waits(idle_path, begin, end)


def _row(load: str, transport: Transport, waits: _Waits) -> Row:
    own_ms, idle_ms = (1000 * percentile(values, 0.99) for values in (waits.own, waits.idle))
    return Row(
        f"loop's stall during {load}, {transport}",
        f"p99 {own_ms:.1f} ms, longest {1000 * max(waits.own):.1f} ms",
        f"an idle loop p99 {idle_ms:.1f} ms, longest {1000 * max(waits.idle):.1f} ms",
        target=f"p99 <= {_MAX_STALL_MS:.0f} ms",
        holds=own_ms <= _MAX_STALL_MS,
    )
