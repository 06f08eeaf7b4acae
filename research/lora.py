"""Trains a LoRA on the finished transformer: its objects are outlines through which one sees the background."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from export.modules.layers import Linear
from export.modules.transformer import CausalTransformer
from research.autoencoder import trained_autoencoder
from research.batches import Batches
from research.checkpoints import Budget, Training, load_averages
from research.encoded import encode_clips, read_clips
from research.generator import train, velocity_loss
from research.settings import Settings
from research.vace import frozen_generator

LORA_NAME = "outlines"
FILE_NAME = "lora.pt"
_CLIPS, _FILLED_CLIPS = "lora-clips", "lora-clips-filled"
_SHARE_FILLED = 0.35
_TRAINED = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.0", "ffn.2")


class Delta(nn.Module):
    """What is added to the weight [in, out] of a linear layer: two thin matrices, the second of them zero at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(weight.shape[0], rank) * weight.shape[0] ** -0.5)
        self.up = nn.Parameter(torch.zeros(rank, weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its change."""
        return weight + self.down @ self.up


def train_lora(
    folder: Path,
    settings: Settings,
    budget: Budget,
    *,
    base_state: str,
    seed: int = 3,
    after_step: Callable[[], None] | None = None,
) -> Training:
    """Train until the budget is used up, going on from the folder's state.

    A part of the history has filled objects: where the scale rises within a video, what was before it is filled.

    Args:
        folder: with a trained autoencoder and generator.
        settings: of all, with the latents' scales.
        budget: for how long.
        base_state: name of the file with the generator's weights.
        seed: of the clips and batches.
        after_step: called after each.
    """
    base = frozen_generator(folder, settings, base_state)
    torch.manual_seed(seed)
    deltas = _attached(base.transformer, settings.lora.rank)
    training = Training(
        folder / FILE_NAME,
        {"lora": deltas},
        [torch.optim.Adam(deltas.parameters(), settings.lora.lr, betas=(0.9, 0.98), fused=True)],
        seed=seed,
        budget=budget,
        after_step=after_step,
        ema=0.99,
    )
    if training.is_over:
        return training
    encoder, _ = trained_autoencoder(folder, settings)
    text_len = settings.checkpoint.text_len
    few = settings.lora_clips
    encode_clips(folder / _CLIPS, encoder, few, text_len, outlined=True)
    encode_clips(folder / _FILLED_CLIPS, encoder, few, text_len)
    clips, filled = (read_clips(folder / name) for name in (_CLIPS, _FILLED_CLIPS))
    history = np.array(clips.latents)
    is_filled = np.random.default_rng(seed).random(len(history)) < _SHARE_FILLED
    history[is_filled] = filled.latents[is_filled]
    stage = replace(settings.generator, batch=settings.lora.batch)
    training.start_clock()
    batches = Batches(clips, settings.checkpoint, stage, history=history)
    train(training, lambda: velocity_loss(base, batches.draw(training.random)), stage.batch, None)
    return training


def trained_lora(folder: Path, settings: Settings) -> dict[str, Tensor]:
    """The averaged weights in float16, under the names that LoRA files have.

    Raises:
        FileNotFoundError: it is not trained yet.
    """
    deltas = _new(settings)
    load_averages(folder / FILE_NAME, {"lora": deltas})
    return {
        key: parameter.detach().T.half().contiguous()
        for key, parameter in zip(_keys(settings), deltas.parameters(), strict=True)
    }


def lora_of(weights: Mapping[str, Tensor], settings: Settings) -> nn.ModuleList:
    """The trained matrices out of what `trained_lora` gives."""
    deltas = _new(settings)
    with torch.no_grad():
        for key, parameter in zip(_keys(settings), deltas.parameters(), strict=True):
            parameter.copy_(weights[key].T)
    return deltas


def _new(settings: Settings) -> nn.ModuleList:
    return _attached(CausalTransformer(settings.checkpoint), settings.lora.rank)


def _keys(settings: Settings) -> list[str]:
    """Names in a LoRA file, in the order of the parameters."""
    names = [name for name, _ in _layers(CausalTransformer(settings.checkpoint))]
    return [f"diffusion_model.{name}.{part}.weight" for name in names for part in ("lora_A", "lora_B")]


def _attached(transformer: CausalTransformer, rank: int) -> nn.ModuleList:
    deltas = nn.ModuleList()
    for _, layer in _layers(transformer):
        delta = Delta(layer.weight, rank)
        parametrize.register_parametrization(layer, "weight", delta)
        deltas.append(delta)
    return deltas


def _layers(transformer: CausalTransformer) -> list[tuple[str, Linear]]:
    return [
        (name, layer)
        for name, layer in transformer.named_modules()
        if isinstance(layer, Linear) and name.endswith(_TRAINED)
    ]
