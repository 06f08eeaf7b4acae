"""Pixels to latents and back, chunk by chunk: the feature caches that one pass gives are what the next one takes.

The caches are handed on and never copied: at 320x576 they take 872 MB in 16 bit.
"""

import torch
from torch import Tensor

from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.pixels import pad_first_frame

_NEW = "new_"  # before the name of a cache where it comes out


class FeatureStream:
    """A network whose first pass has no caches, and whose later ones go on from the pass before.

    Args:
        first: the engine of the first pass.
        next: that of all later ones.
        takes: its input beside the caches.
        gives: its output beside them.
    """

    def __init__(self, first: Engine, next: Engine, *, takes: str, gives: str) -> None:
        self._first = first
        self._next = next
        self._takes = takes
        self._gives = gives
        self._caches: dict[str, Tensor] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the next pass goes on from another."""
        return self._caches is not None

    def __call__(self, x: Tensor) -> Tensor:
        """Run the next pass, on one length or another of what the engines take."""
        if self._caches is None:
            made = self._first.run({self._takes: x})
        else:
            made = self._next.run({self._takes: x, **self._caches})
        result = made.pop(self._gives)
        self._caches = {name.removeprefix(_NEW): cache for name, cache in made.items()}
        return result

    def reset(self) -> None:
        """Forget the passes so far; the caches' memory is free."""
        self._caches = None


class StreamingEncoder:
    """A chunk's pixels to as many latent frames as it has, whatever the chunk's place.

    Args:
        first: engine of the first pass, which takes one frame more than a chunk has.
        next: engine of the later ones, which takes a chunk's frames.
        chunk_size: pixel frames of a chunk, F.
        temporal_factor: pixel frames of a latent frame.
    """

    def __init__(self, first: Engine, next: Engine, *, chunk_size: int, temporal_factor: int) -> None:
        self._stream = FeatureStream(first, next, takes="pixels", gives="latents")
        self._chunk_size = chunk_size
        self._temporal_factor = temporal_factor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode the next pixels of a sequence.

        F + 1 frames begin a video, after a reset. F frames go on from those before; where there are none, as when
        conditioning begins in the midst of a generation, they begin one with their first frame twice, whose latent
        frame of that one frame is dropped. Fewer begin a video too: the engine takes no fewer, so the last one is
        repeated and what is made of the repeats dropped, and with it the caches, which have seen them.

        Args:
            pixels: [1, 3, 1 + k * temporal_factor, H, W] up to F + 1 frames, or F of them.

        Returns:
            Latents, [1, C, T, h, w]: 1 + k latent frames, or those of a chunk.
        """
        num_frames = pixels.shape[2]
        if num_frames == self._chunk_size:
            return self._stream(pixels) if self._stream.has_begun else self._stream(pad_first_frame(pixels))[:, :, 1:]
        if num_frames > self._chunk_size:
            return self._stream(pixels)
        repeats = pixels[:, :, -1:].expand(-1, -1, self._chunk_size + 1 - num_frames, -1, -1)
        latents = self._stream(torch.cat([pixels, repeats], dim=2))
        self.reset()
        return latents[:, :, : 1 + (num_frames - 1) // self._temporal_factor]

    def reset(self) -> None:
        """Forget the frames so far."""
        self._stream.reset()
