"""What a generation as a resource costs more than the same one by /generate."""

import time
from dataclasses import dataclass, field

from benchmarks import wire
from benchmarks.report import Options, Row, median
from benchmarks.servers import MeasuredFrontend, Transport, cpu_s_of, frontends

_RESOURCE, _CLASSIC = "/api/v1/generations", "/api/v1/generate"
_MAX_REQUEST_MS = 2.0
_MAX_EVENT_MS = 0.2
_MANY_CHUNKS = 100
_CHUNK = 9


@dataclass
class _Series:
    """Milliseconds of whole generations: by the clock and of the server's CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measure_resource(options: Options) -> list[Row]:
    """Generations of one chunk and of many, by each endpoint in turns."""
    found = {(path, num): _Series() for path in (_RESOURCE, _CLASSIC) for num in (1, _MANY_CHUNKS)}
    with frontends(options.folder / "resource", Transport.LANES) as servers:
        server = servers[Transport.LANES]
        for path in (_RESOURCE, _CLASSIC):
            _generate(server, path, 1, _Series())
        for _ in range(options.rounds):
            for num, times in ((1, 4 if options.quick else 20), (_MANY_CHUNKS, 1 if options.quick else 4)):
                for _ in range(times):
                    for path in (_RESOURCE, _CLASSIC):
                        _generate(server, path, num, found[path, num])
    return [row for kind in ("wall", "cpu") for row in _rows(kind, found)]


def _generate(server: MeasuredFrontend, path: str, num_chunks: int, series: _Series) -> None:
    specs = [{"chunk": number, "reset_cache": True} for number in range(num_chunks)]
    cpu_s, began = cpu_s_of(server.pid), time.monotonic()
    fields = {"pipeline_id": "probe", "num_frames": num_chunks * _CHUNK, "chunk_specs": specs}
    *_, last = wire.generate_at(server.url, path, **fields)
    series.wall.append(1000 * (last.at - began))
    series.cpu.append(1000 * (cpu_s_of(server.pid) - cpu_s))
    server.forget(str(last.data["output_path"]))


def _rows(kind: str, found: dict[tuple[str, int], _Series]) -> list[Row]:
    def ms(path: str, num: int) -> float:
        return median(getattr(found[path, num], kind))

    name = "time" if kind == "wall" else "CPU time of the frontend"
    one, classic_one = ms(_RESOURCE, 1), ms(_CLASSIC, 1)
    event, classic_event = (
        (ms(path, _MANY_CHUNKS) - ms(path, 1)) / (_MANY_CHUNKS - 1) for path in (_RESOURCE, _CLASSIC)
    )
    return [
        Row(
            f"{name} of a generation of one chunk",
            f"{one:.2f} ms",
            f"by /generate {classic_one:.2f} ms",
            f"{one - classic_one:+.2f} ms",
            f"<= {_MAX_REQUEST_MS:g} ms more",
            one - classic_one <= _MAX_REQUEST_MS,
        ),
        Row(
            f"{name} of another chunk with its event",
            f"{event:.3f} ms",
            f"by /generate {classic_event:.3f} ms",
            f"{event - classic_event:+.3f} ms",
            f"<= {_MAX_EVENT_MS:g} ms more",
            event - classic_event <= _MAX_EVENT_MS,
        ),
    ]
