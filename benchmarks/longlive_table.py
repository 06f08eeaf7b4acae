"""What was measured of longlive-small, and the lines of the table that tell it."""

from dataclasses import dataclass, field

from benchmarks.report import Ratio, Row, median

_OF_ENGINES = 1.25
_OF_EAGER = 0.95
_OUTSIDE_ENGINES = 0.05
_FLAT = 1.2
# The frames of 32 chunks of 64 x 64 are 4.5 MiB, what else a chunk could leave behind is more: pixels, keys, values.
_GROWTH_MIB = 4
_FRAMES = 12  # of all chunks but the first
_PART = 4  # chunks that are compared at either end of a long generation


@dataclass(frozen=True)
class Took:
    """What a chunk took in a process of its own, in milliseconds.

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
    """From the request to the engines: each layer beside the engines alone."""
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
    told_ms = [sum(one.stages_ms.values()) for one in series.served]
    made = []
    for name in names:
        stage_ms = [one.stages_ms[name] for one in series.served]
        share = median([ms / all_ms for ms, all_ms in zip(stage_ms, told_ms, strict=True)])
        made.append(Row(f"{chunk}, stage {name}", f"{median(stage_ms):.2f} ms", f"{share:.1%} of all stages"))
    wall_ms = [one.wall_ms for one in series.served]
    beside = f"from event to event {median(wall_ms):.1f} ms"
    made.append(Row(f"{chunk}, all stages", f"{median(told_ms):.1f} ms", beside, str(Ratio.of(told_ms, wall_ms))))
    return made


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
    """Whole generations; and the end of the longest beside its beginning, from where the window is full."""
    made = [
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
    made.append(
        Row(
            f"the last {_PART} of {longest} chunks, from event to event",
            f"{median(ends_ms):.1f} ms",
            f"chunks {full_window} to {full_window + _PART - 1} {median(begins_ms):.1f} ms",
            str(ratio),
            f"<= {_FLAT}",
            ratio.median <= _FLAT,
        )
    )
    return made


def _memory(memory: Memory) -> list[Row]:
    numbers = list(memory.after)
    before, last = numbers[-2:]
    growth_mib = memory.after[last] - memory.after[before]
    told = ", ".join(f"{memory.after[number]:.0f} after {number}" for number in numbers)
    return [
        Row(
            f"growth of the model's process from chunk {before} to chunk {last}",
            f"{growth_mib:.1f} MiB, {memory.own_growth_mib:.1f} of them not shared",
            f"MiB: {told}",
            target=f"<= {_GROWTH_MIB} MiB",
            holds=growth_mib <= _GROWTH_MIB,
        ),
        Row("memory of the model's process, the most", f"{memory.peak_mib:.0f} MiB"),
    ]
