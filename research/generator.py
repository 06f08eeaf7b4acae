"""Trains the causal transformer and the text encoder on encoded clips."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.modules.layers import Linear
from export.modules.text_encoder import Embedding, TextEncoder
from export.modules.transformer import Block, CausalTransformer, Head, TextKv
from research.batches import Batch, Batches
from research.checkpoints import Budget, Training
from research.encoded import read_clips
from research.muon import optimizers
from research.one_pass import Text, velocities
from research.settings import Settings

FILE_NAME = "generator.pt"
CLIPS_FOLDER = "clips"
_LOG_EVERY = 50
_SAMPLE_EVERY_S = 600.0
_ZERO_AT_FIRST = ("attn.o.weight", "ffn.2.weight", "head.head.weight", "time_projection.1.weight")
_NEIGHBOUR_BIAS = 6.0
NOT_MUON = ("patch_embedding", "head.head", "position_embedding", "token_embedding", "pos_embedding", "modulation")


@dataclass(frozen=True)
class GeneratorNetworks:
    """What is trained together."""

    transformer: CausalTransformer
    text_kv: TextKv
    text_encoder: TextEncoder

    def by_name(self) -> dict[str, nn.Module]:
        """The networks as a training's state names them."""
        return {"transformer": self.transformer, "text_kv": self.text_kv, "text_encoder": self.text_encoder}

    def texts(self, captions: Tensor) -> list[Text]:
        """Keys and values of captions, each [layers, B, N, Lt, D]: captions are [B, 2, 2, Lt], ids and masks of two."""
        both = captions.transpose(0, 1)  # [2, B, 2, Lt]
        if torch.equal(both[0], both[1]):
            return [self.text_kv(self.text_encoder(both[0, :, 0], both[0, :, 1]))] * 2
        k, v = self.text_kv(self.text_encoder(both[:, :, 0].flatten(0, 1), both[:, :, 1].flatten(0, 1)))
        return list(zip(k.chunk(2, dim=1), v.chunk(2, dim=1), strict=True))


def new_generator(settings: Settings, seed: int) -> GeneratorNetworks:
    """Networks with seeded initial weights, in training: at first each block adds nothing."""
    torch.manual_seed(seed)
    config = settings.checkpoint
    networks = GeneratorNetworks(
        CausalTransformer(config), TextKv(config), TextEncoder(settings.text_encoder, config.text_len)
    )
    for module in networks.by_name().values():
        for layer in module.modules():
            _set_initial(layer)
    for name, parameter in networks.transformer.named_parameters():
        if name.endswith(_ZERO_AT_FIRST):
            nn.init.zeros_(parameter)
    for name, parameter in networks.text_encoder.named_parameters():
        if name.endswith("attn.q.weight"):
            nn.init.zeros_(parameter).requires_grad_(False)
        elif "pos_embedding" in name:
            _set_neighbours(parameter)
    return networks


def _set_neighbours(biases: nn.Parameter) -> None:
    """Let three heads look at the next token, the one before and the next but one: biases [buckets, N].

    Which colour is the object's and which the background's, only neighbours tell. T5's scores are not scaled: with
    queries that are trained they grew until each token saw itself alone, and in half of the videos the two colours were
    exchanged. So queries stay zero, and where a token looks is a matter of places.
    """
    nn.init.zeros_(biases)
    ahead = biases.shape[0] // 2
    for head, bucket in zip(range(biases.shape[1]), (ahead + 1, 1, ahead + 2), strict=False):
        nn.init.constant_(biases[bucket, head], _NEIGHBOUR_BIAS)


def _set_initial(layer: nn.Module) -> None:
    if isinstance(layer, Linear):
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight.shape[0]))
    elif isinstance(layer, Embedding):
        nn.init.normal_(layer.weight)
    elif isinstance(layer, Block | Head):
        nn.init.zeros_(layer.modulation)
        if isinstance(layer, Block):
            layer.modulation.data[:, [2, 5]] = 1  # the gates


def velocity_loss(networks: GeneratorNetworks, batch: Batch, hints: Tensor | None = None) -> Tensor:
    """Weighted mean square error of the velocity at the noisy places; `hints` are those of `velocities`."""
    with torch.autocast("cpu", torch.bfloat16):
        texts = networks.texts(batch.captions)
        made = velocities(networks.transformer, batch.layout, batch.latents, batch.timesteps, texts, hints=hints)
    first = batch.layout.num_clean
    target = (batch.latents - batch.clean)[:, :, first:] / batch.sigmas[:, :, first:]
    share_of_noisy = (len(batch.layout.frames) - first) / len(batch.layout.frames)
    squares = (made[:, :, first:].float() - target).square()
    return (batch.weights[:, :, first:] * squares).mean() * share_of_noisy


def train_generator(
    folder: Path,
    settings: Settings,
    budget: Budget,
    *,
    seed: int = 0,
    show: Callable[[Training], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Training:
    """Train until the budget is used up, going on from the folder's state.

    Args:
        folder: with the encoded clips.
        settings: of all.
        budget: for how long.
        seed: of weights and batches.
        show: called about every ten minutes and at the end.
        after_step: called after each.
    """
    networks = new_generator(settings, seed)
    stage, config = settings.generator, settings.checkpoint
    training = Training(
        folder / FILE_NAME,
        networks.by_name(),
        optimizers(networks.by_name().values(), stage, NOT_MUON),
        seed=seed,
        budget=budget,
        after_step=after_step,
    )
    batches = Batches(read_clips(folder / CLIPS_FOLDER), config, stage)
    train(training, lambda: velocity_loss(networks, batches.draw(training.random)), stage.batch, show)
    return training


def train(
    training: Training, loss_of_batch: Callable[[], Tensor], batch: int, show: Callable[[Training], None] | None
) -> None:
    """The loop: a loss, a step, now and then a line of the log, the state, and what there is to show."""
    losses: list[float] = []
    shown, began, first_step = training.seconds, training.seconds, training.step
    while not training.is_over:
        loss = loss_of_batch()
        loss.backward()
        norm = training.update()
        losses.append(loss.item())
        if training.step % _LOG_EVERY == 0:
            rate = (training.step - first_step) * batch / (training.seconds - began)
            training.log(loss=round(float(np.mean(losses)), 4), norm=round(norm, 3), samples_s=round(rate, 2))
            losses.clear()
        training.save_now_and_then()
        if show is not None and training.seconds - shown > _SAMPLE_EVERY_S:
            training.save()
            show(training)
            shown = training.seconds
    training.save()
    if show is not None:
        show(training)
