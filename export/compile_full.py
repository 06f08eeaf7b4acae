"""LongLive at full size, compiled without its weights by TensorRT-RTX for GPUs that need not be here.

It shows that every graph compiles, how long that takes and how large the engines are; weights are noise. Each graph
has a process of its own, whose peak of memory is then the graph's.
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
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import onnx_ir
import torch
from rich.console import Console
from rich.table import Table

from export.checkpoint import Networks
from export.config import CheckpointConfig
from export.errors import BuildFailed, ExportError
from export.graph_specs import graph_specs, grid_of
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.onnx_files import to_program
from export.spec import GraphSpec, Precision, Size
from export.tensorrt import RTX_TARGETS, BuildOptions, build_engine
from filmstrip.runtime.engines.manifest import Builder

_NUM_NOISE = 48 << 20  # numbers: more than the largest weight has
_PAGE = 4096


def weightless_networks(config: CheckpointConfig) -> Networks:
    """The networks of a configuration, their weights on the meta device; without a text encoder."""
    with torch.device("meta"):
        return Networks(
            config,
            CausalTransformer(config).eval(),
            TextKv(config).eval(),
            VaceBranch(config).eval() if config.vace_layers else None,
            TextKv(config, vace=True).eval() if config.vace_layers else None,
            VaeEncoder(config.vae).eval(),
            VaeDecoder(config.vae).eval(),
            text_encoder=None,
        )


def write_noise(path: Path) -> None:
    """Write the weights of all weightless graphs of bfloat16: 96 MiB of small normal numbers."""
    numbers = np.random.default_rng(0).normal(scale=0.02, size=_NUM_NOISE).astype(np.float32)
    (numbers.view(np.uint32) >> 16).astype(np.uint16).tofile(path)  # the upper half of a float32 is a bfloat16


def write_weightless_onnx(spec: GraphSpec, path: Path, noise: Path) -> None:
    """Translate a graph of weightless networks to an ONNX file in bfloat16 whose weights are pieces of `noise`.

    Each begins at another place, so that no two of them are equal and could be stored as one. `noise` lies beside the
    ONNX file.
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

Tell = Callable[[str], None]
"""Is told in a sentence what happens."""


class CompileJob(NamedTuple):
    """A graph to be compiled: its name in the results and in its specs, and whether its networks have VACE."""

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
    """What is compiled: the graphs of a configuration that has VACE, at sizes, for GPU architectures."""

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
    """A graph at a size. One engine serves all sizes and targets: what is not of the size is the engine's.

    Attributes:
        graph: the job's label.
        size: as 320x576, or "any" where no shape depends on it.
        target: GPU architectures with commas between them.
        seconds: tracing, translating and compiling took.
        compile_seconds: compiling alone took.
        peak_mib: most memory that the process had.
        plan_bytes: of the engine.
        activation_mib: memory on the GPU for tensors and scratch space, beside the engine and its inputs and outputs.
        made_from: changes with the code and the config.
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


def compile_jobs(config: CompileConfig, jobs: tuple[CompileJob, ...], results: Path, tell: Tell) -> list[CompileResult]:
    """Compile graphs one after another; each is in the results file as soon as it is done.

    Entries that the file has already are kept where they are made from the same code by the same config.

    Raises:
        BadOptions: a target is unknown, or has no bfloat16.
        BuildFailed: a graph does not compile, or its process was killed; the results of those before it stay.
    """
    made_from = _made_from(config)
    done = [entry for entry in read_entries(results) if entry.made_from == made_from]
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=results.parent) as scratch:
        noise = Path(scratch) / "noise.bin"
        for number, job in enumerate(jobs, 1):
            if any(entry.graph == job.label for entry in done):
                tell(f"{job.label} ({number} of {len(jobs)}): done before")
                continue
            tell(f"{job.label} ({number} of {len(jobs)})")
            done += _in_own_process(config, job, noise, made_from)
            _write_entries(results, done)
    labels = [job.label for job in jobs]
    return sorted((entry for entry in done if entry.graph in labels), key=lambda entry: labels.index(entry.graph))


def compile_job(config: CompileConfig, job: CompileJob, noise: Path, made_from: str) -> list[CompileResult]:
    """Trace, translate and compile one graph in this process; one entry a size.

    Raises:
        BuildFailed: it does not compile.
    """
    began = time.monotonic()
    checkpoint = config.checkpoint if job.vace else replace(config.checkpoint, vace_layers=())
    spec = next(spec for spec in graph_specs(weightless_networks(checkpoint), num_loras=0) if spec.name == job.graph)
    onnx = noise.parent / f"{job.label}.onnx"
    write_weightless_onnx(spec, onnx, noise)
    _say(job, f"translated in {time.monotonic() - began:.0f} s")
    grids = [grid_of(checkpoint, size) for size in config.sizes]
    engine = build_engine(onnx, spec, grids, config.options, _tenths(job))
    onnx.unlink()
    _say(job, f"compiled in {engine.seconds:.0f} s: {len(engine.plan) / _MIB:.0f} MiB")
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


def read_entries(results: Path) -> list[CompileResult]:
    """The entries of a results file; none where there is no such file."""
    return [CompileResult(**entry) for entry in json.loads(results.read_text("utf-8-sig"))] if results.exists() else []


def _in_own_process(config: CompileConfig, job: CompileJob, noise: Path, made_from: str) -> list[CompileResult]:
    if not noise.exists():
        write_noise(noise)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(compile_job, config, job, noise, made_from).result()
        except BrokenProcessPool:
            raise BuildFailed(f"{job.label}: its process was killed, most likely for want of memory") from None


def _write_entries(results: Path, entries: list[CompileResult]) -> None:
    part = results.with_name(results.name + ".part")
    part.write_text(json.dumps([asdict(entry) for entry in entries], indent=2) + "\n")
    part.replace(results)


def _made_from(config: CompileConfig) -> str:
    """A hash of the config, of the libraries' versions and of the code that makes and builds graphs."""
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


def _tenths(job: CompileJob) -> Callable[[str, float], None]:
    """Says each tenth of a build."""
    said = 0

    def tell(_phase: str, share: float) -> None:
        nonlocal said
        if int(share * 10) > said:
            said = int(share * 10)
            _say(job, f"compiling, {said * 10} %")

    return tell


def _say(job: CompileJob, what: str) -> None:
    print(f"  {job.label}: {what}", file=sys.stderr, flush=True)


_TARGETS = CompileConfig().targets


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/compile-full.json"), show_default=True)
@click.option("--graph", "graphs", multiple=True, type=click.Choice([job.label for job in JOBS]), help="default: all")
@click.option("--target", "targets", multiple=True, type=click.Choice(list(RTX_TARGETS)), default=_TARGETS)
@click.option("--fresh", is_flag=True, help="compile again what the file has already")
def main(out: Path, graphs: tuple[str, ...], targets: tuple[str, ...], fresh: bool) -> None:
    """Compile LongLive at full size, without its weights, for GPUs that need not be here.

    It takes a quarter of an hour on two cores and 8 GiB of memory. Run again after a stop, it goes on.
    """
    console = Console()
    if fresh:
        out.unlink(missing_ok=True)
    began = time.monotonic()
    jobs = tuple(job for job in JOBS if not graphs or job.label in graphs)
    try:
        entries = compile_jobs(CompileConfig(targets=targets), jobs, out, console.print)
    except ExportError as error:
        raise click.ClickException(str(error)) from error
    console.print(table(entries))
    console.print(f"{out}: {len(entries)} entries; {(time.monotonic() - began) / 60:.1f} minutes", soft_wrap=True)


def table(entries: list[CompileResult]) -> Table:
    """Entries as a table: GPU MiB are of tensors and scratch space, beside the plan."""
    shown = Table()
    for heading in ("graph", "size"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("s", "of it compiling", "peak MiB", "plan MiB", "GPU MiB"):
        shown.add_column(heading, justify="right")
    for entry in entries:
        numbers = (entry.seconds, entry.compile_seconds, entry.peak_mib, entry.plan_bytes / _MIB, entry.activation_mib)
        shown.add_row(entry.graph, entry.size, *(f"{number:.0f}" for number in numbers))
    return shown


if __name__ == "__main__":
    main()
