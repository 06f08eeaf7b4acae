"""Memory of the frontend for a large blob and a long generation, and the cost of a chunk from short to long."""

import time

from benchmarks import wire
from benchmarks.options import Options
from benchmarks.report import GIB, MIB, Ratio, Row, median
from benchmarks.servers import Frontend, Memory, Transport, frontends

_GROWTH_MIB = 100
_HEIGHT, _WIDTH, _CHUNK = 320, 576, 12
_SMALL = (96, 160)
_FLAT = 1.2
_LENGTHS = (12, 120, 1200, 9600)


def measure(options: Options) -> list[Row]:
    """A frontend of its own for each question: what one has grown by hides what the next would."""
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
    video = wire.write_noise(options.folder / "small-frames", _CHUNK * height * width * 3)
    chunk_ms: dict[int, list[float]] = {length: [] for length in lengths}
    begins, ends = [], []
    with frontends(options.folder / "lengths", Transport.LANES) as servers:
        server = servers[Transport.LANES]
        input_path = wire.upload(server.url, video, _CHUNK, height, width)
        for _ in range(options.rounds):
            for length in lengths:
                wire.warm_memory(options.folder, length * height * width * 3)
                arrivals, whole_s = _generate(server, input_path, length)
                chunk_ms[length].append(1000 * whole_s / (length // _CHUNK))
            part = len(arrivals) // 4
            begins.append(arrivals[part] - arrivals[0])
            ends.append(arrivals[-1] - arrivals[-1 - part])
    rows = []
    for length in lengths[1:]:
        ratio = Ratio.of(chunk_ms[length], chunk_ms[lengths[1]])
        rows.append(
            Row(
                f"chunk of {_CHUNK} x {height} x {width} in a generation of {length} frames",
                f"{median(chunk_ms[length]):.2f} ms",
                f"of {lengths[1]} frames {median(chunk_ms[lengths[1]]):.2f} ms",
                str(ratio),
                f"<= {_FLAT}" if length != lengths[1] else "",
                ratio.median <= _FLAT if length != lengths[1] else None,
            )
        )
    rows.append(Row(f"generation of {_CHUNK} frames, all of it", f"{median(chunk_ms[_CHUNK]):.1f} ms"))
    ratio = Ratio.of(ends, begins)
    what = f"last quarter of {lengths[-1]} frames"
    seconds = f"{median(ends):.2f} s", f"first quarter {median(begins):.2f} s"
    rows.append(Row(what, *seconds, str(ratio), f"<= {_FLAT}", ratio.median <= _FLAT))
    return rows


def _generate(server: Frontend, input_path: str, num_frames: int) -> tuple[list[float], float]:
    """Arrivals of the progress events and the whole time."""
    began = time.monotonic()
    *progress, last = wire.generate(server.url, pipeline_id="passthrough", input_path=input_path, num_frames=num_frames)
    server.forget(str(last.data["output_path"]))
    return [event.at for event in progress], last.at - began
