"""What a step of the generator's training sees: a layout, clips that fit it, noise and timesteps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from export.config import CheckpointConfig
from filmstrip.runtime.longlive import NUM_TIMESTEPS
from filmstrip.runtime.transformer import FrameWindow
from research.encoded import Array, EncodedClips, Kind
from research.layouts import Layout, after_switch, from_afar, from_start
from research.noise_levels import NoiseLevels
from research.settings import GeneratorSettings

_SHARES = {"start": 0.3, "video": 0.25, "afar": 0.13, "switch": 0.18, "switch afar": 0.14}
_SHARE_VAGUE = 0.05
_SHARE_RECOLOURED, _SHARE_KEPT = 0.6, 0.15
_RECOLOURED_FROM, _KEPT_TO = 0.55, 0.4  # sigmas
_MOST_FRAMES_AWAY = 900


@dataclass(frozen=True)
class Batch:
    """One step's numbers, of a layout with P places.

    Attributes:
        layout: which frames.
        clean: latents without noise, [B, C, P, H, W]: what is to be predicted, and what history is made of.
        latents: the same with the noise of each place.
        noise: of each place.
        timesteps: float32 [B, P]; 0 at clean places, whatever noise their latents have.
        sigmas: of noisy places, [B, 1, P, 1, 1].
        weights: how much each latent pixel counts, [B, 1, P, H, W].
        captions: ids and masks of both captions, int64 [B, 2, 2, Lt].
        is_video: whether the noise hides a source, as in video-to-video.
    """

    layout: Layout
    clean: Tensor
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    sigmas: Tensor
    weights: Tensor
    captions: Tensor
    is_video: bool = False


class Batches:
    """Draws batches.

    Args:
        clips: to draw from.
        config: of the model.
        settings: of the training.
        history: latents of all clips as clean places have them; None for those of the clips.
    """

    def __init__(
        self,
        clips: EncodedClips,
        config: CheckpointConfig,
        settings: GeneratorSettings,
        history: Array | None = None,
    ) -> None:
        self._clips = clips
        self._history = history
        self._settings = settings
        self._window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk)
        self._levels = NoiseLevels(config, settings.context_noise)
        self._num_chunks = clips.latents.shape[2] // config.latent_frames_per_chunk

    def draw(self, random: torch.Generator) -> Batch:
        """The next batch."""
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=random)))
        kind = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
        layout, chosen = self._drawers()[kind](rng)
        clean, objects, captions, has_no_start = self._read(layout, chosen)
        timesteps, sigmas = self._levels.draw(layout, len(chosen), random, only_low=kind == "video")
        captions = self._left_open(captions, chosen, rng)
        source, counts = clean, timesteps > 0
        if kind == "video":
            source, captions, counts = self._altered(layout, chosen, clean, captions, sigmas, rng=rng)
        weights = (1 + (self._settings.object_weight - 1) * objects) * counts[:, None, :, None, None]
        # Nothing says where such an object starts: the mean of all places would be learnt.
        is_first = torch.tensor([place >= layout.num_clean and at < 3 for place, at in enumerate(layout.positions)])
        unknown = has_no_start[:, None] & is_first & (timesteps > 0.8 * NUM_TIMESTEPS)
        weights = weights * ~unknown[:, None, :, None, None]
        noise = torch.randn(clean.shape, generator=random)
        seen = self._seen(layout, chosen, source)
        return Batch(
            layout,
            clean,
            (1 - sigmas) * seen + sigmas * noise,
            noise,
            timesteps,
            sigmas,
            weights / weights.mean(),
            captions,
            is_video=kind == "video",
        )

    # -- Layouts, and clips for them --------------------------------------------------------------------------------

    def _drawers(self) -> dict[str, Callable[[np.random.Generator], tuple[Layout, Array]]]:
        return {
            "start": self._start,
            "video": self._video,
            "afar": self._afar,
            "switch": self._switch,
            "switch afar": self._switch_afar,
        }

    def _start(self, rng: np.random.Generator) -> tuple[Layout, Array]:
        kinds = (Kind.PLAIN, Kind.PLAIN, Kind.PLAIN, Kind.PLAIN_ANYWHERE)
        return from_start(self._window, [3] * 5), self._choose(rng, kinds)

    def _video(self, rng: np.random.Generator) -> tuple[Layout, Array]:
        return from_start(self._window, [4, 3, 3, 3]), self._choose(rng, (Kind.RECOLOURED,))

    def _afar(self, rng: np.random.Generator) -> tuple[Layout, Array]:
        first = 3 * int(rng.integers(1, self._num_chunks - 4))
        layout = from_afar(self._window, first, self._gap(rng), num_clean=4, num_noisy=3)
        return layout, self._choose(rng, (Kind.PLAIN, Kind.PLAIN_ANYWHERE))

    def _switch(self, rng: np.random.Generator) -> tuple[Layout, Array]:
        switch = int(rng.integers(1, 5))
        layout = after_switch(self._window, switch, 0, (2, 1, 1))
        return layout, self._choose(rng, (Kind.SWITCHED, Kind.SWITCHED_ANYWHERE), switch)

    def _switch_afar(self, rng: np.random.Generator) -> tuple[Layout, Array]:
        switch = int(rng.integers(4, self._num_chunks - 1))
        repeats = (2, 1, 1)[: self._num_chunks - switch]
        layout = after_switch(self._window, switch, max(3, self._gap(rng)), repeats)
        return layout, self._choose(rng, (Kind.SWITCHED, Kind.SWITCHED_ANYWHERE), switch)

    def _gap(self, rng: np.random.Generator) -> int:
        """Whole chunks, in latent frames: small ones as likely as large ones."""
        return 3 * int(np.exp(rng.uniform(0, np.log(_MOST_FRAMES_AWAY / 3))) - 1)

    def _choose(self, rng: np.random.Generator, kinds: Sequence[Kind], switch: int = 0) -> Array:
        """Numbers of clips, a batch of them: each kind as likely as it is often in `kinds`."""
        drawn = rng.choice([int(kind) for kind in kinds], self._settings.batch)
        fitting = {
            kind: np.flatnonzero((self._clips.kinds == kind) & (self._clips.switches == switch)) for kind in kinds
        }
        return np.array([rng.choice(fitting[Kind(kind)]) for kind in drawn])

    # -- Numbers ----------------------------------------------------------------------------------------------------

    def _read(self, layout: Layout, chosen: Array) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        frames = list(layout.frames)
        latents = np.stack([self._clips.latents[clip][:, frames] for clip in chosen])
        objects = np.stack([self._clips.objects[clip][:, frames] for clip in chosen])
        anywhere = ~np.isin(self._clips.kinds[chosen], (Kind.PLAIN, Kind.SWITCHED))
        captions = torch.from_numpy(self._clips.captions[chosen])
        return (
            torch.from_numpy(latents).float(),
            torch.from_numpy(objects).float(),
            captions,
            torch.from_numpy(anywhere),
        )

    def _left_open(self, captions: Tensor, chosen: Array, rng: np.random.Generator) -> Tensor:
        """The captions, a few of them vague ones."""
        is_vague = torch.from_numpy(rng.random(len(chosen)) < _SHARE_VAGUE)
        return torch.where(is_vague[:, None, None, None], torch.from_numpy(self._clips.vague[chosen]), captions)

    def _altered(
        self,
        layout: Layout,
        chosen: Array,
        clean: Tensor,
        captions: Tensor,
        sigmas: Tensor,
        *,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What video-to-video is to make of a video that its prompt does not describe.

        In some sequences chunks with much noise hide the video of other colours, which the caption's are to replace;
        in some those with little noise have the caption of other colours, which are to be kept.

        Returns:
            What the noise hides, the captions, and which places count, [B, P].
        """
        others, _, other_captions, _ = self._read(layout, self._clips.partners(chosen))
        chance = torch.from_numpy(rng.random(len(chosen)))
        recoloured = chance < _SHARE_RECOLOURED
        kept = ~recoloured & (chance < _SHARE_RECOLOURED + _SHARE_KEPT)
        hides_other = recoloured[:, None, None, None, None] & (sigmas > _RECOLOURED_FROM)
        is_noisy = torch.arange(len(layout.frames)) >= layout.num_clean
        counts = is_noisy & (~kept[:, None] | (sigmas[:, 0, :, 0, 0] < _KEPT_TO))
        return (
            torch.where(hides_other, others, clean),
            torch.where(kept[:, None, None, None], other_captions, captions),
            counts,
        )

    def _seen(self, layout: Layout, chosen: Array, source: Tensor) -> Tensor:
        """The latents that noise is put on: at clean places those of the history."""
        if self._history is None:
            return source
        frames = list(layout.frames[: layout.num_clean])
        history = torch.from_numpy(np.stack([self._history[clip][:, frames] for clip in chosen])).float()
        return torch.cat([history, source[:, :, layout.num_clean :]], dim=2)
