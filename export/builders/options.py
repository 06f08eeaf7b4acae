"""What an engine is built for. Nothing here needs either library."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from export.errors import BadOptions
from export.spec import Precision
from filmstrip.runtime.engines.manifest import Builder

RTX_TARGETS: Mapping[str, str] = MappingProxyType(
    {"sm75": "SM75", "sm80": "SM80", "sm86": "SM86", "sm89": "SM89", "sm120": "SM120"}
)
"""GPU architectures that TensorRT-RTX compiles for, and its names of them."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        builder: the library.
        precision: what the ONNX file computes in; a strongly typed engine keeps it.
        targets: GPU architectures as in `RTX_TARGETS`, which one engine of TensorRT-RTX can serve together. None for
            TensorRT.
        workspace_gib: most memory that a layer may use beside its tensors; the builder's own limit where None.
        optimization_level: 0 to 5, how long the builder looks for faster kernels; its own where None.
        timing_cache: a file of measured kernels that a build reads, and writes anew. TensorRT's alone: TensorRT-RTX
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
            raise BadOptions(f"optimisation level {self.optimization_level} must be 0 to 5")
        if self.builder is Builder.TENSORRT_RTX:
            self._check_rtx()
        elif self.targets:
            raise BadOptions("TensorRT builds for the GPU that it runs on: leave the target out")

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
