"""What is declared of each graph: lengths, profiles, and tolerances that rounding alone stays within."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor, nn

from export.checkpoint import attach_loras, load_networks
from export.errors import BadConfig, UnusedInput
from export.graph_specs import TOLERANCES, graph_specs, grid_of
from export.onnx_files import write_onnx
from export.spec import Component, GraphSpec, Grid, InputSpec, OutputSpec, Precision, Size
from export.verify import compare
from tests.models.export.checkpoints import write_checkpoint, write_lora
from tests.models.export.configs import LONGLIVE, parse_config

SIZE, GRID = Size(32, 48), Grid(2, 3)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, GraphSpec]]:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder)
    networks = load_networks(folder)
    attach_loras(networks, {"ink": write_lora(folder / "lora.pt", 0), "neon": write_lora(folder / "lora2.pt", 1)})
    with torch.no_grad():
        yield {spec.name: spec for spec in graph_specs(networks, 2)}


def test_the_transformer_takes_any_chunk_and_any_past_of_the_window(specs: dict[str, GraphSpec]):
    spec = specs["transformer"]
    points = [tuple(point.values()) for point in spec.test_points]
    assert {(3, 0), (4, 0), (3, 3), (3, 12), (12, 3)} <= set(points)  # latent frames of the chunk, of the cache
    shortest, usual, longest = spec.profile(GRID)["past_k"]
    assert (shortest, usual, longest) == ((3, 1, 2, 0, 24), (3, 1, 2, 9 * 6, 24), (3, 1, 2, 12 * 6, 24))
    assert [shape[2:] for shape in spec.profile(GRID)["latents"]] == [(1, 4, 6), (3, 4, 6), (12, 4, 6)]


def test_scales_are_inputs_of_the_graphs_that_loras_change(specs: dict[str, GraphSpec]):
    assert [name for name, spec in specs.items() if "lora_scales" in spec.profile(GRID)] == ["transformer"]


def test_shapes_of_all_inputs_lie_within_the_profile_at_every_point(specs: dict[str, GraphSpec]):
    for spec in specs.values():
        profile = spec.profile(GRID)
        for point in spec.test_points:
            for name, value in spec.sample(GRID, point).items():
                low, _, high = profile[name]
                assert all(a <= b <= c for a, b, c in zip(low, value.shape, high, strict=True)), (spec.name, name)


def test_outputs_have_the_declared_shapes(specs: dict[str, GraphSpec]):
    for spec in specs.values():
        for point in spec.test_points[:2]:
            for output, made in zip(spec.outputs, spec.module(**spec.sample(GRID, point)), strict=True):
                assert len(output.shape) == made.ndim
                assert all(want in (-1, have) for want, have in zip(output.shape, made.shape, strict=True))


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_rounding_stays_within_the_tolerance(specs: dict[str, GraphSpec], precision: Precision):
    """PyTorch's own computation in 16 bit: what an engine may be off by, at the least, and more than float32 may."""
    for spec in specs.values():
        rounded = copy.deepcopy(spec.module).to(precision.dtype)

        def run(inputs, spec=spec, rounded=rounded):
            return dict(zip((output.name for output in spec.outputs), rounded(**inputs), strict=True))

        worst = max(one.error for one in compare(spec, {SIZE: GRID}, precision, "torch", run))
        assert TOLERANCES[Precision.FP32] < worst < TOLERANCES[precision], spec.name


@pytest.mark.parametrize(("size", "grid"), [(Size(320, 576), (20, 36)), (Size(480, 832), (30, 52))])
def test_tokens_of_a_size(size: Size, grid: tuple[int, int]):
    assert grid_of(parse_config(LONGLIVE), size) == grid


@pytest.mark.parametrize(("size", "text"), [(Size(328, 576), "576x328"), (Size(320, 8), "8x320")])
def test_a_size_must_be_a_multiple_of_a_token(size: Size, text: str):
    with pytest.raises(BadConfig, match=f"{text} must be a multiple of 16x16$"):
        grid_of(parse_config(LONGLIVE), size)


def test_a_size_that_is_only_possible_turned_round_is_refused_with_a_hint():
    config = parse_config({**LONGLIVE, "patch_size": [1, 2, 4]})
    with pytest.raises(BadConfig, match=r"144x48 must be a multiple of 32x16$"):
        grid_of(config, Size(width=144, height=48))
    hint = "16x32 must be a multiple of 32x16: did you mean 32x16\\? sizes are WIDTHxHEIGHT since 0.1.0$"
    with pytest.raises(BadConfig, match=hint):
        grid_of(config, Size(width=16, height=32))


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, *, x: Tensor, **_forgotten: Tensor) -> tuple[Tensor]:
        return (x * self.weight,)


def test_a_graph_that_forgets_an_input_is_refused(tmp_path: Path):
    inputs = (InputSpec("x", (3,)), InputSpec("forgotten", (3,)))
    spec = GraphSpec("one", Component.VAE, Forgetful(), inputs, (OutputSpec("y", (3,)),), {}, ({},), TOLERANCES)
    with pytest.raises(UnusedInput, match="one ignores forgotten"):
        write_onnx(spec, Precision.FP32, tmp_path / "one.onnx")
