"""From a chunk's end to its event, and from a cancel to the end of the stream."""

import random
import threading
import time
from collections.abc import Iterator

from benchmarks import stalled, wire
from benchmarks.options import Options
from benchmarks.report import Row, median, percentile
from benchmarks.servers import Frontend, Transport, frontends
from benchmarks.wire import Arrival

_MOST_MS = 100.0
_HEIGHT, _WIDTH, _CHUNK = 320, 576, 12
_SLOW_MODEL = "optical-flow"  # some tenths of a second a chunk: time enough to be cancelled within one


def measure(options: Options) -> list[Row]:
    """All transports in turns."""
    video = wire.write_noise(options.folder / "video", _CHUNK * _HEIGHT * _WIDTH * 3)
    found: dict[Transport, _Moments] = {}
    with frontends(options.folder / "moments", *Transport, sampled=True) as servers:
        inputs = {
            transport: wire.upload(server.url, video, _CHUNK, _HEIGHT, _WIDTH) for transport, server in servers.items()
        }
        for _ in range(options.rounds):
            for transport, server in servers.items():
                moments = found.setdefault(transport, _Moments(server, inputs[transport]))
                moments.events(4 if options.quick else 20)
                moments.cancel()
    video.unlink()
    return [row for transport, moments in found.items() for row in moments.rows(transport)]


class _Moments:
    """What was measured of one server."""

    def __init__(self, server: Frontend, input_path: str) -> None:
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
        ends = stalled.answers(self._server.samples, began, last.at)
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
        ends = stalled.answers(self._server.samples, began, event.at)
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
                target=f"<= {_MOST_MS:.0f} ms",
                holds=first_ms <= _MOST_MS,
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
