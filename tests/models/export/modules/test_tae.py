"""The tiny autoencoder against the computation written out frame by frame, in pieces, and beside Wan's VAE."""

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, relu, silu

from export.checkpoint import load_into
from export.config import LightTaeConfig, TaeConfig
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.vae import VaeDecoder, VaeEncoder
from export.weight_names import Weights
from tests.models.export.configs import tiny
from tests.models.export.networks import in_pieces, normal, random_weights

CONFIG = TaeConfig(dim=8, z_dim=4)
HEIGHT, WIDTH = 16, 24


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def build(config: TaeConfig) -> tuple[Weights, TaeEncoder, TaeDecoder]:
    encoder, decoder = TaeEncoder(config).eval(), TaeDecoder(config).eval()
    weights = random_weights(encoder, decoder)
    weights["decoder.22.bias"] += 0.5  # so that pixels lie around the middle
    load_into(weights, encoder, decoder)
    return weights, encoder, decoder


@pytest.fixture(scope="module")
def tae() -> tuple[Weights, TaeEncoder, TaeDecoder]:
    return build(CONFIG)


# -- The computation, one frame after the other, by the places that weights have in taew2_1.pth -----------------------

Frames = list[Tensor]
"""[B, C, H, W] each."""
Act = Callable[[Tensor], Tensor]


def conv(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    return conv2d(x, weight, weights.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def remember(weights: Weights, names: list[str], frames: Frames, act: Act) -> Frames:
    for name in names:
        past = torch.zeros_like(frames[0])
        after = []
        for x in frames:
            h = act(conv(weights, f"{name}.conv.0", torch.cat([x, past], dim=1)))
            h = conv(weights, f"{name}.conv.4", act(conv(weights, f"{name}.conv.2", h)))
            after.append(act(h + x))
            past = x
        frames = after
    return frames


def encoded(weights: Weights, groups: Tensor, act: Act = relu) -> Tensor:
    """Latents of pixels in 0..1 that are whole groups of four, [B, 3, F, H, W]."""
    frames = [act(conv(weights, "encoder.0", x)) for x in groups.unbind(2)]
    for pool, stride in ((2, 2), (7, 2), (12, 1)):
        together = [torch.cat(frames[at : at + stride], dim=1) for at in range(0, len(frames), stride)]
        frames = [conv(weights, f"encoder.{pool}.conv", x) for x in together]
        frames = [conv(weights, f"encoder.{pool + 1}", x, stride=2) for x in frames]
        frames = remember(weights, [f"encoder.{pool + at}" for at in (2, 3, 4)], frames, act)
    return torch.stack([conv(weights, "encoder.17", x) for x in frames], dim=2)


def decoded(weights: Weights, latents: Tensor, act: Act = relu) -> Tensor:
    """Pixels in 0..1 or around of latents, four frames each, [B, 3, 4 T, 8 H, 8 W]."""
    frames = [act(conv(weights, "decoder.1", 3 * torch.tanh(x / 3))) for x in latents.unbind(2)]
    for grow, stride in ((7, 1), (13, 2), (19, 2)):
        frames = remember(weights, [f"decoder.{grow - at}" for at in (4, 3, 2)], frames, act)
        grown = [interpolate(x, scale_factor=2, mode="nearest") for x in frames]
        grown = [conv(weights, f"decoder.{grow}.conv", x) for x in grown]
        frames = [conv(weights, f"decoder.{grow + 1}", x) for two in grown for x in two.chunk(stride, dim=1)]
    return torch.stack([conv(weights, "decoder.22", act(x)) for x in frames], dim=2)


def video(num_frames: int, batch: int = 1) -> Tensor:
    return normal(batch, 3, num_frames, HEIGHT, WIDTH).tanh()


@pytest.mark.parametrize("sizes", [[1], [37], [13, 12, 12], [9, 12, 4], [1, 4, 4, 8]])
def test_encoding_in_pieces_equals_the_whole_video_after_three_copies_of_its_first_frame(tae, sizes: list[int]):
    weights, encoder, _ = tae
    pixels = video(sum(sizes), batch=2)
    expected = encoded(weights, torch.cat([pixels[:, :, [0, 0, 0]], pixels], dim=2) / 2 + 0.5)
    latents = in_pieces(encoder, pixels, sizes)
    assert latents.shape == (2, 4, 1 + (sum(sizes) - 1) // 4, HEIGHT // 8, WIDTH // 8)
    torch.testing.assert_close(latents, expected, atol=2e-6, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.parametrize("sizes", [[4], [16, 12], [4, 4, 8]])
def test_an_encoder_that_looks_ahead_gets_whole_groups_from_the_start(tae, sizes: list[int]):
    weights, encoder, _ = tae
    pixels = video(sum(sizes), batch=2)
    torch.testing.assert_close(in_pieces(encoder, pixels, sizes), encoded(weights, pixels / 2 + 0.5), atol=2e-6, rtol=0)


@pytest.mark.parametrize("sizes", [[1], [10], [4, 3, 3], [3, 3, 3], [1, 1, 1, 2], [2, 1]])
def test_decoding_in_pieces_equals_the_whole_video_without_its_first_three_frames(tae, sizes: list[int]):
    weights, _, decoder = tae
    latents = normal(2, 4, sum(sizes), 2, 3) * 2
    expected = (decoded(weights, latents)[:, :, 3:] * 2 - 1).clamp(-1, 1)
    pixels = in_pieces(decoder, latents, sizes)
    assert pixels.shape == (2, 3, 4 * sum(sizes) - 3, HEIGHT, WIDTH)
    torch.testing.assert_close(pixels, expected, atol=3e-6, rtol=0)
    assert (expected.abs() < 1).float().mean() > 0.5  # not all clamped
    assert expected.std() > 0.1


def test_the_activation_and_the_latents_scale_are_those_of_the_configuration():
    mean, std = (0.1, -0.2, 0.3, 0.4), (1.5, 2.0, 0.5, 1.0)
    config = CONFIG.model_copy(update={"activation": "silu", "latents_mean": mean, "latents_std": std})
    weights, encoder, decoder = build(config)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    pixels, latents = video(1), normal(1, 4, 3, 2, 3)
    expected = (encoded(weights, pixels.expand(-1, -1, 4, -1, -1) / 2 + 0.5, silu) - mean) / std
    torch.testing.assert_close(encoder(pixels)[0], expected, atol=3e-6, rtol=0)
    expected = (decoded(weights, latents * std + mean, silu)[:, :, 3:] * 2 - 1).clamp(-1, 1)
    torch.testing.assert_close(decoder(latents)[0], expected, atol=3e-6, rtol=0)


def test_sizes_are_those_of_the_configuration():
    """A network of our own: 4x in space, 2x in time."""
    config = TaeConfig(dim=6, z_dim=5, dim_mult=(1, 2, 3), num_res_blocks=1, temporal_downsample=(True, False))
    encoder, decoder = TaeEncoder(config).eval(), TaeDecoder(config).eval()
    load_into(random_weights(encoder, decoder), encoder, decoder)
    pixels = video(7)
    latents = in_pieces(encoder, pixels, [3, 2, 2])
    assert latents.shape == (1, 5, 4, HEIGHT // 4, WIDTH // 4)
    torch.testing.assert_close(latents, encoder(pixels)[0], atol=2e-6, rtol=0)
    assert in_pieces(decoder, latents, [2, 2]).shape == pixels.shape


# -- Where frames belong ----------------------------------------------------------------------------------------------


def first_change(network: nn.Module, x: Tensor, frame: int) -> int:
    """The first frame of the output that another frame of the input changes."""
    changed = x.clone()
    changed[:, :, frame] += 0.5
    differences = (network(changed)[0] - network(x)[0]).abs().amax(dim=(0, 1, 3, 4))
    return int((differences > 1e-6).nonzero()[0])


@pytest.mark.parametrize("kind", ["wan", "tae"])
def test_frames_belong_together_as_in_wans_vae(tae, kind: str):
    if kind == "wan":
        encoder, decoder = VaeEncoder(tiny().vae).eval(), VaeDecoder(tiny().vae).eval()
        load_into(random_weights(encoder, decoder), encoder, decoder)
    else:
        _, encoder, decoder = tae
    pixels, latents = video(13), normal(1, 4, 4, 2, 3)
    assert [first_change(encoder, pixels, frame) for frame in range(13)] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert [first_change(decoder, latents, frame) for frame in range(4)] == [0, 1, 5, 9]


def test_caches_are_one_frame_a_block_and_nothing_is_kept_elsewhere(tae):
    """So one engine serves every later chunk, and two videos can take turns."""
    _, encoder, decoder = tae
    for network, x, first, size in ((encoder, video(37), 13, 12), (decoder, normal(1, 4, 10, 2, 3), 4, 3)):
        _, one = network(x[:, :, :first])
        again, two = network(x[:, :, first : first + size], one)
        assert [cache.shape for cache in one] == [cache.shape for cache in two]
        assert len(one) == 9
        assert all(cache.shape[0] == 1 and cache.ndim == 4 for cache in one)
        network(x.flip(2)[:, :, :first])
        torch.testing.assert_close(network(x[:, :, first : first + size], one)[0], again, atol=0, rtol=0)
        without, _ = network(x[:, :, first : first + size], [cache * 0 for cache in one])
        assert (without - again).abs().max() > 1e-3


def test_frames_that_are_no_whole_groups_are_refused_after_the_first_pass(tae):
    _, encoder, _ = tae
    _, caches = encoder(video(5, batch=2))
    with pytest.raises(ValueError, match="2 pixel frames: passes after the first take a multiple of 4"):
        encoder(video(2, batch=2), caches)


def test_pixels_outside_of_the_range_have_gradients_in_training():
    decoder = TaeDecoder(CONFIG)
    latents = normal(1, 4, 1, 1, 1)
    decoder.decoder[-1].bias.fill_(2.0)
    assert (decoder.eval()(latents)[0] == 1).all()
    with torch.enable_grad():
        pixels, _ = decoder.train()(latents)
        pixels.sum().backward()
    assert (pixels > 1).all()
    assert decoder.decoder[-1].bias.grad.min() > 0


def test_the_shapes_are_those_of_taew2_1():
    """Some of each kind, as the released file has them."""
    encoder, decoder = TaeEncoder(LightTaeConfig()), TaeDecoder(LightTaeConfig())
    shapes = {name: list(value.shape) for network in (encoder, decoder) for name, value in network.named_parameters()}
    assert {
        "encoder.0.weight": [64, 3, 3, 3],
        "encoder.2.conv.weight": [64, 128, 1, 1],
        "encoder.3.weight": [64, 64, 3, 3],
        "encoder.4.conv.0.weight": [64, 128, 3, 3],
        "encoder.12.conv.weight": [64, 64, 1, 1],
        "encoder.16.conv.4.bias": [64],
        "encoder.17.weight": [16, 64, 3, 3],
        "decoder.1.weight": [256, 16, 3, 3],
        "decoder.3.conv.0.weight": [256, 512, 3, 3],
        "decoder.7.conv.weight": [256, 256, 1, 1],
        "decoder.8.weight": [128, 256, 3, 3],
        "decoder.13.conv.weight": [256, 128, 1, 1],
        "decoder.19.conv.weight": [128, 64, 1, 1],
        "decoder.20.weight": [64, 64, 3, 3],
        "decoder.22.weight": [3, 64, 3, 3],
    }.items() <= shapes.items()
    assert len(shapes) == 2 * (4 + 3 * (2 + 3 * 6))  # the ends, and three stages with three blocks each
