"""What the export declares about a graph: its inputs and outputs, which lengths vary, how exact it must be.

A graph is exported once for all video sizes. Rows and columns of tokens are axes like any other, and an engine has one
profile per size, so all sizes share one engine's weights.

A graph change that the runtime must follow needs a new `SPEC_VERSION`, in `filmstrip.runtime.engines.manifest`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Precision(StrEnum):
    """The number format that a graph computes in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, and of tensors that only go from engine to engine."""
        return {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[self]


class Component(StrEnum):
    """The part of a checkpoint's folder that a graph's weights come from."""

    TRANSFORMER = "transformer"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"


class Size(NamedTuple):
    """Height and width of a video in pixels, in the order of arrays and JSON; people read and write WIDTHxHEIGHT."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def turned(self) -> "Size":
        """Height and width swapped."""
        return Size(self.width, self.height)


def did_you_mean(size: Size) -> str:
    """The hint for a size that is possible with width and height swapped: until 0.1.0, sizes were HEIGHTxWIDTH."""
    return f"did you mean {size.turned}? sizes are WIDTHxHEIGHT since 0.1.0"


class Grid(NamedTuple):
    """Rows and columns of tokens in a latent frame at one size: the values of the axes `rows` and `cols`."""

    rows: int
    cols: int


class AxisRange(NamedTuple):
    """The values of an axis in an engine's profile.

    Attributes:
        min: the smallest.
        opt: the one that the engine is optimised for.
        max: the largest.
        per_frame: whether the values count latent frames, each of which takes rows * cols tokens on the axis.
    """

    min: int
    opt: int
    max: int
    per_frame: bool = False


class Axis(NamedTuple):
    """A length that varies: `factor` times the value of the axis `name`."""

    name: str
    factor: int = 1


SymbolicShape = tuple[int | Axis, ...]
"""A shape with an axis wherever a length varies."""
Sampler = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Creates a random tensor of a shape."""


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normally distributed random numbers."""
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class InputSpec:
    """An input of a graph.

    Attributes:
        name: in the ONNX file and the engine.
        shape: numbers, and axes where a length varies.
        dtype: None for the graph's precision, as for tensors that only go from engine to engine.
        sample: creates random values for verification.
    """

    name: str
    shape: SymbolicShape
    dtype: torch.dtype | None = torch.float32
    sample: Sampler = noise

    def resolve(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for these axis lengths."""
        return tuple(
            length if isinstance(length, int) else lengths[length.name] * length.factor for length in self.shape
        )


class OutputSpec(NamedTuple):
    """An output of a graph: `shape` has -1 where a length varies, `dtype` is as in `InputSpec`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None = torch.float32


def dynamic_shape(shape: SymbolicShape) -> tuple[int, ...]:
    """The shape with -1 where a length varies."""
    return tuple(length if isinstance(length, int) else -1 for length in shape)


Tolerances = Mapping[Precision, float]


@dataclass(frozen=True)
class GraphSpec:
    """One graph: a module with named tensors in and a tuple of tensors out.

    Attributes:
        name: of its files.
        component: where its weights come from.
        module: in float32; its `forward` takes the inputs by name.
        inputs: in the engine's order.
        outputs: in the engine's order.
        axes: ranges of the axes that vary within one size: all but rows and cols.
        test_points: values of these axes, in the units of their ranges, at which the graph is verified.
        tolerances: for each precision, the largest error of an output as a share of the output's largest value.
    """

    name: str
    component: Component
    module: nn.Module
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    axes: Mapping[str, AxisRange]
    test_points: tuple[Mapping[str, int], ...]
    tolerances: Tolerances

    @property
    def depends_on_size(self) -> bool:
        """Whether a shape depends on the size of the video."""
        used = {length.name for tensor in self.inputs for length in tensor.shape if isinstance(length, Axis)}
        return bool(used & {"rows", "cols"}) or any(self.axes[name].per_frame for name in used & self.axes.keys())

    def axis_lengths(self, grid: Grid, point: Mapping[str, int]) -> dict[str, int]:
        """The lengths of all axes at a size and a test point."""
        tokens = grid.rows * grid.cols
        free = {name: value * (tokens if self.axes[name].per_frame else 1) for name, value in point.items()}
        return {"rows": grid.rows, "cols": grid.cols, **free}

    def profile(self, grid: Grid) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """The smallest, optimal and largest shape of each input at a size."""
        low, opt, high = (
            self.axis_lengths(grid, {name: values[index] for name, values in self.axes.items()}) for index in range(3)
        )
        return {tensor.name: (tensor.resolve(low), tensor.resolve(opt), tensor.resolve(high)) for tensor in self.inputs}

    def sample(self, grid: Grid, point: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random float32 inputs at a size and a test point; equal for equal seeds."""
        generator = torch.Generator().manual_seed(seed)
        lengths = self.axis_lengths(grid, point)
        return {tensor.name: tensor.sample(tensor.resolve(lengths), generator) for tensor in self.inputs}
