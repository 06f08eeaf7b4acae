"""longlive-small over HTTP, in Triton, as engines alone and in PyTorch: time per chunk, lengths and memory."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self

from benchmarks import direct, wire
from benchmarks.report import MIB, Options, Ratio, Row, median
from benchmarks.servers import MeasuredFrontend, Transport, cpu_s_of, memory_of, on_one_core, peak_memory_of
from benchmarks.wire import Arrival
from tests.support import http
from tests.support.server import ROOT
from tests.support.small_export import CHECKPOINT, ID, LORAS, SIDES, export_small

PROMPT = "a red circle moving left on a blue background"
FIRST_CHUNK, CHUNK = 9, 12  # frames
# The window of 12 latent frames is full with the fourth chunk: from the fifth on all have as much to do.
_FULL_WINDOW = 5
_LENGTHS, _QUICK_LENGTHS = (1, 8, 40), (1, 6, 12)
_CHUNKS, _QUICK_CHUNKS = 12, 2
_OF_ENGINES = 1.25
_OF_EAGER = 0.95
_OUTSIDE_ENGINES = 0.05
_FLAT = 1.2
# The frames of 32 chunks of 64 x 64 are 4.5 MiB, what else a chunk could leave behind is more: pixels, keys, values.
_GROWTH_MIB = 4
_FRAMES = 12  # of all chunks but the first
_PART = 4  # chunks that are compared at either end of a long generation


@dataclass(frozen=True)
class Model:
    """A pipeline that was exported.

    Attributes:
        id: of the pipeline.
        checkpoint: the folder that it was made of.
        repository: Triton's, with nothing else in it.
        sides: height and width of its videos, in pixels.
        loras: the files that it was exported with, by name.
    """

    id: str
    checkpoint: Path
    repository: Path
    sides: tuple[int, int]
    loras: Mapping[str, Path] = field(default_factory=dict)

    @property
    def version(self) -> Path:
        """The folder with its engines."""
        return self.repository / self.id / "1"


def shipped(repository: Path) -> Model:
    """The model of a repository that it was exported into."""
    return Model(ID, CHECKPOINT, repository, SIDES, LORAS)


def export(folder: Path) -> Model:
    """Export it, by a process that leaves nothing of PyTorch in this one; what `make model` has made is used.

    Raises:
        RuntimeError: the export failed, as where PyTorch is not installed.
    """
    return shipped(export_small(folder))


@dataclass(frozen=True)
class Took:
    """Time of a chunk in a separate process, in milliseconds.

    Attributes:
        cpu_ms: CPU time of all of it, all threads together.
        engines_cpu_ms: that within the engines.
        engines_ms: all time within the engines.
    """

    cpu_ms: float
    engines_cpu_ms: float
    engines_ms: float


@dataclass(frozen=True)
class Served:
    """What a chunk took through HTTP and Triton, in milliseconds.

    Attributes:
        cpu_ms: CPU time of the model's process.
        others_cpu_ms: that of Triton and the frontend.
        wall_ms: from event to event.
        stages_ms: what the model says that each of its stages took.
    """

    cpu_ms: float
    others_cpu_ms: float
    wall_ms: float
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class Length:
    """A generation of some chunks through HTTP.

    Attributes:
        seconds: from the POST to the last event.
        chunks_ms: from event to event, of all chunks but the first.
    """

    seconds: float
    chunks_ms: list[float]


@dataclass
class Series:
    """What came out, round by round."""

    served: list[Served] = field(default_factory=list)
    direct_ms: list[float] = field(default_factory=list)
    engines: list[Took] = field(default_factory=list)
    eager: list[Took] = field(default_factory=list)
    lengths: dict[int, list[Length]] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Memory of the model's process.

    Attributes:
        after: chunks of one generation, the first that the process made, and the resident MiB after each of them.
        own_growth_mib: from the last but one of these to the last, without mapped files and shared memory.
        peak_mib: the most that was ever resident.
    """

    after: dict[int, float]
    own_growth_mib: float
    peak_mib: float


def measure_longlive(options: Options) -> list[Row]:
    """Export the model, or take what is exported, and measure it."""
    return measure_model(options, export(options.folder))


def measure_model(options: Options, model: Model) -> list[Row]:
    """A model through Triton and without it, in turns; generations of several lengths; and the memory of one."""
    with contextlib.ExitStack() as stack:
        with on_one_core():
            served = _Server(options, model)
            stack.callback(served.stop)
            engines, eager = (stack.enter_context(_InProcess(way, model)) for way in ("engines", "eager"))
        lengths = _QUICK_LENGTHS if options.quick else _LENGTHS
        num_chunks = _QUICK_CHUNKS if options.quick else _CHUNKS
        # The first of all: a process that has released much memory could hide what it keeps.
        after, own_growth_mib = served.memory(lengths)
        for number in range(options.rounds + 1):
            if number < 2:  # the first round warms everything up
                series = Series(lengths={length: [] for length in lengths})
            series.served.append(served.generate(num_chunks))
            series.direct_ms.append(served.call_directly(num_chunks))
            series.engines.append(engines.generate(num_chunks))
            series.eager.append(eager.generate(num_chunks))
            for length in lengths:
                series.lengths[length].append(served.whole(length))
        memory = Memory(after, own_growth_mib, served.peak_mib())
        return table(model.sides, series, memory, _FULL_WINDOW)


class _Server:
    """A frontend with a Triton that has nothing but the model."""

    def __init__(self, options: Options, model: Model) -> None:
        settings = {"model_repository": model.repository}
        self._frontend = MeasuredFrontend(options.folder / "served", Transport.LANES, settings=settings)
        self.stop = self._frontend.stop
        self._model = model
        try:
            self._pid = self._frontend.model_pid(model.id)
            self._others = (self._frontend.triton_pid, self._frontend.pid)
        except BaseException:
            self.stop()
            raise

    def generate(self, num_chunks: int) -> Served:
        """Make a first chunk and `num_chunks` more, which are what is measured."""
        moments = [
            (event.at, cpu_s_of(self._pid), sum(map(cpu_s_of, self._others)), self._stages_s())
            for event in self._events(1 + num_chunks)
            if event.data["chunk"] in (1, 1 + num_chunks)
        ]
        (at, cpu, others, stages), (at_end, cpu_end, others_end, stages_end) = moments
        a_chunk = 1000 / num_chunks
        stages_ms = {name: a_chunk * (stages_end[name] - stages[name]) for name in stages_end}
        return Served(a_chunk * (cpu_end - cpu), a_chunk * (others_end - others), a_chunk * (at_end - at), stages_ms)

    def call_directly(self, num_chunks: int) -> float:
        """The same chunks by gRPC, without the frontend: milliseconds of one."""
        shapes = [(length, *self._model.sides, 3) for length in (FIRST_CHUNK, *[CHUNK] * num_chunks)]
        with direct.connected(self._frontend.triton_url) as client:
            first, *_, last = direct.by_text(client, self._model.id, PROMPT, shapes)
        return 1000 * (last - first) / num_chunks

    def whole(self, num_chunks: int) -> Length:
        """Make a video of so many chunks."""
        began = time.monotonic()
        arrivals = [event.at for event in self._events(num_chunks)]
        return Length(self._ended_at - began, [1000 * (after - before) for before, after in pairwise(arrivals)])

    def memory(self, num_chunks: tuple[int, ...]) -> tuple[dict[int, float], float]:
        """MiB of the model's process after so many chunks of one generation; growth of its own, see `Memory`."""
        sizes = [memory_of(self._pid) for _ in self._events(num_chunks[-1])]
        after = {number: sizes[number - 1][0] / MIB for number in num_chunks}
        (_, before), (_, end) = (sizes[number - 1] for number in num_chunks[-2:])
        return after, (end - before) / MIB

    def peak_mib(self) -> float:
        """The most memory that the model's process ever had."""
        return peak_memory_of(self._pid) / MIB

    def _events(self, num_chunks: int) -> Iterator[Arrival]:
        """The progress of a generation of so many chunks, as it comes."""
        height, width = self._model.sides
        for event in wire.generate(
            self._frontend.url,
            pipeline_id=self._model.id,
            prompt=PROMPT,
            height=height,
            width=width,
            num_frames=FIRST_CHUNK + (num_chunks - 1) * CHUNK,
        ):
            if event.name == "progress":
                yield event
        self._ended_at = event.at
        self._frontend.forget(str(event.data["output_path"]))

    def _stages_s(self) -> Counter[str]:
        """Seconds of each stage of all chunks so far, by the model's own clock."""
        text = http.get(f"{self._frontend.url}/metrics").text
        pattern = rf'^filmstrip_stage_seconds_sum{{model="{re.escape(self._model.id)}",stage="(.*)"}} (.*)$'
        seconds = Counter({stage: float(value) for stage, value in re.findall(pattern, text, re.MULTILINE)})
        del seconds["denoise_step"]  # part of `denoise`, reported separately
        return seconds


class _InProcess:
    """The same pipeline without Triton: `benchmarks.in_process`."""

    def __init__(self, way: str, model: Model) -> None:
        self._sides = model.sides
        arguments = [way, str(model.checkpoint), str(model.version)]
        arguments += [f"{name}={path}" for name, path in model.loras.items()]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "benchmarks.in_process", *arguments],
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

    def generate(self, num_chunks: int) -> Took:
        """See `_Server.generate`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*self._sides, num_chunks, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} has ended")
        return Took(**json.loads(answer))


# -- The table


def table(sides: tuple[int, int], series: Series, memory: Memory, full_window: int) -> list[Row]:
    """All of them.

    Args:
        sides: height and width of the video.
        series: what the rounds gave.
        memory: of the model's process.
        full_window: the first chunk, from 1, that has as much to attend to as any later one.
    """
    chunk = f"chunk of {_FRAMES} x {sides[0]} x {sides[1]}"
    return [
        *_stack(chunk, series),
        *_stages(chunk, series),
        *_cpu(chunk, series),
        *_lengths(series, full_window),
        *_memory(memory),
    ]


def _stack(chunk: str, series: Series) -> list[Row]:
    """From the request to the engines: each layer compared with the engines alone."""
    engines_ms = [one.engines_ms for one in series.engines]
    wall_ms = [one.wall_ms for one in series.served]
    engines = f"engines alone {median(engines_ms):.1f} ms"
    whole, directly = Ratio.of(wall_ms, engines_ms), Ratio.of(series.direct_ms, engines_ms)
    eager_ms = [one.engines_ms for one in series.eager]
    fps = [1000 * _FRAMES / one for one in wall_ms]
    return [
        Row(
            f"{chunk}, by HTTP, from event to event",
            f"{median(wall_ms):.1f} ms",
            engines,
            str(whole),
            f"<= {_OF_ENGINES}",
            whole.median <= _OF_ENGINES,
        ),
        Row(f"{chunk}, by HTTP: frames a second", f"{median(fps):.0f}"),
        Row(f"{chunk}, in Triton, called by gRPC", f"{median(series.direct_ms):.1f} ms", engines, str(directly)),
        Row(
            f"{chunk}, PyTorch eager in place of the engines",
            f"{median(eager_ms):.1f} ms",
            engines,
            str(Ratio.of(eager_ms, engines_ms)),
        ),
    ]


def _stages(chunk: str, series: Series) -> list[Row]:
    """What the model says that its stages took, and what is left of the time from event to event."""
    names = [name for name in series.served[0].stages_ms if any(one.stages_ms[name] > 0 for one in series.served)]
    reported_ms = [sum(one.stages_ms.values()) for one in series.served]
    rows = []
    for name in names:
        stage_ms = [one.stages_ms[name] for one in series.served]
        share = median([ms / all_ms for ms, all_ms in zip(stage_ms, reported_ms, strict=True)])
        rows.append(Row(f"{chunk}, stage {name}", f"{median(stage_ms):.2f} ms", f"{share:.1%} of all stages"))
    wall_ms = [one.wall_ms for one in series.served]
    baseline = f"from event to event {median(wall_ms):.1f} ms"
    rows.append(
        Row(f"{chunk}, all stages", f"{median(reported_ms):.1f} ms", baseline, str(Ratio.of(reported_ms, wall_ms)))
    )
    return rows


def _cpu(chunk: str, series: Series) -> list[Row]:
    """CPU time, which says more where something else runs, too."""
    served_ms = [one.cpu_ms for one in series.served]
    others_ms = [one.others_cpu_ms for one in series.served]
    all_ms = [one + other for one, other in zip(served_ms, others_ms, strict=True)]
    engines_ms = [one.engines_cpu_ms for one in series.engines]
    in_process_ms = [one.cpu_ms for one in series.engines]
    eager_ms = [one.cpu_ms for one in series.eager]
    eager = f"PyTorch eager, in-process {median(eager_ms):.1f} ms"
    ratio = Ratio.of(served_ms, eager_ms)
    outside = median([1 - one.engines_cpu_ms / one.cpu_ms for one in series.engines])
    outside_ms = median([one.cpu_ms - one.engines_cpu_ms for one in series.engines])
    return [
        Row(
            f"{chunk}, CPU of the model's process, tritonserver and the frontend",
            f"{median(all_ms):.1f} ms",
            f"engines alone {median(engines_ms):.1f} ms",
            str(Ratio.of(all_ms, engines_ms)),
        ),
        Row(
            f"{chunk}, CPU of the model's process",
            f"{median(served_ms):.1f} ms",
            eager,
            str(ratio),
            f"<= {_OF_EAGER}",
            ratio.median <= _OF_EAGER,
        ),
        Row(
            f"{chunk}, CPU of the engines in-process",
            f"{median(in_process_ms):.1f} ms",
            eager,
            str(Ratio.of(in_process_ms, eager_ms)),
        ),
        Row(
            f"{chunk}, CPU in-process outside the engines",
            f"{outside:.1%}",
            f"{outside_ms:.1f} of {median(in_process_ms):.1f} ms",
            target=f"<= {_OUTSIDE_ENGINES:.0%}",
            holds=outside <= _OUTSIDE_ENGINES,
        ),
        Row(
            f"{chunk}, CPU of tritonserver and the frontend",
            f"{median(others_ms):.1f} ms",
            f"the model's process {median(served_ms):.1f} ms",
            str(Ratio.of(others_ms, served_ms)),
        ),
    ]


def _lengths(series: Series, full_window: int) -> list[Row]:
    """Whole generations; and the end of the longest compared with its beginning, from where the window is full."""
    rows = [
        Row(
            f"generation of {length} {'chunk' if length == 1 else 'chunks'}, from the POST to the last event",
            f"{1000 * median([one.seconds for one in found]):.0f} ms",
            f"a chunk of it {1000 * median([one.seconds / length for one in found]):.1f} ms",
        )
        for length, found in series.lengths.items()
    ]
    longest = max(series.lengths)
    # The first chunk has no time from event to event: the second is number 0.
    begin = slice(full_window - 2, full_window - 2 + _PART)
    begins_ms = [median(one.chunks_ms[begin]) for one in series.lengths[longest]]
    ends_ms = [median(one.chunks_ms[-_PART:]) for one in series.lengths[longest]]
    ratio = Ratio.of(ends_ms, begins_ms)
    rows.append(
        Row(
            f"the last {_PART} of {longest} chunks, from event to event",
            f"{median(ends_ms):.1f} ms",
            f"chunks {full_window} to {full_window + _PART - 1} {median(begins_ms):.1f} ms",
            str(ratio),
            f"<= {_FLAT}",
            ratio.median <= _FLAT,
        )
    )
    return rows


def _memory(memory: Memory) -> list[Row]:
    numbers = list(memory.after)
    before, last = numbers[-2:]
    growth_mib = memory.after[last] - memory.after[before]
    growth = ", ".join(f"{memory.after[number]:.0f} after {number}" for number in numbers)
    return [
        Row(
            f"growth of the model's process from chunk {before} to chunk {last}",
            f"{growth_mib:.1f} MiB, {memory.own_growth_mib:.1f} of them not shared",
            f"MiB: {growth}",
            target=f"<= {_GROWTH_MIB} MiB",
            holds=growth_mib <= _GROWTH_MIB,
        ),
        Row("memory of the model's process, the most", f"{memory.peak_mib:.0f} MiB"),
    ]
