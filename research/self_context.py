"""The last stage: history, and what is renoised, are the generator's own; the true video stays the target.

Few-step samples are a little off, each chunk builds on the ones before, and each step on the one before: what was
never seen in training adds up. Here the generator meets its own mistakes and learns to mend them.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from filmstrip.runtime.longlive import SigmaTable
from filmstrip.runtime.transformer import FrameWindow
from research.batches import Batch, Batches
from research.checkpoints import Budget, Training, load_averages
from research.encoded import Array, EncodedClips, Kind, read_clips
from research.generator import CLIPS_FOLDER, NOT_MUON, GeneratorNetworks, new_generator, train, velocity_loss
from research.generator import FILE_NAME as GENERATOR
from research.muon import optimizers
from research.one_pass import velocities
from research.rollout import Rollout, Step
from research.settings import Settings

FILE_NAME = "self-context.pt"
OWN_NAME = "own.npy"
_SHARE_OF_RATES = 0.3
_SHARE_OF_OWN_STEPS = 0.6
_STEPS_BETWEEN_ROLLOUTS = 6
_CLIPS_A_ROLLOUT = 16


def train_on_own(
    folder: Path,
    settings: Settings,
    budget: Budget,
    *,
    seed: int = 1,
    show: Callable[[Training], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Training:
    """Train on the generator's own history, from its averaged weights or where this stage was stopped.

    Raises:
        FileNotFoundError: there are no clips, or the generator is not trained yet.
    """
    networks = new_generator(settings, seed)
    load_averages(folder / GENERATOR, networks.by_name())
    stage, config = settings.generator, settings.checkpoint
    training = Training(
        folder / FILE_NAME,
        networks.by_name(),
        optimizers(networks.by_name().values(), stage, NOT_MUON, share_of_rates=_SHARE_OF_RATES),
        seed=seed,
        budget=budget,
        after_step=after_step,
        ema=0.997,
    )
    table = SigmaTable(config.timestep_shift)
    steps = [(step, table.at(step)) for step in config.text_steps]
    window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk)
    if training.step == 0:
        (folder / OWN_NAME).unlink(missing_ok=True)
    own = OwnClips(read_clips(folder / CLIPS_FOLDER), folder / OWN_NAME, networks, window, steps)
    batches = Batches(own.clips, config, stage, history=own.latents)

    def loss() -> Tensor:
        if training.step % _STEPS_BETWEEN_ROLLOUTS == 0:
            own.renew(training.random)
        batch = batches.draw(training.random)
        if not batch.is_video:
            batch = renoised(networks, batch, steps, training.random)
        return velocity_loss(networks, batch)

    train(training, loss, stage.batch, show)
    return training


class OwnClips:
    """The clips, with the true latents and those that the generator makes of the same captions.

    Attributes:
        clips: the true ones.
        latents: float16, of their shape; at first the true ones. A file, so that a stage that was stopped has them.
    """

    def __init__(
        self, clips: EncodedClips, path: Path, networks: GeneratorNetworks, window: FrameWindow, steps: list[Step]
    ) -> None:
        self.clips = clips
        if not path.exists():
            np.save(path, clips.latents)
        self.latents = np.load(path, mmap_mode="r+")
        self._networks = networks
        self._window = window
        self._steps = steps

    @torch.no_grad()
    def renew(self, random: torch.Generator) -> None:
        """Generate some clips again, all with their switch in one place.

        A first chunk from a place that no caption tells is the true one.
        """
        chosen = self._choose(np.random.default_rng(int(torch.randint(2**62, (1,), generator=random))))
        true = torch.from_numpy(self.clips.latents[chosen]).float()
        switch, kind = int(self.clips.switches[chosen[0]]), self.clips.kinds[chosen[0]]
        with torch.autocast("cpu", torch.bfloat16):
            texts = self._networks.texts(torch.from_numpy(self.clips.captions[chosen]))
            rollout = Rollout(self._networks.transformer, self._window, self._steps, random)
            for index, chunk in enumerate(true.split(self._window.latent_frames_per_chunk, dim=2)):
                text = texts[int(0 < switch <= index)]
                if index == switch > 0:
                    rollout.recache(text)
                if index == 0 and kind not in (Kind.PLAIN, Kind.SWITCHED):
                    rollout.given(chunk, text)
                else:
                    rollout.make(chunk.shape, text)
        self.latents[chosen] = rollout.latents.half().numpy()

    def _choose(self, rng: np.random.Generator) -> Array:
        kind, switch = rng.choice(list(zip(self.clips.kinds, self.clips.switches, strict=True)))
        alike = np.flatnonzero((self.clips.kinds == kind) & (self.clips.switches == switch))
        return rng.choice(alike, _CLIPS_A_ROLLOUT)


@torch.no_grad()
def renoised(networks: GeneratorNetworks, batch: Batch, steps: list[Step], random: torch.Generator) -> Batch:
    """The batch with many of its noisy latents made as the sampler makes them: of a prediction, not of the truth.

    The target velocity still leads to the truth.
    """
    layout, first = batch.layout, batch.layout.num_clean
    size = len(batch.clean)
    before_t, before, after_t, after = (torch.zeros(size, len(layout.frames)) for _ in range(4))
    for one in layout.noisy:
        index = torch.randint(len(steps) - 1, (size,), generator=random)
        levels = torch.tensor(steps)
        for target, values in (
            (before_t, levels[index, 0]),
            (before, levels[index, 1]),
            (after_t, levels[index + 1, 0]),
            (after, levels[index + 1, 1]),
        ):
            target[:, one.first : one.end] = values.unsqueeze(1)
    before, after = (sigmas[:, None, :, None, None] for sigmas in (before, after))
    noisy = (1 - before) * batch.clean + before * batch.noise
    noisy[:, :, :first] = batch.latents[:, :, :first]
    with torch.autocast("cpu", torch.bfloat16):
        made = velocities(networks.transformer, layout, noisy, before_t, networks.texts(batch.captions)).float()
    again = (1 - after) * (noisy - before * made) + after * torch.randn(noisy.shape, generator=random)

    is_own = torch.rand(size, 1, generator=random) < _SHARE_OF_OWN_STEPS
    is_own = is_own & (batch.timesteps >= steps[-1][0]) & (batch.weights.sum((1, 3, 4)) > 0)
    chosen = is_own[:, None, :, None, None]
    return replace(
        batch,
        latents=torch.where(chosen, again, batch.latents),
        timesteps=torch.where(is_own, after_t, batch.timesteps),
        sigmas=torch.where(chosen, after, batch.sigmas),
    )
