"""What a chunk costs: against a direct call of the model, by the length of a generation, and in memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from benchmarks import direct, wire
from benchmarks.report import GIB, MIB, Options, Ratio, Row, median
from benchmarks.servers import MeasuredFrontend, Memory, Transport, frontends

CHUNK = 12  # frames
_MODEL = "passthrough"
_MAX_RATIO = 1.2
_SIZES = ((320, 576, 60), (720, 1024, 20))  # height, width, chunks


@dataclass
class _Series:
    """Milliseconds for each chunk, round by round.

    Attributes:
        total_ms: the whole time over the number of chunks.
        steady_ms: the time between first and last event over the chunks between them.
    """

    total_ms: list[float] = field(default_factory=list)
    steady_ms: list[float] = field(default_factory=list)


def measure_chunks(options: Options) -> list[Row]:
    """Every size, with the three ways through the frontend and the three without it in turns."""
    with frontends(options.folder / "chunks", *Transport) as servers:
        rows = []
        for height, width, num_chunks in _SIZES:
            num = max(4, num_chunks // 10) if options.quick else num_chunks
            rows += _of_size(options, servers, height, width, num)
        return rows


def _of_size(
    options: Options, servers: dict[Transport, MeasuredFrontend], height: int, width: int, num_chunks: int
) -> list[Row]:
    shape = (CHUNK, height, width, 3)
    source = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = options.folder / f"chunk-{height}"
    path.write_bytes(source.tobytes())
    inputs = {name: wire.upload(server.url, path, CHUNK, height, width) for name, server in servers.items()}
    files = (path, options.folder / "direct")
    stack = {name: _Series() for name in servers}
    calls: dict[str, list[float]] = {"memory": [], "files": [], "gRPC": []}
    with direct.connected(servers[Transport.LANES].triton_url) as client:
        ways: dict[str, Callable[[int], None]] = {
            "memory": partial(direct.by_shared_memory, client, _MODEL, source),
            "files": partial(direct.by_shared_memory, client, _MODEL, source, files=files),
            "gRPC": partial(direct.by_grpc, client, _MODEL, source),
        }
        for number in range(options.rounds + 1):
            for way, call in ways.items():
                wire.warm_memory(options.folder, (num_chunks + 4) * source.nbytes)
                began = time.perf_counter()
                call(num_chunks)
                calls[way].append((time.perf_counter() - began) / num_chunks * 1000)
            for name, server in servers.items():
                wire.warm_memory(options.folder, (num_chunks + 4) * source.nbytes)
                _generate(server, inputs[name], num_chunks, stack[name])
            if number == 0:  # it warms everything up
                calls = {way: [] for way in calls}
                stack = {name: _Series() for name in servers}
    for name, server in servers.items():
        server.forget(inputs[name])
    path.unlink()
    return _rows(f"{CHUNK} x {height} x {width}", stack, calls)


def _generate(server: MeasuredFrontend, input_path: str, num_chunks: int, series: _Series) -> None:
    began = time.monotonic()
    events = list(wire.generate(server.url, pipeline_id=_MODEL, input_path=input_path, num_frames=num_chunks * CHUNK))
    *progress, last = events
    assert last.name == "complete"
    assert len(progress) == num_chunks
    series.total_ms.append((last.at - began) / num_chunks * 1000)
    series.steady_ms.append((progress[-1].at - progress[0].at) / (num_chunks - 1) * 1000)
    server.forget(str(last.data["output_path"]))


def _rows(size: str, stack: dict[Transport, _Series], calls: dict[str, list[float]]) -> list[Row]:
    rows = []
    for transport, series in stack.items():
        way = "gRPC" if transport is Transport.GRPC else "memory"
        baseline = calls[way]
        for name, values in (("whole generation", series.total_ms), ("from event to event", series.steady_ms)):
            ratio = Ratio.of(values, baseline)
            target = f"<= {_MAX_RATIO}" if transport is not Transport.GRPC else ""
            rows.append(
                Row(
                    f"chunk of {size}, {transport}, {name}",
                    f"{median(values):.1f} ms",
                    f"direct call, {way} {median(baseline):.1f} ms",
                    str(ratio),
                    target,
                    ratio.median <= _MAX_RATIO if target else None,
                )
            )
    for way, name in (("files", "direct call, from file to file"), ("gRPC", "direct call, gRPC")):
        rows.append(
            Row(
                f"chunk of {size}, {name}",
                f"{median(calls[way]):.1f} ms",
                f"direct call, memory {median(calls['memory']):.1f} ms",
                str(Ratio.of(calls[way], calls["memory"])),
            )
        )
    return rows


_GROWTH_MIB = 100
_HEIGHT, _WIDTH = 320, 576
_SMALL = (96, 160)
_FLAT = 1.2
_LENGTHS = (12, 120, 1200, 9600)


def measure_memory(options: Options) -> list[Row]:
    """Each measurement starts its own frontend: memory that one measurement has grown by would hide the next growth."""
    return [*_blob(options), *_looped(options), *_lengths(options)]


def _blob(options: Options) -> list[Row]:
    num_bytes = 2 * GIB if options.large else (64 if options.quick else 512) * MIB
    blob = wire.write_noise(options.folder / "blob", num_bytes)
    rows = []
    with frontends(options.folder / "memory-blob", Transport.LANES, Transport.UPLOADS) as servers:
        for transport, server in servers.items():
            with Memory(server.pid) as memory:
                server.forget(wire.upload_data(server.url, blob))
            where = "to disk" if transport is Transport.LANES else "to /dev/shm"
            rows.append(_growth(f"blob of {num_bytes / MIB:.0f} MiB {where}", memory))
    blob.unlink()
    return rows


def _looped(options: Options) -> list[Row]:
    num_frames = 240 if options.quick else 3000
    video = wire.write_noise(options.folder / "frame", _HEIGHT * _WIDTH * 3)
    rows = []
    with frontends(options.folder / "memory-looped", *Transport) as servers:
        for transport, server in servers.items():
            input_path = wire.upload(server.url, video, 1, _HEIGHT, _WIDTH)
            with Memory(server.pid) as memory:
                *_, last = wire.generate(
                    server.url, pipeline_id="passthrough", input_path=input_path, num_frames=num_frames
                )
            server.forget(str(last.data["output_path"]))
            rows.append(_growth(f"1 frame looped to {num_frames}, {transport}", memory))
    return rows


def _growth(what: str, memory: Memory) -> Row:
    growth_mib = memory.growth_bytes / MIB
    return Row(
        f"growth of memory: {what}",
        f"{growth_mib:.0f} MiB, {memory.own_growth_bytes / MIB:.0f} of them not shared",
        f"from {memory.before_bytes / MIB:.0f} to {memory.peak_bytes / MIB:.0f} MiB",
        target=f"<= {_GROWTH_MIB} MiB",
        holds=growth_mib <= _GROWTH_MIB,
    )


def _lengths(options: Options) -> list[Row]:
    lengths = _LENGTHS[:-1] if options.quick else _LENGTHS
    height, width = _SMALL
    video = wire.write_noise(options.folder / "small-frames", CHUNK * height * width * 3)
    chunk_ms: dict[int, list[float]] = {length: [] for length in lengths}
    begins, ends = [], []
    with frontends(options.folder / "lengths", Transport.LANES) as servers:
        server = servers[Transport.LANES]
        input_path = wire.upload(server.url, video, CHUNK, height, width)
        for _ in range(options.rounds):
            for length in lengths:
                wire.warm_memory(options.folder, length * height * width * 3)
                arrivals, whole_s = _arrivals(server, input_path, length)
                chunk_ms[length].append(1000 * whole_s / (length // CHUNK))
            part = len(arrivals) // 4
            begins.append(arrivals[part] - arrivals[0])
            ends.append(arrivals[-1] - arrivals[-1 - part])
    rows = []
    for length in lengths[1:]:
        ratio = Ratio.of(chunk_ms[length], chunk_ms[lengths[1]])
        rows.append(
            Row(
                f"chunk of {CHUNK} x {height} x {width} in a generation of {length} frames",
                f"{median(chunk_ms[length]):.2f} ms",
                f"of {lengths[1]} frames {median(chunk_ms[lengths[1]]):.2f} ms",
                str(ratio),
                f"<= {_FLAT}" if length != lengths[1] else "",
                ratio.median <= _FLAT if length != lengths[1] else None,
            )
        )
    rows.append(Row(f"generation of {CHUNK} frames, all of it", f"{median(chunk_ms[CHUNK]):.1f} ms"))
    ratio = Ratio.of(ends, begins)
    what = f"last quarter of {lengths[-1]} frames"
    seconds = f"{median(ends):.2f} s", f"first quarter {median(begins):.2f} s"
    rows.append(Row(what, *seconds, str(ratio), f"<= {_FLAT}", ratio.median <= _FLAT))
    return rows


def _arrivals(server: MeasuredFrontend, input_path: str, num_frames: int) -> tuple[list[float], float]:
    """Arrivals of the progress events and the whole time."""
    began = time.monotonic()
    *progress, last = wire.generate(server.url, pipeline_id="passthrough", input_path=input_path, num_frames=num_frames)
    server.forget(str(last.data["output_path"]))
    return [event.at for event in progress], last.at - began
