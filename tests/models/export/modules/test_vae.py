"""The VAE against diffusers' one, and chunk by chunk against all at once."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")

from torch import Tensor

from export.checkpoint import load_into
from export.config import WAN_LATENTS_MEAN, WAN_LATENTS_STD, VaeConfig
from export.modules.vae import VaeDecoder, VaeEncoder
from export.weight_names import wan_vae_names
from tests.models.export.configs import tiny
from tests.models.export.networks import in_pieces, normal

CONFIG = tiny().vae
HEIGHT, WIDTH = 16, 24


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def build(config: VaeConfig) -> tuple[torch.nn.Module, VaeEncoder, VaeDecoder]:
    """Diffusers' VAE with random weights, and ours with the same."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLWan(
        base_dim=config.dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample),
        latents_mean=list(config.latents_mean),
        latents_std=list(config.latents_std),
    ).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.add_(normal(*parameter.shape) * 0.1)
    encoder, decoder = VaeEncoder(config).eval(), VaeDecoder(config).eval()
    load_into(wan_vae_names(theirs.state_dict(), config), encoder, decoder)
    return theirs, encoder, decoder


@pytest.fixture(scope="module")
def vae() -> tuple[torch.nn.Module, VaeEncoder, VaeDecoder]:
    with torch.no_grad():
        return build(CONFIG)


def scaled(latents: Tensor, config: VaeConfig = CONFIG) -> Tensor:
    """What the transformer sees of diffusers' latents."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return (latents - mean) / std


def unscaled(latents: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (CONFIG.latents_mean, CONFIG.latents_std))
    return latents * std + mean


def video(num_frames: int) -> Tensor:
    return normal(1, 3, num_frames, HEIGHT, WIDTH).tanh()


@pytest.mark.parametrize("sizes", [[1], [37], [13, 12, 12], [9, 12, 4], [1, 4, 4, 8]])
def test_encoding_in_pieces_equals_diffusers_at_once(vae, sizes: list[int]):
    theirs, encoder, _ = vae
    pixels = video(sum(sizes))
    expected = scaled(theirs.encode(pixels).latent_dist.mean)
    latents = in_pieces(encoder, pixels, sizes)
    assert latents.shape == (1, 4, 1 + (sum(sizes) - 1) // 4, HEIGHT // 8, WIDTH // 8)
    torch.testing.assert_close(latents, expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("sizes", [[1], [10], [4, 3, 3], [3, 3, 3], [1, 1, 1, 2], [2, 1]])
def test_decoding_in_pieces_equals_diffusers_at_once(vae, sizes: list[int]):
    theirs, _, decoder = vae
    latents = normal(2, 4, sum(sizes), 2, 3)
    expected = theirs.decode(unscaled(latents)).sample
    pixels = in_pieces(decoder, latents, sizes)
    assert pixels.shape == (2, 3, 4 * sum(sizes) - 3, HEIGHT, WIDTH)
    torch.testing.assert_close(pixels, expected, atol=3e-6, rtol=0)
    assert (expected.abs() < 1).float().mean() > 0.5  # not all clamped


def test_pieces_need_the_caches(vae):
    _, encoder, decoder = vae
    pixels, latents = video(25), normal(1, 4, 6, 2, 3)
    _, caches = encoder(pixels[:, :, :13])
    piece, _ = encoder(pixels[:, :, 13:], [cache * 0 for cache in caches])
    assert (piece - encoder(pixels)[0][:, :, 4:]).abs().max() > 1e-3
    _, caches = decoder(latents[:, :, :3])
    piece, _ = decoder(latents[:, :, 3:], [cache * 0 for cache in caches])
    assert (piece - decoder(latents)[0][:, :, 9:]).abs().max() > 1e-3


def test_caches_keep_their_shapes_and_nothing_is_kept_elsewhere(vae):
    """So one engine serves every later chunk, and two videos can take turns."""
    _, encoder, decoder = vae
    for network, x, first, size in ((encoder, video(37), 13, 12), (decoder, normal(1, 4, 10, 2, 3), 4, 3)):
        _, one = network(x[:, :, :first])
        again, two = network(x[:, :, first : first + size], one)
        assert [cache.shape for cache in one] == [cache.shape for cache in two]
        network(x.flip(2)[:, :, :first])
        torch.testing.assert_close(network(x[:, :, first : first + size], one)[0], again, atol=0, rtol=0)


def test_lightvae_is_the_same_network_with_a_quarter_of_the_channels():
    full = CONFIG.model_copy(update={"dim": 16})
    light = full.model_copy(update={"type": "lightvae", "dim": full.dim // 4})
    theirs, encoder, decoder = build(light)
    pixels = video(13)
    expected = theirs.encode(pixels).latent_dist.mean
    torch.testing.assert_close(in_pieces(encoder, pixels, [5, 8]), scaled(expected), atol=3e-6, rtol=0)
    got = in_pieces(decoder, scaled(expected), [1, 3])
    torch.testing.assert_close(got, theirs.decode(expected).sample, atol=3e-6, rtol=0)
    assert encoder.encoder.conv1.weight.shape[0] == 4


def test_names_are_those_of_wans_own_checkpoint(vae):
    """Some of each kind, as Wan2.1_VAE.pth has them."""
    _, encoder, decoder = vae
    config = CONFIG
    names = {name for network in (encoder, decoder) for name, _ in network.named_parameters()}
    assert {
        "conv1.weight",
        "conv2.bias",
        "encoder.conv1.weight",
        "encoder.downsamples.0.residual.0.gamma",
        "encoder.downsamples.3.shortcut.weight",
        "encoder.downsamples.5.time_conv.bias",
        "encoder.downsamples.2.resample.1.weight",
        "encoder.middle.0.residual.6.weight",
        "encoder.middle.1.to_qkv.weight",
        "encoder.head.0.gamma",
        "decoder.upsamples.3.time_conv.weight",
        "decoder.upsamples.4.shortcut.weight",
        "decoder.upsamples.11.resample.1.bias",
        "decoder.upsamples.14.residual.2.bias",
        "decoder.head.2.weight",
    } <= names
    weights = {name: torch.zeros(1) for name in names}
    assert wan_vae_names(weights, config) == weights


def test_the_latents_scale_is_that_of_wans_vae():
    defaults = diffusers.AutoencoderKLWan(base_dim=2).config
    assert tuple(defaults.latents_mean) == WAN_LATENTS_MEAN
    assert tuple(defaults.latents_std) == WAN_LATENTS_STD
