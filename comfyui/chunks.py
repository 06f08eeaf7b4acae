"""Which frames of a batch belong to which chunk. Pure."""

from __future__ import annotations

from collections.abc import Iterator


def cut(batch_frames: int, chunk_size: int, num_frames: int) -> Iterator[tuple[int, slice]]:
    """The chunks that get a part of a batch of VACE frames or masks, each with its part.

    Chunk k gets the frames from k * chunk_size on, as it does of an input video: a chunk with VACE arrays has
    chunk_size frames, the first one too. The server repeats the last frame of a part that is short. A batch of one
    frame holds for every chunk. Chunks beyond the end of a shorter batch get nothing.
    """
    for index in range(-(-num_frames // chunk_size)):
        if batch_frames == 1:
            yield index, slice(0, 1)
            continue
        start = index * chunk_size
        if start >= batch_frames:
            return
        yield index, slice(start, min(start + chunk_size, batch_frames))
