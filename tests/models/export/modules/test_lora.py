"""LoRA branches, merged weights, and the forms of LoRA files."""

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from export.errors import BadCheckpoint
from export.lora import Adapter, LowRank, attach, merge, read_adapter
from export.modules.layers import Linear
from export.modules.transformer import CausalTransformer, TextKv
from tests.models.export.configs import tiny
from tests.models.export.networks import HEIGHT, WIDTH, normal, rope, transformer

LAYERS = ("blocks.0.self_attn.q", "blocks.1.ffn.2", "blocks.2.cross_attn.k", "time_projection.1", "head.head")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def networks() -> tuple[CausalTransformer, TextKv]:
    return transformer(tiny())[:2]


def linear_layers(*modules: torch.nn.Module) -> dict[str, Linear]:
    return {name: part for module in modules for name, part in module.named_modules() if isinstance(part, Linear)}


def adapter(name: str, rank: int, seed: int, layers: tuple[str, ...] = LAYERS) -> Adapter:
    shapes = {name: part.weight.shape for name, part in linear_layers(*networks()).items()}
    return Adapter(
        name,
        {
            layer: LowRank(
                normal(rank, shapes[layer][0], seed=seed + at) * 0.2,
                normal(shapes[layer][1], rank, seed=seed + 100 + at) * 0.2,
                8 / rank,
            )
            for at, layer in enumerate(layers)
        },
    )


def velocity(network: CausalTransformer, text_kv: TextKv, scales: list[float] | None = None) -> Tensor:
    given = None if scales is None else torch.tensor(scales)
    text = text_kv(normal(1, 6, 20, seed=1), given)
    latents = normal(1, 4, 3, HEIGHT, WIDTH)
    result: Tensor = network(latents, torch.full((1, 3), 500.0), *text, rope(tiny(), 0, 3), lora_scales=given)[0]
    return result


def test_a_branch_at_scale_one_is_the_merged_weights_and_at_zero_nothing():
    one = adapter("one", rank=4, seed=10)
    plain, branch, merged = networks(), networks(), networks()
    attach([one], *branch)
    merge(one, *merged)
    expected = velocity(*merged)
    assert (expected - velocity(*plain)).abs().max() > 0.01
    torch.testing.assert_close(velocity(*branch, [1.0]), expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(velocity(*branch, [0.0]), velocity(*plain), atol=0, rtol=0)


def test_several_adapters_each_have_their_scale():
    one, two = adapter("one", rank=4, seed=10), adapter("two", rank=2, seed=50, layers=LAYERS[1:3])
    branch = networks()
    attach([one, two], *branch)
    for scales in ([0.5, 0.0], [0.0, 2.0], [0.7, -1.5]):
        merged = networks()
        for lora, scale in zip((one, two), scales, strict=True):
            layers = {name: LowRank(p.down, p.up, p.factor * scale) for name, p in lora.layers.items()}
            merge(Adapter(lora.name, layers), *merged)
        torch.testing.assert_close(velocity(*branch, scales), velocity(*merged), atol=5e-6, rtol=0)


def test_an_adapter_of_another_network_is_refused():
    strange = Adapter("odd", {"blocks.9.ffn.0": LowRank(normal(2, 48), normal(64, 2), 1)})
    with pytest.raises(BadCheckpoint, match=r"odd changes blocks\.9\.ffn\.0"):
        attach([strange], *networks())
    misshapen = Adapter("odd", {"blocks.0.ffn.0": LowRank(normal(2, 40), normal(64, 2), 1)})
    with pytest.raises(BadCheckpoint, match=r"blocks\.0\.ffn\.0 is \[2, 40\] and \[64, 2\].* takes 48 .* returns 64"):
        merge(misshapen, *networks())


def peft(layer: str, part: LowRank) -> dict[str, Tensor]:
    return {f"diffusion_model.{layer}.lora_A.weight": part.down, f"diffusion_model.{layer}.lora_B.weight": part.up}


def kohya(layer: str, part: LowRank) -> dict[str, Tensor]:
    alpha = torch.tensor(part.factor * part.down.shape[0])
    return {f"{layer}.lora_down.weight": part.down, f"{layer}.lora_up.weight": part.up, f"{layer}.alpha": alpha}


def underscored(layer: str, part: LowRank) -> dict[str, Tensor]:
    start = layer.replace(".", "_")
    return {f"lora_unet_{start}{name.removeprefix(layer)}": value for name, value in kohya(layer, part).items()}


@pytest.mark.parametrize("form", [peft, kohya, underscored])
def test_three_forms_of_keys_are_one_adapter(form: Callable[[str, LowRank], dict[str, Tensor]]):
    given = adapter("one", rank=4, seed=10)
    weights: dict[str, Tensor] = {}
    for layer, part in given.layers.items():
        weights |= form(layer, part)
    read = read_adapter("one", weights, linear_layers(*networks()), default_alpha=8)
    assert read.layers.keys() == given.layers.keys()
    for layer, part in given.layers.items():
        assert read.layers[layer].factor == pytest.approx(part.factor)
        assert torch.equal(read.layers[layer].down, part.down)
        assert torch.equal(read.layers[layer].up, part.up)


def test_underscored_names_are_what_they_should_be():
    keys = set(underscored("blocks.0.self_attn.q", LowRank(normal(1, 2), normal(2, 1), 1)))
    start = "lora_unet_blocks_0_self_attn_q"
    assert keys == {f"{start}.lora_down.weight", f"{start}.lora_up.weight", f"{start}.alpha"}


def test_without_an_alpha_the_factor_is_one():
    read = read_adapter("one", peft("blocks.0.ffn.0", LowRank(normal(2, 48), normal(64, 2), 3)), ())
    assert read.layers["blocks.0.ffn.0"].factor == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["blocks.0.ffn.0.weight"], r"fit no layer: blocks\.0\.ffn\.0\.weight"),
        (["lora_unet_blocks_7_ffn_0.lora_up.weight"], "fit no layer: lora_unet_blocks_7_ffn_0"),
        (["blocks.0.ffn.0.lora_A.weight"], r"only one of the two matrices of blocks\.0\.ffn\.0"),
        ([], "is empty"),
    ],
)
def test_a_file_that_is_not_a_lora_is_refused(keys: list[str], message: str):
    with pytest.raises(BadCheckpoint, match=message):
        read_adapter("one", {key: normal(2, 2) for key in keys}, linear_layers(*networks()))


def test_longlives_base_and_lora_are_merged_by_the_alpha_of_the_configuration():
    """The keys of its lora.pt: peft's prefix, no alphas."""
    network, text_kv = networks()
    name = "blocks.0.self_attn.q"
    part = LowRank(normal(4, 48) * 0.2, normal(48, 4, seed=1) * 0.2, 1)
    keys = {f"base_model.model.{name}.lora_A.weight": part.down, f"base_model.model.{name}.lora_B.weight": part.up}
    before = linear_layers(network)[name].weight.clone()
    merge(read_adapter("longlive", keys, linear_layers(network, text_kv), default_alpha=8), network, text_kv)
    expected = before + 2 * (part.up @ part.down).T
    torch.testing.assert_close(linear_layers(network)[name].weight, expected)
