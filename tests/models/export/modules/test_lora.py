"""LoRA branches, merged weights, and the forms of LoRA files."""

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from export.errors import BadCheckpoint
from export.lora import Adapter, LowRank, attach, merge, read_adapter
from export.modules.layers import Linear, has_loras
from export.modules.transformer import CausalTransformer, TextKv
from export.weight_names import diffusers_name
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


def pair(key: str, part: LowRank, down: str, up: str) -> dict[str, Tensor]:
    alpha = torch.tensor([part.factor * part.down.shape[0]])
    return {f"{key}.{down}": part.down, f"{key}.{up}": part.up, f"{key}.alpha": alpha}


KOHYA = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")
FORMS: dict[str, Callable[[str, LowRank], dict[str, Tensor]]] = {
    "peft": peft,
    "kohya": kohya,
    "underscored": underscored,
    "peft, adapter named": lambda name, part: pair(
        f"base_model.model.{name}", part, "lora_A.my_style.weight", "lora_B.my_style.weight"
    ),
    "ComfyUI": lambda name, part: pair(f"diffusion_model.{name}", part, *PEFT),
    "DiffSynth": lambda name, part: pair(f"pipe.dit.{name}", part, "lora_A.default.weight", "lora_B.default.weight"),
    "diffusers": lambda name, part: pair(f"transformer.{diffusers_name(name)}", part, *PEFT),
    "diffusers, earlier": lambda name, part: pair(diffusers_name(name), part, "lora.down.weight", "lora.up.weight"),
    "diffusers, attention processors": lambda name, part: pair(
        f"{diffusers_name(name)}", part, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"
    ),
    "two underscores": lambda name, part: pair(f"lora_unet__{name.replace('.', '_')}", part, *KOHYA),
    "half dotted": lambda name, part: pair(f"lora_unet_{name.replace('blocks.', 'blocks_')}", part, *KOHYA),
    "underscored, diffusers": lambda name, part: pair(
        f"lora_unet_{diffusers_name(name).replace('.', '_')}", part, *KOHYA
    ),
    "underscored, musubi": lambda name, part: pair(f"lora_transformer_{name.replace('.', '_')}", part, *KOHYA),
    "FSDP": lambda name, part: pair(f"model._fsdp_wrapped_module.{name}", part, *PEFT),
    "without weight": lambda name, part: pair(f"diffusion_model.{name}", part, "lora_A", "lora_B"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_keys_is_one_adapter(form: Callable[[str, LowRank], dict[str, Tensor]]):
    given = adapter("one", rank=4, seed=10)
    weights: dict[str, Tensor] = {}
    for layer, part in given.layers.items():
        weights |= form(layer, part)
    read = read_adapter("one", weights, linear_layers(*networks()), default_alpha=8)
    assert read.layers.keys() == given.layers.keys()
    assert read.left_out == ()
    for layer, part in given.layers.items():
        assert read.layers[layer].factor == pytest.approx(part.factor)
        assert torch.equal(read.layers[layer].down, part.down)
        assert torch.equal(read.layers[layer].up, part.up)


def test_ranks_may_differ_from_layer_to_layer():
    shapes = {"blocks.0.self_attn.q": 4, "blocks.1.self_attn.q": 1, "blocks.2.self_attn.q": 16}
    weights = {}
    for layer, rank in shapes.items():
        weights |= pair(layer, LowRank(normal(rank, 48), normal(48, rank), 2 / rank), *KOHYA)
    read = read_adapter("one", weights, linear_layers(*networks()))
    assert {layer: (len(part.down), part.factor) for layer, part in read.layers.items()} == {
        layer: (rank, pytest.approx(2 / rank)) for layer, rank in shapes.items()
    }


# -- What is added to a parameter as it is --------------------------------------------------------------------

Q = "blocks.0.self_attn.q"
DIFFS: dict[str, tuple[str, tuple[int, ...]]] = {
    f"diffusion_model.{Q}.diff": (f"{Q}.weight", (48, 48)),
    f"diffusion_model.{Q}.diff_b": (f"{Q}.bias", (48,)),
    "diffusion_model.blocks.0.self_attn.norm_q.diff": ("blocks.0.self_attn.norm_q.weight", (48,)),
    "diffusion_model.blocks.1.cross_attn.norm_k.diff": ("blocks.1.cross_attn.norm_k.weight", (48,)),
    "diffusion_model.blocks.1.norm3.diff": ("blocks.1.norm3.weight", (48,)),
    "diffusion_model.blocks.1.norm3.diff_b": ("blocks.1.norm3.bias", (48,)),
    "diffusion_model.blocks.2.diff_m": ("blocks.2.modulation", (1, 6, 48)),
    "diffusion_model.head.diff_m": ("head.modulation", (1, 2, 48)),
    "diffusion_model.patch_embedding.diff": ("patch_embedding.weight", (48, 4, 1, 2, 2)),
    "diffusion_model.patch_embedding.diff_b": ("patch_embedding.bias", (48,)),
    "diffusion_model.text_embedding.0.diff_b": ("text_embedding.0.bias", (48,)),
}


def read_diffs(weights: dict[str, Tensor], *modules: torch.nn.Module) -> Adapter:
    parameters = [name for module in modules for name, _ in module.named_parameters()]
    return read_adapter("one", weights, linear_layers(*modules), parameters=parameters)


def plus(scale: float, diffs: dict[str, Tensor]) -> tuple[CausalTransformer, TextKv]:
    """Networks whose parameters have the diffs added, by nothing but their names."""
    changed = networks()
    for key, diff in diffs.items():
        name = DIFFS[key][0]
        for module in changed:
            parameters = dict(module.named_parameters())
            if name in parameters:
                transposed = name == f"{Q}.weight"
                parameters[name] += scale * (diff.T if transposed else diff)
    return changed


def test_diffs_are_added_times_the_scale():
    diffs = {key: 0.1 * normal(*shape, seed=seed) for seed, (key, (_, shape)) in enumerate(DIFFS.items())}
    plain = velocity(*networks())
    for subset in (diffs, *({key: value} for key, value in diffs.items())):
        branch, merged = networks(), networks()
        read = read_diffs(subset, *branch)
        assert set(read.diffs) == {DIFFS[key][0] for key in subset}
        attach([read], *branch)
        merge(read, *merged)
        torch.testing.assert_close(velocity(*branch, [0.0]), plain, atol=1e-6, rtol=0)
        for scale in (1.0, -0.5):
            expected = velocity(*plus(scale, subset))
            assert (expected - plain).abs().max() > 1e-5
            torch.testing.assert_close(velocity(*branch, [scale]), expected, atol=5e-6, rtol=0)
        torch.testing.assert_close(velocity(*merged), velocity(*plus(1.0, subset)), atol=5e-6, rtol=0)


def test_each_adapter_scales_its_own_diffs_beside_its_matrices():
    bias, norm = f"diffusion_model.{Q}.diff_b", "diffusion_model.blocks.1.norm3.diff"
    first = {bias: normal(48), norm: 0.1 * normal(48, seed=1)}
    second = {bias: normal(48, seed=2)}
    low_rank = adapter("two", rank=2, seed=50, layers=LAYERS[:1])
    branch = networks()
    attach([read_diffs(first, *branch), read_diffs(second, *branch), low_rank], *branch)
    expected = plus(0.5, first)
    for module, other in zip(expected, plus(-1.5, second), strict=True):
        plain = dict(networks()[0 if module is expected[0] else 1].named_parameters())
        added = dict(other.named_parameters())
        for name, parameter in module.named_parameters():
            parameter.add_(added[name] - plain[name])
    layers = {name: LowRank(p.down, p.up, p.factor * 2) for name, p in low_rank.layers.items()}
    merge(Adapter("two", layers), *expected)
    torch.testing.assert_close(velocity(*branch, [0.5, -1.5, 2.0]), velocity(*expected), atol=5e-6, rtol=0)


def test_matrices_of_the_patch_embedding_are_multiplied_out():
    down, up = normal(2, 4, 1, 2, 2), normal(48, 2, 1, 1, 1, seed=1)
    keys = {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up}
    read = read_diffs({**keys, "patch_embedding.alpha": torch.tensor(1.0)}, *networks())
    expected = 0.5 * torch.einsum("orxyz,rcthw->octhw", up, down)
    torch.testing.assert_close(read.diffs["patch_embedding.weight"], expected)


def test_networks_without_diffs_have_no_branch():
    assert not has_loras(networks()[0])


def test_layers_that_the_network_lacks_are_counted():
    kept = peft("blocks.0.ffn.0", LowRank(normal(2, 48), normal(64, 2), 1))
    other = LowRank(normal(2, 48), normal(48, 2), 1)
    more = {**peft("blocks.0.cross_attn.k_img", other), **peft("blocks.9.self_attn.q", other)}
    read = read_diffs({**kept, **more, "diffusion_model.img_emb.proj.0.diff_b": normal(3)}, *networks())
    assert list(read.layers) == ["blocks.0.ffn.0"]
    assert read.warning == (
        "LoRA one: 3 of 4 layers left out, because this network does not have them: "
        "diffusion_model.blocks.0.cross_attn.k_img, diffusion_model.blocks.9.self_attn.q, "
        "diffusion_model.img_emb.proj.0"
    )
    assert read_diffs(kept, *networks()).warning is None
    with pytest.raises(BadCheckpoint, match="LoRA one has only keys that fit no layer"):
        read_diffs(more, *networks())


def test_diffs_of_another_size_are_refused():
    read = read_diffs({f"diffusion_model.{Q}.diff_b": normal(40)}, *networks())
    with pytest.raises(BadCheckpoint, match=r"of another size: it adds \[40\] to blocks\.0\.self_attn\.q\.bias"):
        attach([read], *networks())


def test_underscored_names_are_what_they_should_be():
    keys = set(underscored("blocks.0.self_attn.q", LowRank(normal(1, 2), normal(2, 1), 1)))
    start = "lora_unet_blocks_0_self_attn_q"
    assert keys == {f"{start}.lora_down.weight", f"{start}.lora_up.weight", f"{start}.alpha"}


def test_without_an_alpha_the_factor_is_one():
    read = read_adapter("one", peft("blocks.0.ffn.0", LowRank(normal(2, 48), normal(64, 2), 3)), ["blocks.0.ffn.0"])
    assert read.layers["blocks.0.ffn.0"].factor == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["blocks.0.ffn.0.weight"], r"fit no layer: blocks\.0\.ffn\.0\.weight"),
        (["blocks.0.ffn.0.dora_scale"], "is a DoRA"),
        (["blocks.0.ffn.0.hada_w1_a"], "is a LoHa"),
        (["blocks.0.ffn.0.lokr_w1"], "is a LoKr"),
        (["blocks.0.ffn.0.lora_up.weight", "blocks.0.ffn.0.lora_down.weight", "blocks.0.ffn.0.alpha"], "one number"),
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
