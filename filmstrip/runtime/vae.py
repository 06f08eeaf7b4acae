"""Pixels to latents and back, chunk by chunk: the feature caches that one pass returns are inputs of the next one.

The caches are passed on and never copied: at 576x320 they take 872 MB in 16 bit.
"""

import torch
from torch import Tensor

from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.pixels import pad_first_frame

_NEW = "new_"  # before the name of a cache that is an output


class FeatureStream:
    """A network whose first pass takes no caches, and whose later passes take those of the pass before.

    Args:
        first: the engine of the first pass.
        next: the engine of all later passes.
        input_name: name of the input that is not a cache.
        output_name: name of the output that is not a cache.
    """

    def __init__(self, first: Engine, next: Engine, *, input_name: str, output_name: str) -> None:
        self._first = first
        self._next = next
        self._input_name = input_name
        self._output_name = output_name
        self._caches: dict[str, Tensor] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the next pass continues an earlier one."""
        return self._caches is not None

    def __call__(self, x: Tensor) -> Tensor:
        """Run the next pass, on a length that the engines take."""
        if self._caches is None:
            outputs = self._first.run({self._input_name: x})
        else:
            outputs = self._next.run({self._input_name: x, **self._caches})
        result = outputs.pop(self._output_name)
        self._caches = {name.removeprefix(_NEW): cache for name, cache in outputs.items()}
        return result

    def clear(self) -> None:
        """Forget the passes so far and free the memory of the caches."""
        self._caches = None


class StreamingEncoder:
    """A chunk's pixels to the latent frames of the chunk, wherever it is in the video.

    Args:
        first: engine of the first pass, which takes one frame more than a chunk has.
        next: engine of later passes, which takes the frames of a chunk.
        chunk_size: pixel frames of a chunk, F.
        temporal_factor: pixel frames of a latent frame.
    """

    def __init__(self, first: Engine, next: Engine, *, chunk_size: int, temporal_factor: int) -> None:
        self._stream = FeatureStream(first, next, input_name="pixels", output_name="latents")
        self._chunk_size = chunk_size
        self._temporal_factor = temporal_factor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode the next pixels of a sequence.

        F + 1 frames begin a video, F frames continue it. If there is nothing to continue, as when conditioning begins
        in the middle of a generation, F frames begin a video: their first frame is repeated, and its latent frame is
        dropped. Fewer frames begin a video too: the last one is repeated up to the length that the engine takes, and
        the latent frames of the repeats are dropped, as are the caches, which have seen them.

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
        self.clear()
        return latents[:, :, : 1 + (num_frames - 1) // self._temporal_factor]

    def clear(self) -> None:
        """Forget the frames so far."""
        self._stream.clear()
