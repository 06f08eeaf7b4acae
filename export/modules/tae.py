"""TAEHV, a tiny video autoencoder that runs chunk by chunk: 8x in space, 4x in time.

Its convolutions see one frame each. A memory block also sees its input for the previous frame: these frames, one per
block, are the caches, passed in and out. The first pass of a video has none ("first"); later passes take those of the
previous pass ("next"). `lighttae` is the same network for latents that are not normalised.

Inside the networks, frames are stacked in the batch, [B * F, C, H, W].

Source: https://github.com/madebyollin/taehv; for `lighttae` https://github.com/ModelTC/LightX2V.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from export.config import TaeConfig
from export.modules.vae import ScaledLatents, fold_time, unfold_time

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class FrameMemory:
    """The caches of one pass, in the order of its memory blocks: those of the previous pass, and the new ones."""

    def __init__(self, batch: int, caches: Sequence[Tensor] | None) -> None:
        self.new_caches: list[Tensor] = []
        self.batch = batch
        self._before = None if caches is None else iter(caches)

    def previous(self, x: Tensor) -> Tensor:
        """The frame before each frame of x, [B * F, C, H, W]; zeros before a video's first."""
        frames = x.unflatten(0, (self.batch, -1))  # [B, F, C, H, W]
        before = torch.zeros_like(frames[:, 0]) if self._before is None else next(self._before)
        joined = torch.cat([before.unsqueeze(1), frames], dim=1)
        self.new_caches.append(joined[:, -1])
        return joined[:, :-1].flatten(0, 1)


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the previous one, with a residual connection."""

    def __init__(self, dim: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(2 * dim, dim), activation(), _conv(dim, dim), activation(), _conv(dim, dim))
        self.act = activation()

    def forward(self, x: Tensor, memory: FrameMemory) -> Tensor:
        """[B * F, C, H, W] to the same."""
        return self.act(self.conv(torch.cat([x, memory.previous(x)], dim=1)) + x)


class TimePool(nn.Module):
    """Merges each `stride` frames into one."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(dim * stride, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B * F, C, H, W] to [B * F / stride, C, H, W]."""
        return self.conv(x.unflatten(0, (-1, self.stride)).flatten(1, 2))


class TimeGrow(nn.Module):
    """Expands each frame to `stride` frames."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(dim, dim * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B * F, C, H, W] to [B * F * stride, C, H, W]."""
        return self.conv(x).unflatten(1, (self.stride, -1)).flatten(0, 1)


class SoftClamp(nn.Module):
    """Bends values into -3..3, the range that a latent should have."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return torch.tanh(x / 3) * 3


def _conv(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)


# The indexes in these lists are the layers' names in TAEHV's checkpoints, so layers without weights count too.


def _encoder_layers(config: TaeConfig) -> nn.ModuleList:
    dim, activation = config.dim, _ACTIVATIONS[config.activation]
    layers: list[nn.Module] = [_conv(3, dim), activation()]
    for temporal in config.temporal_downsample:
        layers += [TimePool(dim, 2 if temporal else 1), _conv(dim, dim, stride=2, bias=False)]
        layers += [MemoryBlock(dim, activation) for _ in range(config.num_res_blocks)]
    return nn.ModuleList([*layers, _conv(dim, config.z_dim)])


def _decoder_layers(config: TaeConfig) -> nn.ModuleList:
    activation = _ACTIVATIONS[config.activation]
    dims = [config.dim * factor for factor in reversed(config.dim_mult)]
    layers: list[nn.Module] = [SoftClamp(), _conv(config.z_dim, dims[0]), activation()]
    for (dim, out), temporal in zip(pairwise(dims), reversed(config.temporal_downsample), strict=True):
        layers += [MemoryBlock(dim, activation) for _ in range(config.num_res_blocks)]
        layers += [nn.Upsample(scale_factor=2), TimeGrow(dim, 2 if temporal else 1), _conv(dim, out, bias=False)]
    return nn.ModuleList([*layers, activation(), _conv(dims[-1], 3)])


def run_layers(layers: nn.ModuleList, x: Tensor, memory: FrameMemory) -> Tensor:
    """Run frames [B * F, C, H, W] through the layers of an encoder or a decoder."""
    for layer in layers:
        x = layer(x, memory) if isinstance(layer, MemoryBlock) else layer(x)
    return x


class TaeEncoder(ScaledLatents):
    """Pixels to normalised latents.

    A latent frame is made from a whole group of frames, four in TAEHV. As in Wan's VAE, the first latent frame belongs
    to pixel frame 0 and latent frame t to the four that end with frame 4 t, so the first group lacks three frames:
    copies of frame 0 stand in for them. Nothing after frame 4 t is seen then, and a single frame is encoded as a still
    video.

    TAEHV's released encoders were trained differently: latent frame t belongs to the same frames as in Wan's VAE, but
    is made from the group that begins with frame 4 t. They need three more frames in the first pass, which then has no
    copies. With 1 + 4 k frames, their latents come three frames late.
    """

    def __init__(self, config: TaeConfig) -> None:
        super().__init__(config)
        self.group = config.temporal_factor
        self.encoder = _encoder_layers(config)

    def forward(self, pixels: Tensor, caches: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Encode the next frames of a video.

        Args:
            pixels: in -1..1, [B, 3, F, H, W]; F is 1 + 4 k in the first pass, 4 k later. An encoder that looks ahead
                takes 4 + 4 k in the first pass.
            caches: returned by the previous pass, None in the first.

        Returns:
            Latents [B, z_dim, T, H / 8, W / 8], T being k + 1 in the first pass, k later; and the new caches.

        Raises:
            ValueError: a later pass's frames are not a whole number of groups.
        """
        batch, _, num_frames, *_ = pixels.shape
        num_missing = -num_frames % self.group
        if num_missing and caches is not None:
            raise ValueError(f"{num_frames} pixel frames: passes after the first take a multiple of {self.group}")
        if num_missing:
            pixels = torch.cat([pixels[:, :, :1].expand(-1, -1, num_missing, -1, -1), pixels], dim=2)
        memory = FrameMemory(batch, caches)
        latents = unfold_time(run_layers(self.encoder, fold_time((pixels + 1) / 2), memory), batch)
        return (latents - self.mean) / self.std, memory.new_caches


class TaeDecoder(ScaledLatents):
    """Normalised latents to pixels."""

    def __init__(self, config: TaeConfig) -> None:
        super().__init__(config)
        self.group = config.temporal_factor
        self.decoder = _decoder_layers(config)

    def forward(self, latents: Tensor, caches: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode the next latent frames of a video.

        The first latent frame becomes four frames like the others; only the last of them belongs to the video.

        Args:
            latents: [B, z_dim, T, H, W].
            caches: returned by the previous pass, None in the first.

        Returns:
            Pixels, [B, 3, F, 8 H, 8 W], F being 4 T - 3 in the first pass, 4 T later; and the new caches. They are in
            -1..1, except while training, so that pixels outside have gradients too.
        """
        batch = latents.shape[0]
        memory = FrameMemory(batch, caches)
        frames = run_layers(self.decoder, fold_time(latents * self.std + self.mean), memory)
        pixels = unfold_time(frames, batch) * 2 - 1
        if caches is None:
            pixels = pixels[:, :, self.group - 1 :]
        return pixels if self.training else pixels.clamp(-1, 1), memory.new_caches
