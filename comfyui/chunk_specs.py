"""Per-chunk overrides, which the FILMSTRIP_CHUNK_SPECS sockets carry, and the blob for their arrays."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from .frames import Floats, vace_frames, vace_masks, video_frames

IMAGES = ("first_frame_image", "last_frame_image", "vace_ref_images")
"""Arrays of a spec that are uploaded as images; the others go into the blob."""

_ALIGNMENT = 4
"""That of float32, so that the server can use the bytes in place."""
_EXCLUDING = {"text": "prompts", "prompts": "text"}


@dataclass(frozen=True)
class ChunkSpec:
    """The overrides of one chunk.

    Attributes:
        chunk: its index, from 0.
        fields: as in the request, without offsets and shapes.
        arrays: IMAGE and MASK batches: those of `IMAGES`, `vace_frames`, `vace_masks` and `input_video`.
    """

    chunk: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduledPrompt:
    """A prompt from a place in the video on, which is a chunk only once the chunks are known.

    Attributes:
        start: the place, in units of `unit`.
        unit: one of `UNITS`.
        fps: frames per second; only counts for seconds.
        text: the prompt.
    """

    start: float
    unit: str
    fps: float
    text: str


UNITS = ("chunk", "frame", "second")

Specs = tuple[ChunkSpec | ScheduledPrompt, ...]


@dataclass(frozen=True)
class Lora:
    """A LoRA of the pipeline: what the FILMSTRIP_LORAS sockets carry.

    Attributes:
        name: as the pipeline lists it.
        strength: its scale.
        ramp: points (chunk, factor) in rising order; the strength is multiplied by the factor, which grows evenly
            between the points. Empty: always 1.
    """

    name: str
    strength: float
    ramp: tuple[tuple[int, float], ...] = ()

    def scale(self, chunk: int) -> float:
        """Its scale in a chunk."""
        if not self.ramp:
            return self.strength
        chunks, factors = zip(*self.ramp, strict=True)
        return round(self.strength * float(np.interp(chunk, chunks, factors)), 6)


Loras = tuple[Lora, ...]


def place_prompts(specs: Specs, chunk_starts: Sequence[int], num_frames: int) -> tuple[list[ChunkSpec], list[str]]:
    """Put each scheduled prompt into its chunk, in the order of the chain.

    Args:
        specs: of the whole chain.
        chunk_starts: the first frame of each chunk.
        num_frames: of the video.

    Returns:
        The specs, and warnings: a prompt past the end is left out, and of two in one chunk the later one holds.
    """
    placed: list[ChunkSpec] = []
    warnings: list[str] = []
    taken: dict[int, ScheduledPrompt] = {}
    for spec in specs:
        if isinstance(spec, ChunkSpec):
            placed.append(spec)
            continue
        where = f"{spec.unit} {spec.start:g}"
        if spec.unit == "chunk":
            chunk = int(spec.start) if spec.start < len(chunk_starts) else None
        else:
            frame = int(spec.start if spec.unit == "frame" else spec.start * spec.fps + 0.5)
            chunk = bisect.bisect_right(chunk_starts, frame) - 1 if frame < num_frames else None
        if chunk is None:
            size = f"{len(chunk_starts)} chunks" if spec.unit == "chunk" else f"{num_frames} frames"
            warnings.append(f"the prompt at {where} is past the end of the {size} and is not used")
            continue
        if chunk in taken and spec.unit != "chunk":
            warnings.append(
                f"the prompts at {where} and {taken[chunk].start:g} are both in chunk {chunk}; the later holds"
            )
        taken[chunk] = spec
        placed.append(ChunkSpec(chunk, {"text": spec.text}))
    return placed, warnings


def with_loras(specs: Mapping[int, ChunkSpec], loras: Loras, num_chunks: int) -> dict[int, ChunkSpec]:
    """Add the scales of LoRAs of which one has a ramp to each chunk; a chunk's own scales win."""
    result = dict(specs)
    for chunk in range(num_chunks):
        scales = {lora.name: lora.scale(chunk) for lora in loras}
        spec = result.get(chunk, ChunkSpec(chunk))
        own = spec.fields.get("lora_scales", {})
        result[chunk] = replace(spec, fields={**spec.fields, "lora_scales": {**scales, **own}})
    return result


def with_references(specs: Mapping[int, ChunkSpec], images: Floats, num_chunks: int) -> dict[int, ChunkSpec]:
    """Add reference images to each chunk that has none of its own."""
    result = dict(specs)
    for chunk in range(num_chunks):
        spec = result.get(chunk, ChunkSpec(chunk))
        result[chunk] = replace(spec, arrays={"vace_ref_images": images, **spec.arrays})
    return result


def merge(specs: Iterable[ChunkSpec]) -> dict[int, ChunkSpec]:
    """One spec for each chunk: later specs win, field by field."""
    merged: dict[int, ChunkSpec] = {}
    for spec in specs:
        before = merged.get(spec.chunk, ChunkSpec(spec.chunk))
        replaced = {_EXCLUDING[name] for name in spec.fields if name in _EXCLUDING}
        kept = {name: value for name, value in before.fields.items() if name not in replaced}
        merged[spec.chunk] = ChunkSpec(spec.chunk, {**kept, **spec.fields}, {**before.arrays, **spec.arrays})
    return merged


def with_batches(
    specs: Mapping[int, ChunkSpec], batches: Mapping[str, Floats], chunk_size: int, num_frames: int
) -> dict[int, ChunkSpec]:
    """Add each chunk's part of the VACE batches of the whole video; a chunk's own arrays win."""
    result = dict(specs)
    for name, batch in batches.items():
        for index, part in split_batch(len(batch), chunk_size, num_frames):
            spec = result.get(index, ChunkSpec(index))
            result[index] = replace(spec, arrays={name: batch[part], **spec.arrays})
    return result


def add_to_blob(blob: Blob, arrays: Mapping[str, Floats]) -> dict[str, Any]:
    """Add one chunk's arrays to the blob; returns the fields that point to them."""
    placed: dict[str, Any] = {}
    for name, array in arrays.items():
        num_frames, height, width = array.shape[:3]
        pieces: Callable[[Floats], Iterator[memoryview]]
        if name == "vace_frames":
            shape, num_bytes, pieces = [1, 3, num_frames, height, width], 4, vace_frames
        elif name == "vace_masks":
            shape, num_bytes, pieces = [1, 1, num_frames, height, width], 4, vace_masks
        else:
            assert name == "input_video", name
            shape, num_bytes, pieces = [num_frames, height, width, 3], 1, video_frames
        for size in shape:
            num_bytes *= size
        # The same memory read in the same way is the same array: a mask that all chunks share is sent once.
        key = (name, array.__array_interface__["data"][0], array.strides, array.shape)
        placed[f"{name}_offset"] = blob.add(key, num_bytes, partial(pieces, array))
        placed[f"{name}_shape"] = shape
    return placed


def split_batch(batch_frames: int, chunk_size: int, num_frames: int) -> Iterator[tuple[int, slice]]:
    """Split a batch of VACE frames or masks; yields each chunk that gets a part, and its part.

    Chunk k gets the frames from k * chunk_size on, as with an input video: a chunk with VACE arrays has chunk_size
    frames, even the first. The server repeats the last frame of a part that is too short. A batch of one frame applies
    to every chunk. Chunks beyond the end of a shorter batch get nothing.
    """
    for index in range(-(-num_frames // chunk_size)):
        if batch_frames == 1:
            yield index, slice(0, 1)
            continue
        start = index * chunk_size
        if start >= batch_frames:
            return
        yield index, slice(start, min(start + chunk_size, batch_frames))


class Blob:
    """Collects arrays; iterating over it, as often as needed, converts and yields the bytes to send."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Callable[[], Iterator[memoryview]]]] = []
        self._offsets: dict[Hashable, int] = {}
        self.num_bytes = 0

    def add(self, key: Hashable, num_bytes: int, pieces: Callable[[], Iterator[memoryview]]) -> int:
        """Add an array; returns its offset.

        Args:
            key: an array that was already added under this key is not added again: chunks may share one.
            num_bytes: of the array.
            pieces: yields its bytes when they are sent.
        """
        if key not in self._offsets:
            offset = -(-self.num_bytes // _ALIGNMENT) * _ALIGNMENT
            self._offsets[key] = offset
            self._parts.append((offset, pieces))
            self.num_bytes = offset + num_bytes
        return self._offsets[key]

    def __iter__(self) -> Iterator[bytes | memoryview]:
        end = 0
        for offset, pieces in self._parts:
            if offset > end:
                yield bytes(offset - end)
            end = offset
            for piece in pieces():
                end += piece.nbytes
                yield piece
        assert end == self.num_bytes, "an array has another size than announced"
