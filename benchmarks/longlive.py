"""A small LongLive through Triton: CPU time of a chunk beside PyTorch's, what is not the engines', memory."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import httpx

from benchmarks import small_longlive, wire
from benchmarks.options import Options
from benchmarks.report import MIB, Ratio, Row, median
from benchmarks.servers import ROOT, Frontend, Transport, cpu_s_of, memory_of, on_one_core
from benchmarks.small_longlive import Model
from benchmarks.wire import Arrival

_OF_EAGER = 0.95
_OUTSIDE_ENGINES = 0.05
# The frames of 50 chunks of 64 x 64 are 7 MiB, what else a chunk could leave behind is more: pixels, keys, values.
_GROWTH_MIB = 4
_FIRST_CHUNK, _CHUNK = 9, 12  # frames
_CHUNKS_PIXELS = 50_000  # of all chunks of a generation together: the small size has more of them
_PROMPT = "a red circle"


@dataclass(frozen=True)
class Took:
    """CPU time of a chunk in milliseconds, all threads together.

    Attributes:
        chunk_ms: of all of it.
        engines_ms: within the engines.
    """

    chunk_ms: float
    engines_ms: float


@dataclass(frozen=True)
class _Served:
    """A chunk through HTTP and Triton, in milliseconds.

    Attributes:
        cpu_ms: CPU time of the model's process.
        others_cpu_ms: that of Triton and the frontend.
        wall_ms: from event to event.
        stages_ms: what the model says that it took.
    """

    cpu_ms: float
    others_cpu_ms: float
    wall_ms: float
    stages_ms: float


@dataclass
class _Series:
    """What came out round by round at one size."""

    served: list[_Served] = field(default_factory=list)
    engines: list[Took] = field(default_factory=list)
    eager: list[Took] = field(default_factory=list)


def measure(options: Options) -> list[Row]:
    """Export a model of its own, and measure it."""
    return measure_model(options, small_longlive.export(options.folder))


def measure_model(options: Options, model: Model) -> list[Row]:
    """Every size of a model, through Triton and without it in turns; and the memory of a long generation."""
    with contextlib.ExitStack() as stack:
        with on_one_core():
            served = _Server(options, model)
            stack.callback(served.stop)
            engines, eager = (stack.enter_context(_InProcess(way, model)) for way in ("engines", "eager"))
        # The first of all: a process that has given much back could hide what it keeps.
        growth = served.growth(*model.sizes[0], *((4, 12) if options.quick else (10, 60)))
        found: dict[tuple[int, int], _Series] = {}
        for height, width in model.sizes:
            num_chunks = 2 if options.quick else max(2, _CHUNKS_PIXELS // (height * width))
            found[height, width] = series = _Series()
            for number in range(options.rounds + 1):
                if number == 1:  # the round before has warmed everything up
                    found[height, width] = series = _Series()
                series.served.append(served.generate(height, width, num_chunks))
                series.engines.append(engines.generate(height, width, num_chunks))
                series.eager.append(eager.generate(height, width, num_chunks))
        rows = [row for (height, width), series in found.items() for row in _rows(f"{height} x {width}", series)]
        return [*rows, growth]


class _Server:
    """A frontend with a Triton that has nothing but the model."""

    def __init__(self, options: Options, model: Model) -> None:
        settings = {"FILMSTRIP_MODEL_REPOSITORY": str(model.repository)}
        self._frontend = Frontend(options.folder / "served", Transport.LANES, own_settings=settings)
        self._model = model.id
        self._pid = self._frontend.model_pid(model.id)
        self._others = (self._frontend.triton_pid, self._frontend.pid)
        self.stop = self._frontend.stop

    def generate(self, height: int, width: int, num_chunks: int) -> _Served:
        """Make a first chunk and `num_chunks` more, which are what is measured."""
        moments = [
            (event.at, cpu_s_of(self._pid), sum(map(cpu_s_of, self._others)), self._stages_s())
            for event in self._events(height, width, num_chunks)
            if event.data["chunk"] in (1, num_chunks + 1)
        ]
        wall_ms, cpu_ms, others_ms, stages_ms = (
            1000 * (after - before) / num_chunks for before, after in zip(*moments, strict=True)
        )
        return _Served(cpu_ms, others_ms, wall_ms, stages_ms)

    def growth(self, height: int, width: int, first: int, last: int) -> Row:
        """How the model's process grows from one chunk to another within a generation."""
        sizes = [memory_of(self._pid) for _ in self._events(height, width, last)]
        (before, own_before), (after, own_after) = sizes[first - 1], sizes[last - 1]
        growth_mib = (after - before) / MIB
        return Row(
            f"growth of the model's process from chunk {first} to chunk {last} of {height} x {width}",
            f"{growth_mib:.1f} MiB, {(own_after - own_before) / MIB:.1f} of them not shared",
            f"from {before / MIB:.0f} to {after / MIB:.0f} MiB",
            target=f"<= {_GROWTH_MIB} MiB",
            holds=growth_mib <= _GROWTH_MIB,
        )

    def _events(self, height: int, width: int, num_chunks: int) -> Iterator[Arrival]:
        """The progress of a generation of a first chunk and `num_chunks` more, as it comes."""
        num_frames = _FIRST_CHUNK + num_chunks * _CHUNK
        for event in wire.generate(
            self._frontend.url,
            pipeline_id=self._model,
            prompt=_PROMPT,
            height=height,
            width=width,
            num_frames=num_frames,
        ):
            if event.name == "progress":
                yield event
        self._frontend.forget(str(event.data["output_path"]))

    def _stages_s(self) -> float:
        """Seconds of all chunks so far by the model's own clock."""
        text = httpx.get(f"{self._frontend.url}/metrics").text
        pattern = rf'^filmstrip_stage_seconds_sum{{model="{re.escape(self._model)}",stage="(.*)"}} (.*)$'
        seconds = {stage: float(value) for stage, value in re.findall(pattern, text, re.MULTILINE)}
        seconds.pop("denoise_step", None)  # a part of `denoise` that is told beside it
        return sum(seconds.values())


class _InProcess:
    """The same pipeline without Triton: `benchmarks.in_process`."""

    def __init__(self, way: str, model: Model) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "benchmarks.in_process", way, str(model.checkpoint), str(model.version)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # its input ends, and so does it

    def generate(self, height: int, width: int, num_chunks: int) -> Took:
        """See `_Server.generate`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(height, width, num_chunks, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} has ended")
        return Took(**json.loads(answer))


def _rows(size: str, series: _Series) -> list[Row]:
    chunk = f"chunk of {_CHUNK} x {size}"
    served_ms = [one.cpu_ms for one in series.served]
    engines_ms = [one.chunk_ms for one in series.engines]
    eager_ms = [one.chunk_ms for one in series.eager]
    eager = f"PyTorch eager, in-process {median(eager_ms):.1f} ms"
    ratio = Ratio.of(served_ms, eager_ms)
    outside = median([1 - one.engines_ms / one.chunk_ms for one in series.engines])
    outside_ms = median([one.chunk_ms - one.engines_ms for one in series.engines])
    others_ms, wall_ms, stages_ms = (
        [getattr(one, name) for one in series.served] for name in ("others_cpu_ms", "wall_ms", "stages_ms")
    )
    return [
        Row(
            f"{chunk}, in Triton: CPU of the model's process",
            f"{median(served_ms):.1f} ms",
            eager,
            str(ratio),
            f"<= {_OF_EAGER}",
            ratio.median <= _OF_EAGER,
        ),
        Row(
            f"{chunk}, engines in-process: CPU",
            f"{median(engines_ms):.1f} ms",
            eager,
            str(Ratio.of(engines_ms, eager_ms)),
        ),
        Row(
            f"{chunk}, engines in-process: CPU outside the engines",
            f"{outside:.1%}",
            f"{outside_ms:.1f} of {median(engines_ms):.1f} ms",
            target=f"<= {_OUTSIDE_ENGINES:.0%}",
            holds=outside <= _OUTSIDE_ENGINES,
        ),
        Row(
            f"{chunk}, in Triton: CPU of tritonserver and the frontend",
            f"{median(others_ms):.1f} ms",
            f"the model's process {median(served_ms):.1f} ms",
            str(Ratio.of(others_ms, served_ms)),
        ),
        Row(
            f"{chunk}, by HTTP, from event to event",
            f"{median(wall_ms):.1f} ms",
            f"the model's stages {median(stages_ms):.1f} ms",
            str(Ratio.of(wall_ms, stages_ms)),
        ),
    ]
