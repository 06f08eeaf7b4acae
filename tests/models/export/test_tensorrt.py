"""Engines of TensorRT-RTX: the builder's configuration, what is built and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
library = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: see docs/export.md")

from torch import Tensor, nn

from export.checkpoint import load_networks, read_weights
from export.errors import BuildFailed, UnusedInput
from export.graph_specs import graph_specs
from export.lora import attach, read_adapter
from export.modules.layers import Linear
from export.onnx_files import to_program, write_onnx
from export.spec import Axis, Component, GraphSpec, Grid, InputSpec, OutputSpec, Precision, dynamic_shape
from export.tensorrt import RTX_TARGETS, BuildLog, BuildOptions, build_engine, configure, make_logger, save_timing_cache
from filmstrip.runtime.engines.manifest import Builder
from tests.models.export.checkpoints import write_checkpoint, write_lora

GRIDS = (Grid(2, 3), Grid(5, 4))
NOT_SM75 = tuple(target for target in RTX_TARGETS if target != "sm75")
SMALL_VAE = {
    "base_dim": 8,
    "z_dim": 4,
    "num_res_blocks": 1,
    "dim_mult": [1, 2],
    "temporal_downsample": [True],  # its stage has all that the others have
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
ALL = (
    *("text_encoder", "text_kv", "transformer", "vace_text_kv", "vace", "vae_encoder_image"),
    *("vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"),
)

pytestmark = pytest.mark.timeout(600)  # compiling takes its time on a busy machine


def specs(folder: Path, *, with_lora: bool = False, **changed: Any) -> Mapping[str, GraphSpec]:
    write_checkpoint(folder, vae=SMALL_VAE, num_layers=1, **changed)  # translating takes longer for each layer
    networks = load_networks(folder)
    if with_lora:
        parts = [part for part in (networks.transformer, networks.vace) if part is not None]
        layers = [name for name, layer in networks.transformer.named_modules() if isinstance(layer, Linear)]
        attach(
            [read_adapter("ink", read_weights(write_lora(folder / "ink.pth", seed=1, layer="blocks.0.ffn.2")), layers)],
            *parts,
        )
    return {spec.name: spec for spec in graph_specs(networks, int(with_lora))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, GraphSpec]:
    return specs(tmp_path_factory.mktemp("whole"), with_lora=True, vace_layers=[0])


def rtx(precision: Precision = Precision.BF16, targets: tuple[str, ...] = NOT_SM75) -> BuildOptions:
    return BuildOptions(Builder.TENSORRT_RTX, precision, targets)


def test_these_are_all_graphs(whole: Mapping[str, GraphSpec]):
    assert set(whole) == set(ALL)
    assert "lora_scales" in {port.name for port in whole["transformer"].inputs}


@pytest.mark.parametrize("name", ALL)
def test_a_graph_compiles_in_bfloat16_for_every_gpu_and_both_sizes(
    name: str, whole: Mapping[str, GraphSpec], tmp_path: Path
):
    spec = whole[name]
    write_onnx(spec, Precision.BF16, tmp_path / "graph.onnx")
    shares: list[float] = []
    engine = build_engine(tmp_path / "graph.onnx", spec, GRIDS, rtx(), lambda _phase, share: shares.append(share))
    assert engine.grids == (GRIDS if spec.depends_on_size else ())
    assert len(engine.activation_bytes) == (len(GRIDS) if spec.depends_on_size else 1)
    assert shares == sorted(shares)
    assert 0 < shares[len(shares) // 2] < 1 == shares[-1]
    engine.write(tmp_path / "graph.plan")
    assert (tmp_path / "graph.plan").read_bytes() == bytes(engine.plan)
    num_weight_bytes = 2 * sum(weight.numel() for weight in spec.module.parameters())
    assert len(engine.plan) > num_weight_bytes
    assert {path.name for path in tmp_path.iterdir()} == {"graph.onnx", "graph.onnx.data", "graph.plan"}


def test_a_transformer_that_rotates_cached_keys_compiles_in_float16_for_sm75_too(tmp_path: Path):
    """Without hints. With absolute positions, the command builds the same in tests/models/longlive/test_export.py."""
    spec = specs(tmp_path, vace_layers=[], rope_positions="window")["transformer"]
    names = {port.name for port in spec.inputs}
    assert "hints" not in names
    assert "past_cos" in names
    write_onnx(spec, Precision.FP16, tmp_path / "graph.onnx")
    assert build_engine(tmp_path / "graph.onnx", spec, GRIDS, rtx(Precision.FP16, tuple(RTX_TARGETS))).plan


# -- What is refused ----------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, *, x: Tensor, y: Tensor) -> tuple[Tensor]:  # noqa: ARG002 - as it should not be
        return (2 * x,)


class Stretched(nn.Module):
    def forward(self, *, x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (x.expand(y.shape[0], 2, 3),)


class Added(nn.Module):
    def forward(self, *, x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (x + y.sum(0),)


def small(module: nn.Module) -> GraphSpec:
    shape = (Axis("rows"), 2, 3)
    return GraphSpec(
        "small",
        Component.VAE,
        module,
        (InputSpec("x", (2, 3)), InputSpec("y", shape)),
        (OutputSpec("out", dynamic_shape(shape if isinstance(module, Stretched) else (2, 3))),),
        axes={},
        test_points=({},),
        tolerances={},
    )


def translated(spec: GraphSpec, path: Path) -> Path:
    to_program(spec, Precision.FP32).save(path, external_data=True)  # without `write_onnx`'s own look at the inputs
    return path


@pytest.mark.parametrize("module", [Doubled(), Stretched()], ids=["ignored", "only its shape is read"])
def test_an_input_without_effect_is_an_error_that_quotes_the_library(module: nn.Module, tmp_path: Path):
    spec = small(module)
    with pytest.raises(UnusedInput, match=r"small: .*\by\b.*unused"):
        build_engine(translated(spec, tmp_path / "small.onnx"), spec, GRIDS, rtx(Precision.FP32))


def test_a_graph_whose_inputs_all_count_is_built(tmp_path: Path):
    spec = small(Added())
    assert build_engine(translated(spec, tmp_path / "small.onnx"), spec, GRIDS, rtx(Precision.FP32)).plan


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": (InputSpec("x", (2, 3)), InputSpec("z", (2, 3)))}, "inputs differ from the spec at y, z"),
        (
            {"inputs": (InputSpec("x", (2, 3)), InputSpec("y", (2, 3), torch.int64))},
            "at y: the file has FLOAT, the spec INT64",
        ),
        ({"outputs": (OutputSpec("other", (2, 3)),)}, "outputs differ from the spec at other, out"),
        ({"outputs": (OutputSpec("out", (2, 3), torch.float16),)}, "the file has FLOAT, the spec HALF"),
    ],
)
def test_a_file_that_is_not_the_specs_is_refused(changed: dict[str, Any], message: str, tmp_path: Path):
    spec = small(Added())
    with pytest.raises(BuildFailed, match=message):
        build_engine(translated(spec, tmp_path / "small.onnx"), replace(spec, **changed), GRIDS, rtx(Precision.FP32))


def test_what_cant_be_parsed_names_the_node(tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    x, out = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in ("x", "out"))
    node = onnx.helper.make_node("Nonsense", ["x"], ["out"], name="the_node")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [out])), tmp_path / "bad.onnx")
    with pytest.raises(BuildFailed, match=r"bad\.onnx can't be parsed: node the_node \(Nonsense\)"):
        build_engine(tmp_path / "bad.onnx", small(Added()), GRIDS, rtx())


@pytest.mark.parametrize("content", [b"not an ONNX file", None])
def test_a_broken_file_is_refused(content: bytes | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(BuildFailed, match=r"broken\.onnx can't be parsed"):
        build_engine(tmp_path / "broken.onnx", small(Added()), GRIDS, rtx())


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_limits_and_timings_reach_the_library(tmp_path: Path):
    logger = make_logger(library, BuildLog())
    builder = library.Builder(logger)
    options = BuildOptions(
        Builder.TENSORRT,
        Precision.FP16,
        workspace_gib=1.5,
        optimization_level=1,
        timing_cache=tmp_path / "timings",
    )
    config = builder.create_builder_config()
    configure(library, config, options)
    assert config.get_memory_pool_limit(library.MemoryPoolType.WORKSPACE) == 3 << 29
    assert config.builder_optimization_level == 1
    save_timing_cache(config, tmp_path / "timings")
    kept = (tmp_path / "timings").read_bytes()
    assert kept
    again = builder.create_builder_config()
    configure(library, again, options)
    assert bytes(again.get_timing_cache().serialize()) == kept


def test_targets_reach_the_library():
    logger = make_logger(library, BuildLog())
    builder = library.Builder(logger)
    config = builder.create_builder_config()
    configure(library, config, BuildOptions(Builder.TENSORRT_RTX, Precision.FP16, ("sm75", "sm120")))
    capabilities = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert capabilities == [library.ComputeCapability.SM75, library.ComputeCapability.SM120]
