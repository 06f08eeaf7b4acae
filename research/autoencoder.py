"""Trains the tiny autoencoder on videos that are drawn while it goes on."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.config import TaeConfig
from export.modules.tae import FrameMemory, MemoryBlock, TaeDecoder, TaeEncoder, run_layers
from export.modules.vae import fold_time, unfold_time
from research.augmentations import CONTROLS, random_mask, without
from research.checkpoints import Budget, Training, load_averages
from research.muon import optimizers
from research.settings import AutoencoderSettings, Settings
from tests.support.toyworld.grammar import random_scene
from tests.support.toyworld.videos import SIDE, Frames, Shot, masks, render

FILE_NAME = "autoencoder.pt"
DECODER_NAME = "decoder.pt"
SCALES_NAME = "latents.json"
_LOOKS = {"drawn": 0.6, "outlined": 0.16, "gray": 0.08, "scribble": 0.08, "masked": 0.08}
_LOG_EVERY = 50
_NUM_TESTED = 8
_FIRST_LATENTS = 4.0
_FIRST_CONTRAST = 0.1
_SPREAD = 1.3  # SiLU lets less through than the initial weights were drawn for


def train_autoencoder(
    folder: Path,
    settings: Settings,
    budget: Budget,
    *,
    seed: int = 0,
    after_step: Callable[[], None] | None = None,
) -> Training:
    """Train until the budget is used up, going on from the folder's state; then measure the latents' scales.

    The scales go to `latents.json`: without them latents are as the encoder makes them.
    """
    encoder, decoder = new_autoencoder(settings.tae, seed)
    stage = settings.autoencoder
    training = Training(
        folder / FILE_NAME,
        {"encoder": encoder, "decoder": decoder},
        optimizers([encoder, decoder], stage, _border_layers(decoder)),
        seed=seed,
        budget=budget,
        ema=0.998,
        after_step=after_step,
    )
    _train(training, encoder, decoder, settings)
    _write_scales(folder, settings)
    return training


def train_decoder(
    folder: Path,
    settings: Settings,
    budget: Budget,
    *,
    seed: int = 4,
    after_step: Callable[[], None] | None = None,
) -> Training:
    """Train the decoder on, for the latents of the trained encoder, which stay what the generator has learnt.

    Raises:
        FileNotFoundError: the autoencoder is not trained yet.
    """
    encoder, decoder = TaeEncoder(settings.tae), TaeDecoder(settings.tae)
    load_averages(folder / FILE_NAME, {"encoder": encoder, "decoder": decoder})
    encoder.requires_grad_(False)
    stage = settings.autoencoder
    training = Training(
        folder / DECODER_NAME,
        {"decoder": decoder},
        optimizers([decoder], stage, _border_layers(decoder)),
        seed=seed,
        budget=budget,
        ema=0.998,
        after_step=after_step,
    )
    _train(training, encoder, decoder, settings)
    return training


def _train(training: Training, encoder: TaeEncoder, decoder: TaeDecoder, settings: Settings) -> None:
    stage = settings.autoencoder
    losses = []
    while not training.is_over:
        loss = _loss(encoder, decoder, stage, training.random)
        loss.backward()
        norm = training.update()
        losses.append(loss.item())
        if training.step % _LOG_EVERY == 0:
            rate = training.step * stage.batch / training.seconds
            training.log(loss=round(float(np.mean(losses)), 5), norm=round(norm, 3), videos_s=round(rate, 2))
            losses.clear()
        if training.step % (20 * _LOG_EVERY) == 0:
            training.log(psnr=_averages_psnr(training, encoder, decoder, settings))
        training.save_now_and_then()
    training.save()
    training.log(psnr=_averages_psnr(training, encoder, decoder, settings))


def new_autoencoder(config: TaeConfig, seed: int) -> tuple[TaeEncoder, TaeDecoder]:
    """An autoencoder with seeded initial weights, in training."""
    torch.manual_seed(seed)
    encoder, decoder = TaeEncoder(config), TaeDecoder(config)
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=_SPREAD / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, MemoryBlock):
            last = cast("nn.Conv2d", module.conv[-1])
            nn.init.normal_(last.weight, std=0.3 / math.sqrt(last.weight[0].numel()))
    to_channels_last(encoder, decoder)
    with torch.no_grad():
        # Latents of about 1, far above the noise that they get, and pictures that are grey.
        cast("nn.Conv2d", encoder.encoder[-1]).weight.mul_(_FIRST_LATENTS)
        last = cast("nn.Conv2d", decoder.decoder[-1])
        last.weight.mul_(_FIRST_CONTRAST)
        nn.init.constant_(cast("Tensor", last.bias), 0.5)
    return encoder, decoder


def to_channels_last(*networks: nn.Module) -> None:
    """Lay the weights of convolutions out as they are fastest on a CPU."""
    for module in chain.from_iterable(network.modules() for network in networks):
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def trained_autoencoder(folder: Path, settings: Settings) -> tuple[TaeEncoder, TaeDecoder]:
    """The trained autoencoder; its latents have mean 0 and standard deviation 1.

    Raises:
        FileNotFoundError: it is not trained yet.
    """
    config = settings.tae if not (folder / SCALES_NAME).exists() else scaled(settings, folder).tae
    encoder, decoder = TaeEncoder(config).eval(), TaeDecoder(config).eval()
    load_averages(folder / FILE_NAME, {"encoder": encoder, "decoder": decoder})
    if (folder / DECODER_NAME).exists():
        load_averages(folder / DECODER_NAME, {"decoder": decoder})
    return encoder, decoder


def scaled(settings: Settings, folder: Path) -> Settings:
    """The settings with the measured scales of the latents in the autoencoder's configuration.

    Raises:
        FileNotFoundError: the autoencoder is not trained yet.
    """
    scales = json.loads((folder / SCALES_NAME).read_text("utf-8-sig"))
    values = {**settings.checkpoint_values, "vae": {**settings.checkpoint_values["vae"], **scales}}
    return replace(settings, checkpoint_values=values)


def random_videos(settings: AutoencoderSettings, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Videos of random scenes from random places, and how much each of their pixels counts, 1 on average.

    Returns:
        Pixels [B, 3, F, H, W] in -1..1 and weights [B, 1, F, H, W].
    """
    num_frames = 4 * settings.latent_frames - 3
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=random)))
    videos, weights = [], []
    for _ in range(settings.batch):
        switch = int(rng.integers(1, num_frames))
        shots: list[Shot] = [(random_scene(rng), switch), (random_scene(rng), num_frames - switch)]
        if rng.random() < 0.6:
            shots = [(shots[0][0], num_frames)]
        start = (float(rng.integers(SIDE)), float(rng.integers(SIDE)))
        look = str(rng.choice(list(_LOOKS), p=list(_LOOKS.values())))
        frames = render(shots, start, outlined=look == "outlined")
        if look in CONTROLS:
            frames = CONTROLS[look].process(frames)
        elif look == "masked":
            frames = without(frames, random_mask(rng))
        videos.append(frames)
        weights.append(masks(shots, start, outlined=look == "outlined"))
    counted = 1 + (settings.object_weight - 1) * torch.from_numpy(np.stack(weights)).unsqueeze(1)
    return to_pixels(np.stack(videos)), counted / counted.mean()


def to_pixels(frames: Frames) -> Tensor:
    """uint8 [B, F, H, W, 3] to [B, 3, F, H, W] in -1..1."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def psnr(encoder: TaeEncoder, decoder: TaeDecoder, settings: AutoencoderSettings) -> tuple[float, float]:
    """Of videos that no step has seen, in a first chunk and a next one: of all, and of objects alone, in dB."""
    random = torch.Generator().manual_seed(2**40)
    errors, object_errors = [], []
    with torch.inference_mode():
        for _ in range(_NUM_TESTED):
            pixels, weights = random_videos(replace(settings, latent_frames=6), random)
            squares = (_streamed(encoder, decoder, pixels) - pixels).square().mean(1, keepdim=True) / 4
            is_object = weights > weights.mean()
            errors.append(float(squares.mean()))
            object_errors.append(float(squares[is_object].mean()))
    return _decibels(errors), _decibels(object_errors)


def _decibels(errors: list[float]) -> float:
    return round(-10 * math.log10(float(np.mean(errors))), 2)


def _streamed(encoder: TaeEncoder, decoder: TaeDecoder, pixels: Tensor) -> Tensor:
    made, states = [], (None, None)
    for part in pixels.split([9, pixels.shape[2] - 9], dim=2):
        latents, encoder_state = encoder(part, states[0])
        decoded, decoder_state = decoder(latents, states[1])
        states = (encoder_state, decoder_state)
        made.append(decoded)
    return torch.cat(made, dim=2)


def _loss(encoder: TaeEncoder, decoder: TaeDecoder, settings: AutoencoderSettings, random: torch.Generator) -> Tensor:
    pixels, weights = random_videos(settings, random)
    with torch.autocast("cpu", torch.bfloat16):
        latents = _encoded(encoder, pixels)
        noise = torch.randn(latents.shape, generator=random)
        made = _decoded(decoder, latents + settings.latent_noise * noise)
    made, latents = made.float(), latents.float()
    loss = (weights * (functional.l1_loss(made, pixels, reduction="none") + (made - pixels).square())).mean()
    for axis in (3, 4):
        loss = loss + settings.gradient_weight * functional.l1_loss(made.diff(dim=axis), pixels.diff(dim=axis))
    return loss + settings.latent_penalty * latents.square().mean()


class _Memory(FrameMemory):
    """Memory of one pass whose frames keep their channels last in memory, which spares many copies."""

    def past(self, x: Tensor) -> Tensor:
        """As `FrameMemory` has it, of a video's first pass."""
        frames = x.movedim(1, -1).unflatten(0, (self.batch, -1))  # [B, F, H, W, C]
        joined = torch.cat([torch.zeros_like(frames[:, :1]), frames[:, :-1]], dim=1)
        return joined.flatten(0, 1).movedim(-1, 1)


def _encoded(encoder: TaeEncoder, pixels: Tensor) -> Tensor:
    """What the encoder makes of a whole video, not yet scaled."""
    whole = torch.cat([pixels[:, :, :1].expand(-1, -1, encoder.group - 1, -1, -1), pixels], dim=2)
    frames = fold_time((whole + 1) / 2).contiguous(memory_format=torch.channels_last)
    batch = len(pixels)
    return unfold_time(run_layers(encoder.encoder, frames, _Memory(batch, None)), batch)


def _decoded(decoder: TaeDecoder, latents: Tensor) -> Tensor:
    """What the decoder makes of a whole video's latents."""
    frames = fold_time(latents).contiguous(memory_format=torch.channels_last)
    made = unfold_time(run_layers(decoder.decoder, frames, _Memory(len(latents), None)), len(latents))
    return made[:, :, decoder.group - 1 :] * 2 - 1


def _border_layers(decoder: TaeDecoder) -> tuple[str, ...]:
    """Names of the convolutions whose input or output are pixels, which are no hidden matrices."""
    return "encoder.0.weight", f"decoder.{len(decoder.decoder) - 1}.weight"


def _averages_psnr(
    training: Training, encoder: TaeEncoder, decoder: TaeDecoder, settings: Settings
) -> tuple[float, float]:
    """Of the averages of what is in training, and of the rest as it is."""
    averaged = TaeEncoder(settings.tae).eval(), TaeDecoder(settings.tae).eval()
    for name, module, made in zip(("encoder", "decoder"), (encoder, decoder), averaged, strict=True):
        made.load_state_dict(training.averages(name) if name in training.modules else module.state_dict())
    return psnr(*averaged, settings.autoencoder)


def _write_scales(folder: Path, settings: Settings) -> None:
    encoder = TaeEncoder(settings.tae).eval()
    load_averages(folder / FILE_NAME, {"encoder": encoder})
    random = torch.Generator().manual_seed(2**41)
    with torch.inference_mode():
        latents = [encoder(random_videos(settings.autoencoder, random)[0])[0] for _ in range(2 * _NUM_TESTED)]
    by_channel = torch.cat(latents).transpose(0, 1).flatten(1)
    scales = {
        "latents_mean": [round(value, 5) for value in by_channel.mean(1).tolist()],
        "latents_std": [round(value, 5) for value in by_channel.std(1).tolist()],
    }
    (folder / SCALES_NAME).write_text(json.dumps(scales))
