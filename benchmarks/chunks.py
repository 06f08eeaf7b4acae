"""Milliseconds for a chunk through the whole stack, against calling the same model directly."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from benchmarks import direct, wire
from benchmarks.options import Options
from benchmarks.report import Ratio, Row, median
from benchmarks.servers import Frontend, Transport, frontends

CHUNK = 12  # frames
_MODEL = "passthrough"
_MOST = 1.2
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


def measure(options: Options) -> list[Row]:
    """Every size, with the three ways through the frontend and the three without it in turns."""
    with frontends(options.folder / "chunks", *Transport) as servers:
        rows = []
        for height, width, num_chunks in _SIZES:
            num = max(4, num_chunks // 10) if options.quick else num_chunks
            rows += _of_size(options, servers, height, width, num)
        return rows


def _of_size(
    options: Options, servers: dict[Transport, Frontend], height: int, width: int, num_chunks: int
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


def _generate(server: Frontend, input_path: str, num_chunks: int, series: _Series) -> None:
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
        beside = calls[way]
        for name, values in (("whole generation", series.total_ms), ("from event to event", series.steady_ms)):
            ratio = Ratio.of(values, beside)
            target = f"<= {_MOST}" if transport is not Transport.GRPC else ""
            rows.append(
                Row(
                    f"chunk of {size}, {transport}, {name}",
                    f"{median(values):.1f} ms",
                    f"direct call, {way} {median(beside):.1f} ms",
                    str(ratio),
                    target,
                    ratio.median <= _MOST if target else None,
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
