"""What the export declares of a graph: its inputs and outputs, which of their lengths vary, how exact it must be.

A graph is made once for all sizes of the video. Rows and columns of tokens are axes of it like any other, and an
engine has one profile a size: so all sizes share one engine's weights.

A graph that changes so that the runtime must change with it needs a new `SPEC_VERSION`, in
`filmstrip.runtime.engines.manifest`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Precision(StrEnum):
    """What a graph computes in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of tensors that stay within the engines."""
        return {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[self]


class Part(StrEnum):
    """Which weights of a checkpoint's folder a graph is made of."""

    TRANSFORMER = "transformer"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"


class Size(NamedTuple):
    """Height and width of a video, in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Grid(NamedTuple):
    """Tokens of a latent frame at one size: the values of the axes `rows` and `cols`."""

    rows: int
    cols: int


class Range(NamedTuple):
    """Shortest, usual and longest value of an axis.

    Attributes:
        minimum: of the profile.
        usual: what an engine is made fastest for.
        maximum: of the profile.
        per_frame: the values count latent frames, of which each is rows * cols tokens on the axis.
    """

    minimum: int
    usual: int
    maximum: int
    per_frame: bool = False


class Axis(NamedTuple):
    """A length that varies: `factor` times the value of the axis `name`."""

    name: str
    factor: int = 1


Shape = tuple[int | Axis, ...]
Sample = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Makes a random tensor of a shape."""


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Port:
    """An input of a graph.

    Attributes:
        name: in the ONNX file and the engine.
        shape: numbers, and axes where a length varies.
        dtype: None for the graph's precision, which tensors have that go from engine to engine.
        sample: makes what `verify` puts in.
    """

    name: str
    shape: Shape
    dtype: torch.dtype | None = torch.float32
    sample: Sample = noise

    def at(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the axes have these values."""
        return tuple(
            length if isinstance(length, int) else values[length.name] * length.factor for length in self.shape
        )


class Output(NamedTuple):
    """An output of a graph: `shape` with -1 where a length varies, `dtype` as of a `Port`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None = torch.float32


def varying(shape: Shape) -> tuple[int, ...]:
    """A shape with -1 where a length varies."""
    return tuple(length if isinstance(length, int) else -1 for length in shape)


Tolerances = Mapping[Precision, float]


@dataclass(frozen=True)
class GraphSpec:
    """One graph: a module with named tensors in and a tuple of tensors out.

    Attributes:
        name: of its files.
        part: where its weights come from.
        module: in float32; its `forward` takes the inputs by name.
        inputs: in the order of the engine.
        outputs: likewise.
        axes: ranges of the axes that vary within one size: all but rows and cols.
        points: values of these axes, in their ranges' units, at which it is verified.
        tolerances: by precision, largest error of an output, as a share of the output's largest value.
    """

    name: str
    part: Part
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Output, ...]
    axes: Mapping[str, Range]
    points: tuple[Mapping[str, int], ...]
    tolerances: Tolerances

    @property
    def has_size(self) -> bool:
        """Whether a shape depends on the size of the video."""
        used = {length.name for port in self.inputs for length in port.shape if isinstance(length, Axis)}
        return bool(used & {"rows", "cols"}) or any(self.axes[name].per_frame for name in used & self.axes.keys())

    def values(self, grid: Grid, point: Mapping[str, int]) -> dict[str, int]:
        """The lengths of all axes at a size and a point."""
        tokens = grid.rows * grid.cols
        free = {name: value * (tokens if self.axes[name].per_frame else 1) for name, value in point.items()}
        return {"rows": grid.rows, "cols": grid.cols, **free}

    def profile(self, grid: Grid) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Shortest, usual and longest shape of each input at a size."""
        low, usual, high = (
            self.values(grid, {name: reach[index] for name, reach in self.axes.items()}) for index in range(3)
        )
        return {port.name: (port.at(low), port.at(usual), port.at(high)) for port in self.inputs}

    def sample(self, grid: Grid, point: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs in float32 at a size and a point; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        values = self.values(grid, point)
        return {port.name: port.sample(port.at(values), generator) for port in self.inputs}
