"""What previews of longlive-small cost: the time of a chunk with and without one, and the CPU time of one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks import longlive, wire
from benchmarks.report import Options, Ratio, Row, median
from benchmarks.servers import MeasuredFrontend, Transport, cpu_s_of
from benchmarks.wire import Arrival
from tests.support.processes import worker_processes

_CHUNKS, _QUICK_CHUNKS = 30, 4
_MAX_SHARE = 0.02


@dataclass
class _Series:
    """Milliseconds for a chunk, one of each round: from event to event, and CPU time of the frontend and its worker."""

    wall: list[float] = field(default_factory=list)
    frontend: list[float] = field(default_factory=list)
    worker: list[float] = field(default_factory=list)
    num_previews: int = 0
    num_images: int = 0


def measure_previews(options: Options) -> list[Row]:
    """Generations with a preview after each chunk, and the same ones without, in turns."""
    return measure_model(options, longlive.export(options.folder))


def measure_model(options: Options, model: longlive.Model) -> list[Row]:
    """See `measure_previews`."""
    settings = {"model_repository": model.repository}
    server = MeasuredFrontend(options.folder / "previews", Transport.LANES, settings=settings)
    try:
        num_chunks = _QUICK_CHUNKS if options.quick else _CHUNKS
        for number in range(options.rounds + 1):
            if number < 2:  # the first round warms everything up
                plain, previewed = _Series(), _Series()
            _measure(server, model, num_chunks, plain, {})
            _measure(server, model, num_chunks, previewed, {"previews": {"every": 1}})
    finally:
        server.stop()
    return _rows(model, plain, previewed)


def _measure(
    server: MeasuredFrontend, model: longlive.Model, num_chunks: int, series: _Series, fields: dict[str, object]
) -> None:
    moments, cpu = [], []
    for event in _events(server, model, num_chunks, fields):
        if event.name == "progress":
            moments.append(event.at)
            if event.data["chunk"] in (1, num_chunks):
                workers = worker_processes("preview_worker", server.pid)
                cpu.append((cpu_s_of(server.pid), sum(cpu_s_of(worker.pid) for worker in workers)))
        elif event.name == "preview":
            series.num_previews += 1
            series.num_images += event.data["image"] is not None
    (frontend, worker), (frontend_end, worker_end) = cpu
    series.wall.append(1000 * median([after - before for before, after in pairwise(moments)]))
    series.frontend.append(1000 * (frontend_end - frontend) / (num_chunks - 1))
    series.worker.append(1000 * (worker_end - worker) / (num_chunks - 1))


def _events(
    server: MeasuredFrontend, model: longlive.Model, num_chunks: int, fields: dict[str, object]
) -> Iterator[Arrival]:
    height, width = model.sides
    for event in wire.generate_at(
        server.url,
        "/api/v1/generations",
        pipeline_id=model.id,
        prompt=longlive.PROMPT,
        height=height,
        width=width,
        num_frames=longlive.FIRST_CHUNK + (num_chunks - 1) * longlive.CHUNK,
        **fields,
    ):
        yield event
    server.forget(str(event.data["output_path"]))


def _rows(model: longlive.Model, plain: _Series, previewed: _Series) -> list[Row]:
    chunk = f"chunk of {longlive.CHUNK} x {model.sides[0]} x {model.sides[1]}"
    chunk_ms = median(plain.wall)
    wall = Ratio.of(previewed.wall, plain.wall)
    more = [own - other for own, other in zip(previewed.frontend, plain.frontend, strict=True)]
    cpu_ms = median([frontend + worker for frontend, worker in zip(more, previewed.worker, strict=True)])
    share = cpu_ms / chunk_ms
    return [
        Row(
            f"{chunk}, with a preview, from event to event",
            f"{median(previewed.wall):.1f} ms",
            f"without {chunk_ms:.1f} ms",
            str(wall),
            f"<= {1 + _MAX_SHARE:g}",
            wall.median <= 1 + _MAX_SHARE,
        ),
        Row(
            "CPU time of a preview, in the frontend and in its process",
            f"{cpu_ms:.2f} ms",
            f"in its process {median(previewed.worker):.2f} ms",
            f"{share:.1%} of a chunk",
            f"<= {_MAX_SHARE:.0%}",
            share <= _MAX_SHARE,
        ),
        Row("previews that were made in time", f"{previewed.num_images} of {previewed.num_previews}"),
    ]
