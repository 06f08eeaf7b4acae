"""`python -m export.compile_full`: compiles LongLive at full size, with noise as weights and without a GPU.

It shows that TensorRT-RTX compiles every graph, how long that takes and how large the engines are. Each graph is
compiled in a process of its own, so that its peak memory can be measured.
"""

import hashlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import onnx_ir
from rich.console import Console
from rich.table import Table

from export.checkpoint import meta_networks
from export.config import CheckpointConfig
from export.errors import BuildFailed, ExportError
from export.graph_specs import graph_specs, grid_of
from export.onnx_files import to_program
from export.spec import GraphSpec, Precision, Size
from export.tensorrt import RTX_TARGETS, BuildOptions, build_engine
from filmstrip.runtime.engines.manifest import Builder

LONGLIVE = CheckpointConfig(
    dim=1536,
    ffn_dim=8960,
    num_heads=12,
    num_layers=30,
    in_channels=16,
    out_channels=16,
    freq_dim=256,
    text_len=512,
    eps=1e-6,
    latent_frames_per_chunk=3,
    window=12,
    sink=3,
    timestep_shift=5,
    text_steps=(1000, 937.5, 833.33, 625),
    video_steps=(1000, 750, 500, 250),
    vace_layers=tuple(range(0, 30, 2)),
)
SIZES = (Size(320, 576), Size(480, 832))
_MIB = 1 << 20
_NUM_NOISE = 48 << 20  # numbers: more than in the largest weight
_PAGE = 4096

Report = Callable[[str], object]
"""Takes a sentence about the progress."""


class CompileJob(NamedTuple):
    """A graph to compile: its name in the results and in the specs, and whether its networks have VACE."""

    label: str
    graph: str
    vace: bool = True


JOBS = (
    *(CompileJob(name, name) for name in ("vae_encoder_first", "vae_encoder_next", "vae_encoder_image")),
    *(CompileJob(name, name) for name in ("vae_decoder_first", "vae_decoder_next", "text_kv", "vace_text_kv", "vace")),
    CompileJob("transformer_without_hints", "transformer", vace=False),
    CompileJob("transformer_with_hints", "transformer"),
)


@dataclass(frozen=True)
class CompileConfig:
    """What to compile: the graphs of a checkpoint that has VACE, at sizes, for GPU architectures."""

    checkpoint: CheckpointConfig = LONGLIVE
    sizes: tuple[Size, ...] = SIZES
    targets: tuple[str, ...] = ("sm80", "sm86", "sm89", "sm120")

    @property
    def options(self) -> BuildOptions:
        """How its engines are built.

        Raises:
            BadOptions: a target is unknown, or has no bfloat16.
        """
        return BuildOptions(Builder.TENSORRT_RTX, Precision.BF16, self.targets)


@dataclass(frozen=True)
class CompileResult:
    """A graph at a size. One engine serves all sizes and targets; only `activation_mib` depends on the size.

    Attributes:
        graph: the job's label.
        size: WIDTHxHEIGHT, or "any" if no shape depends on it.
        target: GPU architectures, separated by commas.
        seconds: duration of tracing, translating and compiling.
        compile_seconds: duration of compiling.
        peak_mib: the process's peak memory.
        plan_bytes: size of the engine.
        activation_mib: GPU memory for tensors and scratch space, not counting the engine and its inputs and outputs.
        made_from: hash of the code and the configuration.
    """

    graph: str
    size: str
    target: str
    seconds: float
    compile_seconds: float
    peak_mib: int
    plan_bytes: int
    activation_mib: int
    made_from: str


def compile_jobs(
    config: CompileConfig, jobs: tuple[CompileJob, ...], path: Path, report: Report
) -> list[CompileResult]:
    """Compile graphs one after another; each is in the results file as soon as it is done.

    Results that are already in the file are kept if they were made from the same code and configuration.

    Raises:
        BadOptions: a target is unknown, or has no bfloat16.
        BuildFailed: a graph does not compile, or its process was killed; earlier results stay.
    """
    made_from = _made_from(config)
    results = [result for result in read_results(path) if result.made_from == made_from]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        noise = Path(scratch) / "noise.bin"
        for number, job in enumerate(jobs, 1):
            if any(result.graph == job.label for result in results):
                report(f"{job.label} ({number} of {len(jobs)}): already done")
                continue
            report(f"{job.label} ({number} of {len(jobs)})")
            results += _run_in_process(config, job, noise, made_from)
            _write_results(path, results)
    labels = [job.label for job in jobs]
    return sorted((one for one in results if one.graph in labels), key=lambda one: labels.index(one.graph))


def compile_job(config: CompileConfig, job: CompileJob, noise: Path, made_from: str) -> list[CompileResult]:
    """Trace, translate and compile one graph in this process; one result per size.

    Raises:
        BuildFailed: it does not compile.
    """
    began = time.monotonic()
    checkpoint = config.checkpoint if job.vace else config.checkpoint.model_copy(update={"vace_layers": ()})
    spec = next(spec for spec in graph_specs(meta_networks(checkpoint), num_loras=0) if spec.name == job.graph)
    onnx = noise.parent / f"{job.label}.onnx"
    write_weightless_onnx(spec, onnx, noise)
    _log(job, f"translated in {time.monotonic() - began:.0f} s")
    grids = [grid_of(checkpoint, size) for size in config.sizes]
    engine = build_engine(onnx, spec, grids, config.options, _log_each_tenth(job))
    onnx.unlink()
    _log(job, f"compiled in {engine.seconds:.0f} s: {len(engine.plan) / _MIB:.0f} MiB")
    sizes = [str(size) for size in config.sizes] if spec.depends_on_size else ["any"]
    return [
        CompileResult(
            job.label,
            size,
            ",".join(config.targets),
            round(time.monotonic() - began, 1),
            round(engine.seconds, 1),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            len(engine.plan),
            activation_bytes // _MIB,
            made_from,
        )
        for size, activation_bytes in zip(sizes, engine.activation_bytes, strict=True)
    ]


def write_noise(path: Path) -> None:
    """Write bfloat16 weights for all weightless graphs: 96 MiB of small normally distributed numbers."""
    numbers = np.random.default_rng(0).normal(scale=0.02, size=_NUM_NOISE).astype(np.float32)
    (numbers.view(np.uint32) >> 16).astype(np.uint16).tofile(path)  # the upper half of a float32 is a bfloat16


def write_weightless_onnx(spec: GraphSpec, path: Path, noise: Path) -> None:
    """Translate a graph whose weights are on the meta device to bfloat16 ONNX, with pieces of `noise` as weights.

    Each piece begins at another offset: no two weights are equal, so none can be stored as one. `noise` must be in the
    ONNX file's folder.
    """
    program = to_program(spec, Precision.BF16)
    weights = {f"named.{name}" for name, _ in spec.module.named_parameters()}
    num_bytes = noise.stat().st_size
    index = 0
    for name, value in program.model.graph.initializers.items():
        tensor = value.const_value
        if name not in weights or tensor is None:
            continue
        pages = (num_bytes - tensor.nbytes) // _PAGE
        value.const_value = onnx_ir.ExternalTensor(
            noise.name,
            index * 37 % pages * _PAGE,
            tensor.nbytes,
            tensor.dtype,
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=path.parent,
        )
        index += 1
    onnx_ir.save(program.model, path)


def read_results(path: Path) -> list[CompileResult]:
    """The results in a file; none if there is no such file."""
    return [CompileResult(**result) for result in json.loads(path.read_text("utf-8-sig"))] if path.exists() else []


def _run_in_process(config: CompileConfig, job: CompileJob, noise: Path, made_from: str) -> list[CompileResult]:
    if not noise.exists():
        write_noise(noise)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(compile_job, config, job, noise, made_from).result()
        except BrokenProcessPool:
            raise BuildFailed(f"{job.label}: its process was killed, most likely for lack of memory") from None


def _write_results(path: Path, results: list[CompileResult]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    part.replace(path)


def _made_from(config: CompileConfig) -> str:
    """A hash of the configuration, of the libraries' versions and of the code that makes and builds graphs."""
    digest = hashlib.sha256(f"{config} {config.options}".encode())
    for library in ("torch", "onnxscript", "tensorrt-rtx"):
        digest.update(f"{library} {version(library)}\n".encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources() -> Iterator[Path]:
    here = Path(__file__).parent
    yield from sorted((here / "modules").glob("*.py"))
    yield from (here / f"{name}.py" for name in ("compile_full", "graph_specs", "onnx_files", "spec", "tensorrt"))


def _log_each_tenth(job: CompileJob) -> Callable[[str, float], None]:
    """A progress callback that logs each tenth of a build."""
    logged = 0

    def on_progress(_phase: str, share: float) -> None:
        nonlocal logged
        if int(share * 10) > logged:
            logged = int(share * 10)
            _log(job, f"compiling, {logged * 10} %")

    return on_progress


def _log(job: CompileJob, message: str) -> None:
    print(f"  {job.label}: {message}", file=sys.stderr, flush=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/compile-full.json"),
    show_default=True,
    help="The results file.",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=click.Choice([job.label for job in JOBS]),
    help="Compile only this graph; repeatable.  [default: all]",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(list(RTX_TARGETS)),
    default=CompileConfig().targets,
    show_default=True,
    help="A GPU architecture to compile for; repeatable.",
)
@click.option("--fresh", is_flag=True, help="Also compile what the results file already has.")
def main(out: Path, graphs: tuple[str, ...], targets: tuple[str, ...], fresh: bool) -> None:
    """Compile LongLive at full size, without its weights and without a GPU.

    Takes a quarter of an hour on two cores and 8 GiB of memory. If it is stopped, run it again: it continues.
    """
    console = Console()
    if fresh:
        out.unlink(missing_ok=True)
    began = time.monotonic()
    jobs = tuple(job for job in JOBS if not graphs or job.label in graphs)
    try:
        results = compile_jobs(CompileConfig(targets=targets), jobs, out, console.print)
    except ExportError as error:
        raise click.ClickException(str(error)) from error
    console.print(results_table(results))
    console.print(f"{out}: {len(results)} results in {(time.monotonic() - began) / 60:.1f} minutes", soft_wrap=True)


def results_table(results: list[CompileResult]) -> Table:
    """The results as a table; "GPU MiB" is tensors and scratch space, without the plan."""
    table = Table()
    for heading in ("graph", "size"):
        table.add_column(heading, no_wrap=True)
    for heading in ("s", "of it compiling", "peak MiB", "plan MiB", "GPU MiB"):
        table.add_column(heading, justify="right")
    for one in results:
        numbers = (one.seconds, one.compile_seconds, one.peak_mib, one.plan_bytes / _MIB, one.activation_mib)
        table.add_row(one.graph, one.size, *(f"{number:.0f}" for number in numbers))
    return table


if __name__ == "__main__":
    main()
