"""Wan2.1's video autoencoder, running chunk by chunk: 8x in space, 4x in time.

Its convolutions see only the two frames before: these are the feature caches, passed in and out. The first pass of a
video has none ("first"); later passes take those of the previous pass ("next"). The first latent frame is one pixel
frame, each later one is four. `lightvae` is the same network with fewer channels.

Source: the Wan2.1 technical report.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.config import VaeConfig


class FeatureCaches:
    """The feature caches of one pass, in the order of its convolutions: those of the previous pass, and new ones."""

    def __init__(self, caches: Sequence[Tensor] | None) -> None:
        self.is_first = caches is None
        self.new: list[Tensor] = []
        self._previous = iter(caches or ())

    def extend(self, x: Tensor, num_frames: int = 2) -> Tensor:
        """Prepend the previous frames to x, [B, C, F, H, W]; zeros in the first pass."""
        zeros = x.new_zeros(*x.shape[:2], num_frames, *x.shape[3:])
        joined = torch.cat([zeros if self.is_first else next(self._previous), x], dim=2)
        self.new.append(joined[:, :, -num_frames:])
        return joined


def causal_conv(in_channels: int, out_channels: int) -> nn.Conv3d:
    """A convolution over a frame and the two before it, for an input from `FeatureCaches.extend`."""
    return nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=(0, 1, 1))


class ChannelNorm(nn.Module):
    """Root mean square norm over the channels, axis 1."""

    def __init__(self, dim: int, num_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * num_dims))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same; computed in float32."""
        return (F.normalize(x.float(), dim=1) * x.shape[1] ** 0.5).to(x.dtype) * self.gamma


class ResidualBlock(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # The numbers are the layers' names in Wan's checkpoints.
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm(in_channels, 3),
                "2": causal_conv(in_channels, out_channels),
                "3": ChannelNorm(out_channels, 3),
                "6": causal_conv(out_channels, out_channels),
            }
        )
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, caches: FeatureCaches) -> Tensor:
        """[B, in, F, H, W] to [B, out, F, H, W]."""
        h = self.residual["2"](caches.extend(F.silu(self.residual["0"](x))))
        h = self.residual["6"](caches.extend(F.silu(self.residual["3"](h))))
        return self.shortcut(x) + h


class FrameAttention(nn.Module):
    """Attention among the pixels of each frame, with one head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, _caches: FeatureCaches) -> Tensor:
        """[B, C, F, H, W] to the same."""
        frames = fold_time(x)  # [B * F, C, H, W]
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return x + unfold_time(self.proj(attended.reshape(frames.shape)), x.shape[0])


class Downsample(nn.Module):
    """Halves height and width and, if temporal, the number of frames, except the video's first."""

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, caches: FeatureCaches) -> Tensor:
        """[B, C, F, H, W] to [B, C, F', H / 2, W / 2]; F' is 1 + (F - 1) / 2 in the first pass, F / 2 later."""
        x = unfold_time(self.resample(fold_time(x)), x.shape[0])
        if self.time_conv is None:
            return x
        joined = caches.extend(x, num_frames=1)
        if not caches.is_first:
            return self.time_conv(joined)
        # The video's first frame stays as it is, and comes before the next two.
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2) if x.shape[2] > 1 else x


class Upsample(nn.Module):
    """Doubles height and width, halves the channels and, if temporal, doubles the frames, except the video's first."""

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(dim, dim // 2, 3, padding=1)
        )
        self.time_conv = nn.Conv3d(dim, dim * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, caches: FeatureCaches) -> Tensor:
        """[B, C, F, H, W] to [B, C / 2, F', 2 H, 2 W]; F' is 2 F - 1 in the first pass, 2 F later."""
        if self.time_conv is not None:
            # The video's first frame is not doubled, and the convolution never sees it.
            alone, rest = (x[:, :, :1], x[:, :, 1:]) if caches.is_first else (x[:, :, :0], x)
            joined = caches.extend(rest)
            if rest.shape[2] > 0:
                pairs = self.time_conv(joined).unflatten(1, (2, -1))  # [B, 2, C, F, H, W]
                rest = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            x = torch.cat([alone, rest], dim=2)
        return unfold_time(self.resample(fold_time(x)), x.shape[0])


def fold_time(x: Tensor) -> Tensor:
    """[B, C, F, H, W] to [B * F, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_time(x: Tensor, batch: int) -> Tensor:
    """[B * F, C, H, W] to [B, C, F, H, W]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), FrameAttention(dim), ResidualBlock(dim, dim)])


def _head(in_channels: int, out_channels: int) -> nn.ModuleDict:
    return nn.ModuleDict({"0": ChannelNorm(in_channels, 3), "2": causal_conv(in_channels, out_channels)})


class _EncoderBody(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = [config.dim * factor for factor in (1, *config.dim_mult)]
        self.conv1 = causal_conv(3, dims[0])
        layers: list[nn.Module] = []
        for stage, (dim, out) in enumerate(pairwise(dims)):
            layers += [ResidualBlock(dim if at == 0 else out, out) for at in range(config.num_res_blocks)]
            if stage < len(config.temporal_downsample):
                layers.append(Downsample(out, temporal=config.temporal_downsample[stage]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(dims[-1])
        self.head = _head(dims[-1], config.z_dim * 2)

    def forward(self, x: Tensor, caches: FeatureCaches) -> Tensor:
        x = self.conv1(caches.extend(x))
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, caches)
        return self.head["2"](caches.extend(F.silu(self.head["0"](x))))


class _DecoderBody(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = [config.dim * factor for factor in (config.dim_mult[-1], *config.dim_mult[::-1])]
        temporal = config.temporal_downsample[::-1]
        self.conv1 = causal_conv(config.z_dim, dims[0])
        self.middle = _middle(dims[0])
        layers: list[nn.Module] = []
        for stage, (dim, out) in enumerate(pairwise(dims)):
            # The upsampling of each stage but the last has halved the channels.
            first = dim if stage == 0 else dim // 2
            layers += [ResidualBlock(first if at == 0 else out, out) for at in range(config.num_res_blocks + 1)]
            if stage < len(temporal):
                layers.append(Upsample(out, temporal=temporal[stage]))
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(dims[-1], 3)

    def forward(self, x: Tensor, caches: FeatureCaches) -> Tensor:
        x = self.conv1(caches.extend(x))
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, caches)
        return self.head["2"](caches.extend(F.silu(self.head["0"](x))))


class ScaledLatents(nn.Module):
    """The latents' scale: per-channel mean and standard deviation, from the configuration, not from a checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        for name, values in (("mean", config.latents_mean), ("std", config.latents_std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1, 1), persistent=False)


class VaeEncoder(ScaledLatents):
    """Pixels to normalised latents: the mean of the encoder's distribution."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.encoder = _EncoderBody(config)
        self.conv1 = nn.Conv3d(config.z_dim * 2, config.z_dim * 2, 1)

    def forward(self, pixels: Tensor, caches: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Encode the next frames of a video.

        Args:
            pixels: in -1..1, [B, 3, F, H, W]; F is 1 + 4 k in the first pass, 4 k later.
            caches: returned by the previous pass, None in the first.

        Returns:
            Latents [B, z_dim, T, H / 8, W / 8], T being k + 1 in the first pass, k later; and the new caches.
        """
        feature_caches = FeatureCaches(caches)
        mean, _ = self.conv1(self.encoder(pixels, feature_caches)).chunk(2, dim=1)
        return (mean - self.mean) / self.std, feature_caches.new


class VaeDecoder(ScaledLatents):
    """Normalised latents to pixels."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = _DecoderBody(config)

    def forward(self, latents: Tensor, caches: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode the next latent frames of a video.

        Args:
            latents: [B, z_dim, T, H, W].
            caches: returned by the previous pass, None in the first.

        Returns:
            Pixels in -1..1, [B, 3, F, 8 H, 8 W], F being 4 T - 3 in the first pass, 4 T later; and the new caches.
        """
        feature_caches = FeatureCaches(caches)
        pixels = self.decoder(self.conv2(latents * self.std + self.mean), feature_caches)
        return pixels.clamp(-1, 1), feature_caches.new
