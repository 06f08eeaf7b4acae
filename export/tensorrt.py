"""From an ONNX file to an engine, with TensorRT-RTX or TensorRT, which share one API.

All of this has been run with TensorRT-RTX, but not with TensorRT, which needs a GPU.
"""

import importlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from export.errors import BadOptions, BuilderMissing, BuildFailed, UnusedInput
from export.spec import Component, GraphSpec, Grid, Precision
from filmstrip.runtime.engines.manifest import Builder

RTX_TARGETS: Mapping[str, str] = MappingProxyType(
    {"sm75": "SM75", "sm80": "SM80", "sm86": "SM86", "sm89": "SM89", "sm120": "SM120"}
)
"""GPU architectures that TensorRT-RTX compiles for, and its names for them."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built. Needs neither library.

    Attributes:
        builder: the library.
        precision: what the ONNX file computes in; a strongly typed engine keeps it.
        targets: GPU architectures as in `RTX_TARGETS`, all served by one engine of TensorRT-RTX. Empty for TensorRT.
        workspace_gib: maximum memory that a layer may use besides its tensors; None for the builder's own limit.
        optimization_level: 0 to 5, how long the builder searches for faster kernels; None for its default.
        timing_cache: a file of kernel timings that a build reads and rewrites. For TensorRT only: TensorRT-RTX
            measures nothing.

    Raises:
        BadOptions: the library can't build such an engine.
    """

    builder: Builder
    precision: Precision
    targets: tuple[str, ...] = ()
    workspace_gib: float | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.workspace_gib is not None and self.workspace_gib <= 0:
            raise BadOptions(f"a workspace of {self.workspace_gib} GiB must be more than 0")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise BadOptions(f"optimization level {self.optimization_level} must be 0 to 5")
        if self.builder is Builder.TENSORRT_RTX:
            self._check_rtx()
        elif self.targets:
            raise BadOptions("TensorRT builds for the GPU that it runs on: leave out the target")

    def _check_rtx(self) -> None:
        if not self.targets:
            raise BadOptions(f"TensorRT-RTX needs a target: one or more of {', '.join(RTX_TARGETS)}")
        if len(set(self.targets)) < len(self.targets):
            raise BadOptions(f"a target is named twice in {', '.join(self.targets)}")
        for target in self.targets:
            if target in ("sm90", "sm100", "sm103"):
                raise BadOptions(
                    f"TensorRT-RTX can't build for {target} (H100, H200, B200): "
                    "build with plain TensorRT on the GPU itself (--builder tensorrt)"
                )
            if target not in RTX_TARGETS:
                raise BadOptions(f"target {target} must be one of {', '.join(RTX_TARGETS)}")
        if "sm75" in self.targets and self.precision is Precision.BF16:
            raise BadOptions("sm75 (Turing) has no bf16: use fp16, or leave sm75 out")
        if self.timing_cache is not None:
            raise BadOptions("TensorRT-RTX measures no kernels and has no timing cache: leave it out")


OnProgress = Callable[[str, float], None]
"""Called with the current phase of a build and the share of the build that is done, 0 to 1, which never decreases."""


@dataclass
class _Phase:
    begins: float
    per_step: float
    done: int = 0


class BuildProgress:
    """Turns TensorRT's nested phases into one share of the build: a phase fills the current step of its parent.

    TensorRT calls it from several threads.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """A phase has begun; without a parent it is the whole build."""
        with self._lock:
            around = self._phases.get(parent or "")
            begins = around.begins + around.done * around.per_step if around else 0.0
            span = around.per_step if around else 1.0
            self._phases[name] = _Phase(begins, span / max(num_steps, 1))
            self._on_progress(name, self._share)

    def step(self, name: str, index: int) -> None:
        """Step `index` of a phase is done."""
        with self._lock:
            phase = self._phases[name]
            phase.done = index + 1
            self._share = max(self._share, min(1.0, phase.begins + phase.done * phase.per_step))
            self._on_progress(name, self._share)

    def finish(self, name: str) -> None:
        """A phase has ended, even if not all its steps are done; its name may be used again."""
        with self._lock:
            self._phases.pop(name, None)

    def complete(self) -> None:
        """The build has succeeded; phases may have ended before all their steps were reported."""
        self._on_progress("done", 1.0)


# "Unused Input: x"; "Input Tensor x is unused or used only at compile-time". A parser that does not know an
# operator's optional input only warns like this, and the engine ignores the input.
_UNUSED = re.compile(r"\bunused (input|weight)|\b(input|weight)s?\b.*\bunused\b", re.IGNORECASE)
_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")


def load_library(builder: Builder) -> Any:
    """Import the module of a library.

    Raises:
        BuilderMissing: it is not installed.
    """
    try:
        return importlib.import_module(builder.module)
    except ImportError as error:
        where = ", on a machine with an NVIDIA GPU" if builder is Builder.TENSORRT else ""
        raise BuilderMissing(f"{builder} is not installed (pip install {builder}{where}): {error}") from error


class Message(NamedTuple):
    """One line of a library's log."""

    is_error: bool
    text: str


@dataclass
class BuildLog:
    """What a library logged during a build.

    Attributes:
        messages: its warnings and errors.
        activation_bytes: GPU memory that a profile's tensors and scratch space take, profile by profile.
    """

    messages: list[Message] = field(default_factory=list)
    activation_bytes: list[int] = field(default_factory=list)

    def unused(self) -> list[str]:
        """Messages about an input or a weight that has no effect."""
        return [message.text for message in self.messages if _UNUSED.search(message.text)]

    def errors(self) -> str:
        """Its errors, in one line."""
        return "; ".join(one.text for one in self.messages if one.is_error) or "no reason given"


def make_logger(library: Any, log: BuildLog) -> Any:
    """A logger for a builder."""

    class Listener(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            level = library.ILogger
            if severity in (level.INTERNAL_ERROR, level.ERROR, level.WARNING):
                log.messages.append(Message(severity != level.WARNING, text))
            elif size := _ACTIVATION.match(text):
                log.activation_bytes.append(int(size[1]))

    return Listener()


def make_progress_monitor(library: Any, progress: BuildProgress) -> Any:
    """A progress monitor for a builder's configuration."""

    class Monitor(library.IProgressMonitor):
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


_GIB = 1 << 30


def configure(library: Any, config: Any, options: BuildOptions) -> None:
    """Apply the options to a builder's configuration.

    Raises:
        BuildFailed: the library rejects a target or the timing cache.
    """
    if options.builder is Builder.TENSORRT_RTX:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            capability = getattr(library.ComputeCapability, RTX_TARGETS[target])
            if not config.set_compute_capability(capability, index):
                raise BuildFailed(f"TensorRT-RTX {library.__version__} rejects the target {target}")
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, int(options.workspace_gib * _GIB))
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.timing_cache is not None:
        kept = b""
        with suppress(FileNotFoundError):
            kept = options.timing_cache.read_bytes()
        # Without ignore_mismatch, timings for another GPU or version are rejected, not used.
        if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
            raise BuildFailed(f"{options.timing_cache} is for another GPU or version: remove it or name another file")


def save_timing_cache(config: Any, path: Path) -> None:
    """Write a configuration's timing cache after a build."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(config.get_timing_cache().serialize())
    part.replace(path)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that is not in a file yet.

    Attributes:
        plan: its bytes.
        grids: one per profile, in order; empty if no shape depends on the size of the video.
        activation_bytes: GPU memory for tensors and scratch space, without the weights, for each profile.
        builder_version: of the library; the same version must run the engine.
        seconds: duration of parsing and building.
    """

    plan: memoryview
    grids: tuple[Grid, ...]
    activation_bytes: tuple[int, ...]
    builder_version: str
    seconds: float

    def write(self, path: Path) -> None:
        """Write it to a file, whole or not at all."""
        part = path.with_name(path.name + ".part")
        try:
            part.write_bytes(self.plan)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def build_engine(
    onnx: Path,
    spec: GraphSpec,
    grids: Sequence[Grid],
    options: BuildOptions,
    progress: OnProgress | None = None,
) -> BuiltEngine:
    """Build a graph's engine with one profile per size.

    Args:
        onnx: the graph's file, its weights in the same folder.
        spec: what the graph was made from.
        grids: rows and columns of tokens at each size.
        options: the library and what it builds for.
        progress: called as the build advances.

    Raises:
        BuilderMissing: the library is not installed.
        BuildFailed: it can't read the file or build the engine, or the file does not match the spec.
        UnusedInput: an input of the graph has no effect.
    """
    began = time.monotonic()
    library = load_library(options.builder)
    log = BuildLog()
    logger = make_logger(library, log)
    builder = library.Builder(logger)
    network = builder.create_network(_strongly_typed_flag(library))
    _parse(library, network, logger, onnx, log)
    _check_signature(library, network, spec, options.precision)
    if spec.component is not Component.TRANSFORMER or options.precision is Precision.FP32:
        # There is no kernel for float32, nor for the VAE's single head of 384. In half precision the transformer's
        # attention must have a kernel: the scores of all its tokens would fill the memory.
        _allow_decomposed_attention(library, network)

    config = builder.create_builder_config()
    configure(library, config, options)
    build_progress = BuildProgress(progress or (lambda _phase, _share: None))
    progress_monitor = make_progress_monitor(library, build_progress)  # named, because it must live as long as `config`
    config.progress_monitor = progress_monitor
    sizes = tuple(grids) if spec.depends_on_size else ()
    for grid in sizes or grids[:1]:
        _add_profile(builder, config, spec, grid)

    plan = builder.build_serialized_network(network, config)
    if unused := log.unused():  # first: it may be the reason for a failure
        raise UnusedInput(f"{spec.name}: the engine would ignore an input: {'; '.join(unused)}")
    if plan is None:
        raise BuildFailed(f"{spec.name} was not built: {log.errors()}")
    if options.timing_cache is not None:
        save_timing_cache(config, options.timing_cache)
    build_progress.complete()
    return BuiltEngine(
        memoryview(plan), sizes, tuple(log.activation_bytes), library.__version__, time.monotonic() - began
    )


def _strongly_typed_flag(library: Any) -> int:
    """Flags of a network that keeps the file's types; releases that have only such networks have no flag for it."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(library: Any, network: Any, logger: Any, onnx: Path, log: BuildLog) -> None:
    parser = library.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    where = [f"node {e.node_name() or e.node()} ({e.node_operator()}): {e.desc()}" for e in errors]
    raise BuildFailed(f"{onnx.name} can't be parsed: {'; '.join(where) or log.errors()}")


def _check_signature(library: Any, network: Any, spec: GraphSpec, precision: Precision) -> None:
    """Names and types must match the spec: the runtime knows nothing else about the engine."""
    found = {
        "inputs": [network.get_input(index) for index in range(network.num_inputs)],
        "outputs": [network.get_output(index) for index in range(network.num_outputs)],
    }
    for kind, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        expected = {one.name: _type_of(library, one.dtype or precision.dtype) for one in tensors}
        have = {tensor.name: tensor.dtype for tensor in found[kind]}
        if have != expected:
            differ = sorted(name for name in have.keys() | expected if have.get(name) != expected.get(name))
            raise BuildFailed(
                f"{spec.name}: {kind} differ from the spec at {', '.join(differ)}: "
                f"the file has {_types(have, differ)}, the spec {_types(expected, differ)}"
            )


def _type_of(library: Any, dtype: torch.dtype) -> Any:
    types = library.DataType
    return {
        torch.float32: types.FLOAT,
        torch.bfloat16: types.BF16,
        torch.float16: types.HALF,
        torch.int64: types.INT64,
    }[dtype]


def _types(have: dict[str, Any], names: Sequence[str]) -> str:
    return ", ".join(str(have[name].name) if name in have else "none" for name in names)


def _allow_decomposed_attention(library: Any, network: Any) -> None:
    """Let attention run as separate operations where the library has no kernel for it."""
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == library.LayerType.ATTENTION_INPUT:
            layer.__class__ = library.IAttentionInputLayer  # `get_layer` returns every layer as the same class
            layer.attention.decomposable = True


def _add_profile(builder: Any, config: Any, spec: GraphSpec, grid: Grid) -> None:
    profile = builder.create_optimization_profile()
    for name, shapes in spec.profile(grid).items():
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise BuildFailed(f"{spec.name}: the profile of {grid.rows} rows and {grid.cols} columns of tokens is rejected")
