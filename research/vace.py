"""Trains the VACE branch of a transformer whose weights stay fixed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.config import CheckpointConfig
from export.modules.transformer import Rope, TextKv
from export.modules.vace import VaceBranch
from filmstrip.runtime.longlive import NUM_TIMESTEPS
from filmstrip.runtime.transformer import FrameWindow, rope_tables
from research.autoencoder import trained_autoencoder
from research.batches import Batch
from research.checkpoints import Budget, Training, load_averages
from research.conditions import Condition, ConditionedClips, conditioned_clips
from research.generator import GeneratorNetworks, new_generator, train, velocity_loss
from research.layouts import Layout, from_start
from research.muon import optimizers
from research.noise_levels import NoiseLevels
from research.one_pass import Text
from research.settings import Settings

FILE_NAME = "vace.pt"
_SHARES = {
    Condition.MASK: 0.6,
    Condition.GRAY: 0.05,
    Condition.SCRIBBLE: 0.1,
    Condition.REFERENCE: 0.2,
    Condition.IMAGE: 0.05,
}
_NOT_MUON = ("patch_embedding", "modulation")


class VaceNetworks(nn.Module):
    """The branch, and its text keys and values; what it shares with the transformer is not trained."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__()
        self.branch = VaceBranch(config)
        self.text_kv = TextKv(config, vace=True)

    @classmethod
    def for_generator(cls, base: GeneratorNetworks, config: CheckpointConfig) -> "VaceNetworks":
        """A branch whose blocks are copies of the transformer's and whose hints are zero at first."""
        made = cls(config)
        with torch.no_grad():
            for parameter in made.parameters():
                nn.init.zeros_(parameter)
        made.share(base)
        for index, layer in enumerate(config.vace_layers):
            _copy(base.transformer.blocks[layer], made.branch.vace_blocks[index])
            _copy(base.text_kv.get_submodule(f"blocks.{layer}"), made.text_kv.get_submodule(f"vace_blocks.{index}"))
        nn.init.normal_(made.branch.vace_patch_embedding.weight, std=0.5 * config.vace_in_channels**-0.5)
        return made

    def share(self, base: GeneratorNetworks) -> None:
        """Take from the transformer what both have: it is not trained here."""
        self.branch.load_state_dict(base.transformer.state_dict(), strict=False)
        self.text_kv.load_state_dict(base.text_kv.state_dict(), strict=False)
        for network in (self.branch, self.text_kv):
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name.startswith("vace_"))

    def hints(self, base: GeneratorNetworks, captions: Tensor, context: Tensor, batch: Batch) -> Tensor:
        """What the branch adds at all places of a layout, [vace_layers, B, L, C].

        Args:
            base: whose text encoder is used.
            captions: token ids and mask, [B, 2, Lt].
            context: of the noisy places, [B, vace_in_channels, T, H, W].
            batch: with the noisy latents.
        """
        with torch.no_grad():
            embeddings = base.text_encoder(captions[:, 0], captions[:, 1])
        text = self.text_kv(embeddings)
        layout, first = batch.layout, batch.layout.num_clean
        by_chunk = [
            self._chunk_hints(
                text,
                batch.latents[:, :, one.first : one.end],
                batch.timesteps[:, one.first : one.end],
                context[:, :, one.first - first : one.end - first],
            )
            for one in layout.noisy
        ]
        made = torch.cat(by_chunk, dim=2)
        num_tokens = made.shape[2] // (len(layout.frames) - first)
        clean = made.new_zeros(*made.shape[:2], first * num_tokens, made.shape[3])
        return torch.cat([clean, made], dim=2)

    def _chunk_hints(self, text: Text, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        patch = self.branch.patch_embedding.kernel_size
        rows, cols = latents.shape[3] // patch[1], latents.shape[4] // patch[2]
        rope = Rope(*rope_tables(text[0].shape[-1], torch.arange(latents.shape[2]), rows, cols))
        made: Tensor = self.branch(latents, timesteps, context, *text, rope, torch.ones(1))
        return made


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict(), strict=False)


class ConditionedBatches:
    """Draws batches, each of one condition.

    Args:
        clips: to draw from, by condition.
        config: of the model.
        settings: of the training.
    """

    def __init__(self, clips: dict[Condition, ConditionedClips], config: CheckpointConfig, settings: Settings) -> None:
        self._clips = clips
        self._settings = settings.vace
        self._window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk)
        self._levels = NoiseLevels(config, settings.generator.context_noise)

    def draw(self, random: torch.Generator) -> tuple[Batch, Tensor]:
        """The next batch, and the context of its noisy places, [B, vace_in_channels, T, H, W]."""
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=random)))
        condition = rng.choice(list(_SHARES), p=list(_SHARES.values()))
        clips = self._clips[Condition(condition)]
        chosen = torch.from_numpy(rng.choice(len(clips.latents), self._settings.batch))
        layout = from_start(self._window, Condition(condition).chunk_lengths)
        frames = list(layout.frames)
        clean, objects = (array[chosen][:, :, frames].float() for array in (clips.latents, clips.objects))
        timesteps, sigmas = self._levels.draw(layout, len(chosen), random)
        noise = torch.randn(clean.shape, generator=random)
        captions = clips.captions[chosen]
        weights = self._weights(layout, objects, timesteps, clips.has_no_start[chosen])
        batch = Batch(
            layout,
            clean,
            (1 - sigmas) * clean + sigmas * noise,
            noise,
            timesteps,
            sigmas,
            weights / weights.mean(),
            captions.unsqueeze(1).expand(-1, 2, -1, -1),
        )
        return batch, clips.context[chosen].float()

    def _weights(self, layout: Layout, objects: Tensor, timesteps: Tensor, has_no_start: Tensor) -> Tensor:
        is_first = torch.tensor([place >= layout.num_clean and at < 3 for place, at in enumerate(layout.positions)])
        unknown = has_no_start[:, None] & is_first & (timesteps > 0.8 * NUM_TIMESTEPS)
        counts = (timesteps > 0) & ~unknown
        return (1 + (self._settings.object_weight - 1) * objects) * counts[:, None, :, None, None]


def train_vace(
    folder: Path,
    settings: Settings,
    budget: Budget,
    *,
    base_state: str,
    seed: int = 2,
    after_step: Callable[[], None] | None = None,
) -> Training:
    """Train until the budget is used up, going on from the folder's state.

    Args:
        folder: with a trained autoencoder and generator.
        settings: of all, with the latents' scales.
        budget: for how long.
        base_state: name of the file with the generator's weights.
        seed: of the clips and batches.
        after_step: called after each.
    """
    config = settings.with_vace.checkpoint
    base = frozen_generator(folder, settings.with_vace, base_state)
    torch.manual_seed(seed)
    networks = VaceNetworks.for_generator(base, config)
    stage = settings.vace
    training = Training(
        folder / FILE_NAME,
        {"vace": networks},
        optimizers([networks], stage, _NOT_MUON),
        seed=seed,
        budget=budget,
        after_step=after_step,
        ema=0.997,
    )
    networks.share(base)  # the state's may be of an earlier transformer
    if training.is_over:
        return training
    encoder, _ = trained_autoencoder(folder, settings)
    rng = np.random.default_rng(seed)
    clips = {
        condition: conditioned_clips(condition, max(1, round(share * stage.clips)), encoder, config.text_len, rng)
        for condition, share in _SHARES.items()
    }
    training.start_clock()
    batches = ConditionedBatches(clips, config, settings)

    def loss() -> Tensor:
        batch, context = batches.draw(training.random)
        with torch.autocast("cpu", torch.bfloat16):
            hints = networks.hints(base, batch.captions[:, 0], context, batch)
        return velocity_loss(base, batch, hints=hints)

    train(training, loss, stage.batch, None)
    return training


def frozen_generator(folder: Path, settings: Settings, state: str) -> GeneratorNetworks:
    """A trained generator whose weights get no gradients.

    Raises:
        FileNotFoundError: it is not trained yet.
    """
    base = new_generator(settings, seed=0)
    load_averages(folder / state, base.by_name())
    for module in base.by_name().values():
        module.requires_grad_(False)
    return base


def trained_vace(folder: Path, config: CheckpointConfig) -> VaceNetworks:
    """The averaged weights, those that the branch shares with the transformer among them.

    Raises:
        FileNotFoundError: it is not trained yet.
    """
    made = VaceNetworks(config)
    load_averages(folder / FILE_NAME, {"vace": made})
    return made.eval()
