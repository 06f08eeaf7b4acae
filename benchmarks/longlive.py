"""longlive-small through HTTP, in Triton, its engines alone and PyTorch, chunk by chunk; lengths, and memory."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Self

import httpx

from benchmarks import direct, small_longlive, wire
from benchmarks.longlive_table import Length, Memory, Series, Served, Took, table
from benchmarks.options import Options
from benchmarks.report import MIB, Row
from benchmarks.servers import ROOT, Frontend, Transport, cpu_s_of, memory_of, on_one_core, peak_memory_of
from benchmarks.small_longlive import PROMPT, Model
from benchmarks.wire import Arrival

FIRST_CHUNK, CHUNK = 9, 12  # frames
# The window of 12 latent frames is full with the fourth chunk: from the fifth on all have as much to do.
_FULL_WINDOW = 5
_LENGTHS, _QUICK_LENGTHS = (1, 8, 40), (1, 6, 12)
_CHUNKS, _QUICK_CHUNKS = 12, 2


def measure(options: Options) -> list[Row]:
    """Export the model, or take what is exported, and measure it."""
    return measure_model(options, small_longlive.export(options.folder))


def measure_model(options: Options, model: Model) -> list[Row]:
    """A model through Triton and without it, in turns; generations of several lengths; and the memory of one."""
    with contextlib.ExitStack() as stack:
        with on_one_core():
            served = _Server(options, model)
            stack.callback(served.stop)
            engines, eager = (stack.enter_context(_InProcess(way, model)) for way in ("engines", "eager"))
        lengths = _QUICK_LENGTHS if options.quick else _LENGTHS
        num_chunks = _QUICK_CHUNKS if options.quick else _CHUNKS
        # The first of all: a process that has given much back could hide what it keeps.
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
        settings = {"FILMSTRIP_MODEL_REPOSITORY": str(model.repository)}
        self._frontend = Frontend(options.folder / "served", Transport.LANES, own_settings=settings)
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
        text = httpx.get(f"{self._frontend.url}/metrics").text
        pattern = rf'^filmstrip_stage_seconds_sum{{model="{re.escape(self._model.id)}",stage="(.*)"}} (.*)$'
        seconds = Counter({stage: float(value) for stage, value in re.findall(pattern, text, re.MULTILINE)})
        del seconds["denoise_step"]  # a part of `denoise` that is told beside it
        return seconds


class _InProcess:
    """The same pipeline without Triton: `benchmarks.in_process`."""

    def __init__(self, way: str, model: Model) -> None:
        self._sides = model.sides
        given = [way, str(model.checkpoint), str(model.version)]
        given += [f"{name}={path}" for name, path in model.loras.items()]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "benchmarks.in_process", *given],
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
