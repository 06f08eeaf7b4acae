"""Clips for the VACE branch: what a chunk is conditioned with, put together as the runtime does it, and encoded."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from export.modules.tae import TaeEncoder
from filmstrip.runtime.pixels import pad_first_frame
from filmstrip.runtime.vace import Conditioning, VaceEncoders, vace_context
from research.augmentations import CONTROLS, random_mask
from research.autoencoder import to_pixels
from research.encoded import by_latent, tokens_of
from tests.support.toyworld.grammar import Scene, caption, random_scene, vague_caption
from tests.support.toyworld.videos import (
    CHUNK_FRAMES,
    FIRST_CHUNK_FRAMES,
    MIDDLE,
    PALETTE,
    SIDE,
    Shot,
    coverage,
    masks,
    render,
)

_NUM_CHUNKS = 4
_SHARES_IN_MIDDLE = {"mask": 0.6, "reference": 1.0}
_SHARE_VAGUE = 0.8
_REFERENCE_SIZES = 20, 32


class Condition(StrEnum):
    """What clips are conditioned with."""

    MASK = "mask"
    """Parts of each frame are kept, the others made: inpainting."""
    GRAY = "gray"
    SCRIBBLE = "scribble"
    REFERENCE = "reference"
    """An image of the object; most captions tell neither its colour nor its shape."""
    IMAGE = "image"
    """The first frames of the first chunk, its last ones, or both."""

    @property
    def chunk_lengths(self) -> tuple[int, ...]:
        """Latent frames of each chunk; frames and masks follow the video rule, with one more in the first."""
        if self is Condition.IMAGE:
            return (3,)
        return (3,) * _NUM_CHUNKS if self is Condition.REFERENCE else (4, *(3,) * (_NUM_CHUNKS - 1))


@dataclass(frozen=True)
class ConditionedClips:
    """Clips of one condition, all of one length.

    Attributes:
        latents: float16 [clips, C, T, H, W].
        context: float16 [clips, vace_in_channels, T, H, W].
        objects: how much of a latent pixel the object covers, float16 [clips, 1, T, H, W].
        captions: token ids and mask, int64 [clips, 2, Lt].
        has_no_start: the object starts in a place that nothing tells, bool [clips].
    """

    latents: Tensor
    context: Tensor
    objects: Tensor
    captions: Tensor
    has_no_start: Tensor


@dataclass(frozen=True)
class _Drawn:
    frames: Tensor  # [1, 3, F, H, W]
    covered: Tensor  # [1, F, H, W]
    conditioning: list[Conditioning | None]
    references: list[Tensor]


@torch.inference_mode()
def conditioned_clips(
    condition: Condition, num: int, encoder: TaeEncoder, text_len: int, rng: np.random.Generator
) -> ConditionedClips:
    """Draw and encode clips of random scenes."""
    captions, all_latents, contexts, objects, has_no_start = [], [], [], [], []
    for _ in range(num):
        scene = random_scene(rng)
        in_middle = rng.random() < _SHARES_IN_MIDDLE.get(condition, 0)
        start = MIDDLE if in_middle else (float(rng.integers(SIDE)), float(rng.integers(SIDE)))
        drawn = _draw(condition, scene, start, rng)
        latents, context = _encoded(drawn, encoder, condition.chunk_lengths)
        is_vague = condition is Condition.REFERENCE and rng.random() < _SHARE_VAGUE
        captions.append(vague_caption(scene) if is_vague else caption(scene))
        all_latents.append(latents)
        contexts.append(context)
        objects.append(by_latent(drawn.covered).half())
        has_no_start.append(condition is Condition.MASK and not in_middle)
    tokens = tokens_of(set(captions), text_len)
    return ConditionedClips(
        torch.cat(all_latents),
        torch.cat(contexts),
        torch.cat(objects),
        torch.from_numpy(np.stack([tokens[text] for text in captions])),
        torch.tensor(has_no_start),
    )


def _draw(condition: Condition, scene: Scene, start: tuple[float, float], rng: np.random.Generator) -> _Drawn:
    takes_frames = condition in (Condition.MASK, Condition.GRAY, Condition.SCRIBBLE)
    num_chunks = len(condition.chunk_lengths)
    first = CHUNK_FRAMES if takes_frames else FIRST_CHUNK_FRAMES
    shots: list[Shot] = [(scene, first + CHUNK_FRAMES * (num_chunks - 1))]
    drawn = render(shots, start)
    frames, covered = to_pixels(drawn[None]), torch.from_numpy(masks(shots, start))[None]
    if condition is Condition.REFERENCE:
        return _Drawn(frames, covered, [None] * num_chunks, [_reference(scene, rng)])
    if condition is Condition.IMAGE:
        which = rng.integers(3)
        one = Conditioning.combine(
            first,
            first_image=None if which == 1 else frames[:, :, :1],
            last_image=None if which == 0 else frames[:, :, -1:],
        )
        return _Drawn(frames, covered, [one], [])
    missing = None
    given = frames
    if condition is Condition.MASK:
        missing = torch.from_numpy(random_mask(rng)).expand(1, 1, CHUNK_FRAMES, -1, -1)
    else:
        given = to_pixels(CONTROLS[condition.value].process(drawn)[None])
    parts = [
        Conditioning.combine(CHUNK_FRAMES, frames=part, masks=missing) for part in given.split(CHUNK_FRAMES, dim=2)
    ]
    parts[0] = None if parts[0] is None else parts[0].padded()
    return _Drawn(pad_first_frame(frames), pad_first_frame(covered), parts, [])


def _reference(scene: Scene, rng: np.random.Generator) -> Tensor:
    """The object in the middle of a white ground or one of another colour, [1, 3, 1, H, W]."""
    others = [name for name in PALETTE if name != scene.colour]
    ground = "white" if scene.colour != "white" and rng.random() < 0.5 else others[int(rng.integers(len(others)))]
    colour, behind = (np.array(PALETTE[name], np.float32) for name in (scene.colour, ground))
    covered = coverage(scene.shape, np.array([MIDDLE], np.float32), float(rng.uniform(*_REFERENCE_SIZES)))[..., None]
    return to_pixels(np.rint(covered * colour + (1 - covered) * behind).astype(np.uint8)[None])


def _encoded(drawn: _Drawn, encoder: TaeEncoder, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Latents and context of a clip."""
    encoders = VaceEncoders(_stream(encoder), _stream(encoder), _stream(encoder))
    contexts = [
        vace_context(conditioning, drawn.references, encoders, length).latents
        for conditioning, length in zip(drawn.conditioning, lengths, strict=True)
    ]
    return encoder(drawn.frames)[0].half(), torch.cat(contexts, dim=2).half()


def _stream(encoder: TaeEncoder) -> Callable[[Tensor], Tensor]:
    """The encoder with a state that goes on from call to call; an image of one frame has none."""
    state: list[Tensor] | None = None

    def encode(pixels: Tensor) -> Tensor:
        nonlocal state
        latents, new_state = encoder(pixels, state)
        state = None if pixels.shape[2] == 1 else new_state
        return latents

    return encode
