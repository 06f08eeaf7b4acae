"""The arrays of a chunk, as the contract has them, become the conditioning."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.contract import ChunkParameters, Mode, PipelineInfo
from filmstrip.errors import InvalidField, ModelError
from filmstrip.runtime.sequences import Chunk
from filmstrip.runtime.vace import conditioning_of, is_doubled, references_of

HEIGHT, WIDTH = 16, 24
WHITE, BLACK = 1.0, -1.0


def chunk(tensors: dict[str, np.ndarray], num_frames: int = 12, **fields: Any) -> Chunk:
    fields = {"index": 1, "height": HEIGHT, "width": WIDTH, "mode": Mode.TEXT, **fields}
    return Chunk(ChunkParameters(num_frames=num_frames, **fields), tensors, lambda: False)


def video(*levels: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.array(levels, np.uint8).reshape(-1, 1, 1, 1).repeat(size[0], 1).repeat(size[1], 2).repeat(3, 3)


def image(level: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def floats(*values: float, channels: int = 3) -> np.ndarray:
    frames = np.array(values, np.float32).reshape(1, 1, -1, 1, 1)
    return np.ascontiguousarray(np.broadcast_to(frames, (1, channels, len(values), HEIGHT, WIDTH)))


def told(array: "torch.Tensor") -> list[float]:
    """The value of each frame, all even."""
    values = array[0, 0, :, 0, 0]
    assert torch.equal(array, values.reshape(1, 1, -1, 1, 1).expand(1, array.shape[1], -1, HEIGHT, WIDTH))
    return values.tolist()


CASES = {
    "frames and masks": (
        chunk({"vace_frames": floats(*range(12)), "vace_masks": floats(*[0, 1] * 6, channels=1)}),
        *(list(range(12)), [0, 1] * 6),
    ),
    "frames of one channel, short": (
        chunk({"vace_frames": floats(0.25, 0.5, channels=1)}),
        *([0.25] + [0.5] * 11, [1] * 12),
    ),
    "frames to be resampled": (
        chunk({"vace_frames": floats(0.25, 0.5)}, vace_temporally_locked=False),
        *([0.25] * 6 + [0.5] * 6, [1] * 12),
    ),
    "a first chunk with frames": (
        chunk({"vace_frames": floats(*range(12))}, reset=True),
        *([0, *range(12)], [1] * 13),
    ),
    "the input video as frames": (
        chunk({"input_video": video(*[255] * 11, 0, size=(40, 70))}, vace_use_input_video=True),
        *([WHITE] * 11 + [BLACK], [1] * 12),
    ),
    "the input video as a first chunk's frames": (
        chunk({"input_video": video(0, *[255] * 11)}, vace_use_input_video=True, reset=True),
        *([BLACK] * 2 + [WHITE] * 11, [1] * 13),
    ),
    "own frames before the input video": (
        chunk({"vace_frames": floats(0.5), "input_video": video(*[255] * 12)}, vace_use_input_video=True),
        *([0.5] * 12, [1] * 12),
    ),
    "an input video that is the source": (chunk({"input_video": video(*[255] * 12)}, mode=Mode.VIDEO), None, None),
    "key images in a first chunk from text": (
        chunk({"first_frame_image": image(255, 30, 90), "last_frame_image": image(0, 90, 30)}, 9, reset=True),
        *([WHITE] * 4 + [0] + [BLACK] * 4, [0] * 4 + [1] + [0] * 4),
    ),
    "a key image in a first chunk of video": (
        chunk({"first_frame_image": image(255, 5, 5), "input_video": video(*[0] * 12)}, mode=Mode.VIDEO, reset=True),
        *([WHITE] * 5 + [0] * 8, [0] * 5 + [1] * 8),
    ),
    "references alone": (chunk({"vace_ref_images": image(0, 2, 2).ravel()}, ref_image_shapes=((2, 2, 3),)), None, None),
    "nothing": (chunk({}), None, None),
}


@pytest.mark.parametrize(("given", "frames", "masks"), CASES.values(), ids=CASES)
def test_conditioning(given: Chunk, frames: list[float] | None, masks: list[float] | None):
    made = conditioning_of(given)
    if frames is None:
        assert made is None
    else:
        assert made is not None
        assert told(made.frames) == frames
        assert told(made.masks) == masks


def test_an_input_video_that_is_missing_is_named():
    with pytest.raises(InvalidField, match="chunk 1: input_video is missing"):
        conditioning_of(chunk({}, vace_use_input_video=True))


def test_references_are_whole_on_white():
    wide, square = image(0, 4, 24), image(0, 8, 8)
    joined = np.concatenate([wide.ravel(), square.ravel()])
    made = references_of(chunk({"vace_ref_images": joined}, ref_image_shapes=(wide.shape, square.shape)))
    assert [reference.shape for reference in made] == [(1, 3, 1, HEIGHT, WIDTH)] * 2
    rows = [(reference[0, 0, 0] == BLACK).sum(1).tolist() for reference in made]
    assert rows == [[0] * 6 + [24] * 4 + [0] * 6, [16] * 16]
    assert set(made[0].unique().tolist()) == {BLACK, WHITE}


def test_no_references():
    assert references_of(chunk({})) == []


def test_references_that_do_not_fit_their_shapes_are_refused():
    with pytest.raises(ModelError, match="vace_ref_images has 12"):
        references_of(chunk({"vace_ref_images": image(0, 2, 2).ravel()}, ref_image_shapes=((2, 3, 3),)))


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("tensors", "from_input"),
    [({}, False), ({"vace_frames": floats(0)}, False), ({"vace_masks": floats(0, channels=1)}, False), ({}, True)],
)
def test_the_frame_that_is_doubled_is_the_one_that_the_plan_counts(mode, reset, tensors, from_input):
    facts = PipelineInfo("p", tuple(Mode), chunk_size=12, first_chunk_size=9, latent_frames=3)
    latents = facts.chunk_latents(mode, first=reset, conditioned=bool(tensors) or from_input)
    given = chunk(tensors, mode=mode, reset=reset, vace_use_input_video=from_input)
    assert is_doubled(given) == (latents == 4)


def test_arrays_are_moved_to_the_device():
    given = chunk({"vace_frames": floats(0.5)})
    made = conditioning_of(given, "meta")
    assert made is not None
    assert made.frames.device.type == made.masks.device.type == "meta"
