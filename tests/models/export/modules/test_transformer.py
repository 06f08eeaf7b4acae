"""The causal transformer against diffusers' one, and its cache against one pass over everything."""

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")

import torch
from torch import Tensor

from export.checkpoint import load_into
from export.config import CheckpointConfig
from export.modules.transformer import CausalTransformer, TextKv
from export.weight_names import wan_names
from tests.models.export.configs import tiny
from tests.models.export.networks import HEIGHT, TOKENS, WIDTH, normal, rope, transformer
from tests.models.export.references import block_causal_bias, chunk_by_chunk, one_pass

NUM_CHUNKS = 8


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def diffusers_transformer(config: CheckpointConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
    ).eval()


@pytest.mark.parametrize("num_frames", [1, 3, 4, 12])
def test_a_chunk_with_an_empty_cache_equals_diffusers(num_frames: int):
    config = tiny()
    theirs = diffusers_transformer(config)
    ours, text_kv = CausalTransformer(config), TextKv(config)
    load_into(wan_names(theirs.state_dict()), ours, text_kv)

    latents, text = normal(2, 4, num_frames, HEIGHT, WIDTH), normal(2, 6, 20, seed=1)
    timestep = torch.tensor([937.5, 250.0])
    expected = theirs(latents, timestep, text).sample
    empty = torch.zeros(config.num_layers, 2, config.num_heads, 0, config.head_dim)
    velocity, k, v = ours(
        latents, timestep[:, None].expand(2, num_frames), *text_kv(text), rope(config, 0, num_frames), empty, empty
    )
    assert k.shape == v.shape == (3, 2, 2, num_frames * TOKENS, 24)
    torch.testing.assert_close(velocity, expected, atol=3e-6, rtol=0)


def test_each_latent_frame_has_its_own_timestep():
    """Diffusers takes one timestep a token, which says the same."""
    config = tiny()
    theirs = diffusers_transformer(config)
    ours, text_kv = CausalTransformer(config), TextKv(config)
    load_into(wan_names(theirs.state_dict()), ours, text_kv)
    latents, text = normal(1, 4, 3, HEIGHT, WIDTH), normal(1, 6, 20, seed=1)
    timesteps = torch.tensor([[1000.0, 625.0, 0.0]])
    expected = theirs(latents, timesteps.repeat_interleave(TOKENS, dim=1), text).sample
    velocity, _, _ = ours(latents, timesteps, *text_kv(text), rope(config, 0, 3))
    torch.testing.assert_close(velocity, expected, atol=3e-6, rtol=0)
    other, _, _ = ours(latents, timesteps.flip(1), *text_kv(text), rope(config, 0, 3))
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("window", "sink"), [(12, 3), (9, 3), (6, 0)])
def test_chunk_by_chunk_equals_one_pass_under_the_block_causal_mask(window: int, sink: int):
    config = tiny(local_attn_size=window, sink_size=sink)
    ours, text_kv, _ = transformer(config)
    num_frames = NUM_CHUNKS * 3
    latents, text = normal(1, 4, num_frames, HEIGHT, WIDTH), text_kv(normal(1, 6, 20, seed=1))
    timesteps = normal(1, num_frames, seed=2).abs() * 300
    bias = block_causal_bias(config, [3] * NUM_CHUNKS)
    once = one_pass(ours, latents, timesteps, text, rope(config, 0, num_frames), bias)
    streamed = chunk_by_chunk(config, ours, latents, timesteps, text, [3] * NUM_CHUNKS)
    torch.testing.assert_close(streamed, once, atol=5e-6, rtol=0)
    # The mask matters: without it the last chunk is another one.
    free, _, _ = ours(latents, timesteps, *text, rope(config, 0, num_frames))
    assert (free - once).abs().max() > 1e-3


def test_positions_in_the_window_equal_absolute_ones_until_a_frame_leaves():
    """RoPE sees only distances, so caching keys before it changes nothing while the window holds all."""
    absolute, relative = tiny(), tiny(rope_positions="window")
    ours, text_kv, weights = transformer(absolute)
    other = CausalTransformer(relative)
    load_into(weights, other, TextKv(relative))
    latents, text = normal(1, 4, 24, HEIGHT, WIDTH), text_kv(normal(1, 6, 20, seed=1))
    timesteps = torch.full((1, 24), 500.0)
    expected = chunk_by_chunk(absolute, ours, latents, timesteps, text, [3] * 8)
    got = chunk_by_chunk(relative, other, latents, timesteps, text, [3] * 8)
    torch.testing.assert_close(got[:, :, :12], expected[:, :, :12], atol=5e-6, rtol=0)
    assert (got[:, :, 12:] - expected[:, :, 12:]).abs().max() > 1e-4


def with_cache(**inputs: Tensor) -> Tensor:
    """The velocity of a second chunk that sees the first one."""
    config = tiny()
    ours, text_kv, _ = transformer(config)
    latents, text = normal(1, 4, 6, HEIGHT, WIDTH), text_kv(normal(1, 6, 20, seed=1))
    timesteps = torch.full((1, 3), 500.0)
    _, k, v = ours(latents[:, :, :3], timesteps, *text, rope(config, 0, 3))
    k, v = inputs.pop("k", k), inputs.pop("v", v)
    if "order" in inputs:
        order = inputs.pop("order")
        k, v = k[:, :, :, order], v[:, :, :, order]
    if "empty" in inputs:
        junk = torch.full_like(k[:, :, :, : int(inputs.pop("empty"))], 7.0)
        k, v = torch.cat([k, junk], dim=3), torch.cat([v, junk], dim=3)
    velocity: Tensor = ours(latents[:, :, 3:], timesteps, *text, rope(config, 3, 3), k, v, **inputs)[0]
    return velocity


def test_a_bias_of_one_is_none_and_another_is_a_weight_of_those_tokens():
    plain = with_cache()
    torch.testing.assert_close(with_cache(past_bias=torch.zeros(18)), plain, atol=2e-6, rtol=0)
    # b = 2 on a token says the same as having it twice.
    twice = torch.cat([torch.arange(18), torch.arange(6, 18)])
    bias = torch.cat([torch.zeros(6), torch.full((12,), 2.0).log()])
    torch.testing.assert_close(with_cache(past_bias=bias), with_cache(order=twice), atol=2e-6, rtol=0)
    assert (with_cache(past_bias=bias) - plain).abs().max() > 1e-3


def test_empty_places_of_a_cache_are_not_seen_and_its_order_does_not_matter():
    bias = torch.cat([torch.zeros(18), torch.full((6,), float("-inf"))])
    torch.testing.assert_close(with_cache(empty=torch.tensor(6), past_bias=bias), with_cache(), atol=2e-6, rtol=0)
    torch.testing.assert_close(with_cache(order=torch.arange(17, -1, -1)), with_cache(), atol=2e-6, rtol=0)


def test_a_recache_sees_the_sink_and_the_latest_of_its_own_frames():
    """Of fifteen frames the last nine fit in the window with a sink of three; there is no causal mask among them."""
    config = tiny()
    ours, text_kv, _ = transformer(config)
    latents, text = normal(1, 4, 15, HEIGHT, WIDTH), text_kv(normal(1, 6, 20, seed=1))
    timesteps = torch.zeros(1, 15)
    frame = torch.arange(15).repeat_interleave(TOKENS)
    is_sink = frame < config.sink
    seen = torch.where(is_sink[:, None], is_sink[None, :], is_sink[None, :] | (frame >= 6)[None, :])
    hidden = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    once = one_pass(ours, latents, timesteps, text, rope(config, 0, 15), hidden)

    _, k, v = ours(latents[:, :, :3], timesteps[:, :3], *text, rope(config, 0, 3))
    velocity, _, _ = ours(latents[:, :, 6:], timesteps[:, 6:], *text, rope(config, 6, 9), k, v)
    torch.testing.assert_close(velocity, once[:, :, 6:], atol=5e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_to_itself_and_near_float32(dtype: torch.dtype):
    config = tiny()
    ours, text_kv, _ = transformer(config)
    latents, text = normal(1, 4, 3, HEIGHT, WIDTH), normal(1, 6, 20, seed=1)
    given = torch.full((1, 3), 937.5), rope(config, 0, 3)

    def run() -> tuple[Tensor, ...]:
        kind = next(ours.parameters()).dtype
        return ours(latents.to(kind), given[0], *text_kv(text.to(kind)), given[1], past_bias=torch.zeros(0))

    expected = run()[0]
    ours.to(dtype)
    text_kv.to(dtype)
    got = run()
    assert {tensor.dtype for tensor in got} == {dtype}
    assert (got[0].float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_timesteps_do_not_lose_digits_in_half_precision(dtype: torch.dtype):
    """A frequency rounded to bfloat16 puts timestep 937.5 a radian off."""
    ours, _, _ = transformer(tiny())
    timesteps = torch.tensor([[937.5, 833.33, 625.0]])
    expected, _ = ours.embed_time(timesteps)
    got, _ = ours.to(dtype).embed_time(timesteps)
    assert (got.float() - expected).norm() < 0.01 * expected.norm()


def test_hints_are_added_to_the_outputs_of_their_layers():
    config = tiny()
    ours, text_kv, _ = transformer(config)
    latents, text = normal(1, 4, 3, HEIGHT, WIDTH), text_kv(normal(1, 6, 20, seed=1))
    hints = normal(2, 1, 18, config.dim, seed=3)
    outputs: dict[int, Tensor] = {}
    inputs: dict[int, Tensor] = {}
    for layer, block in enumerate(ours.blocks):
        block.register_forward_hook(lambda _, _args, out, layer=layer: outputs.update({layer: out[0]}))
        block.register_forward_pre_hook(lambda _, args, layer=layer: inputs.update({layer: args[0]}))
    ours(latents, torch.full((1, 3), 500.0), *text, rope(config, 0, 3), hints=hints)
    torch.testing.assert_close(inputs[1], outputs[0] + hints[0], atol=0, rtol=0)
    torch.testing.assert_close(inputs[2], outputs[1], atol=0, rtol=0)
    zero = ours(latents, torch.full((1, 3), 500.0), *text, rope(config, 0, 3), hints=hints * 0)[0]
    none = ours(latents, torch.full((1, 3), 500.0), *text, rope(config, 0, 3))[0]
    torch.testing.assert_close(zero, none, atol=0, rtol=0)
    last = torch.stack([hints[0] * 0, hints[1]])
    assert (
        ours(latents, torch.full((1, 3), 500.0), *text, rope(config, 0, 3), hints=last)[0] - none
    ).abs().max() > 0.01


def test_golden_slice_of_a_seeded_network():
    expected = torch.tensor([[0.550737, 1.873327, 0.041685], [-0.898709, -2.506749, -0.898763]])
    torch.testing.assert_close(with_cache()[0, :2, 1, 1, :3], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_position_embedding_is_nothing_where_its_weights_are_and_else_tells_places_apart(scale: float):
    without, network = tiny(), CausalTransformer(tiny(position_embedding=True)).eval()
    plain, text_kv, weights = transformer(without)
    assert not [name for name, _ in plain.named_parameters() if "position" in name]
    name = "position_embedding.linear.weight"
    load_into({**weights, name: scale * normal(48, 16, seed=9)}, network, TextKv(without))
    # Of one colour, so that tokens differ by their places alone.
    latents, text = normal(1, 4, 3, 1, 1).expand(-1, -1, -1, HEIGHT, WIDTH), text_kv(normal(1, 6, 20, seed=1))
    given = latents, torch.full((1, 3), 500.0), *text, rope(without, 0, 3)
    expected, got = plain(*given)[0], network(*given)[0]
    same = (got - expected).abs().max() < 1e-6
    assert same == (scale == 0)
    if scale:
        embedded = network.embed(latents)[0, :TOKENS]
        assert torch.pdist(embedded).min() > 0.1
        taller = network.embed(normal(1, 4, 1, 1, 1).expand(-1, -1, -1, 2 * HEIGHT, WIDTH))
        assert taller.shape == (1, 2 * TOKENS, 48)
