import time

import numpy as np
import pytest

from filmstrip.contract import INPUT_VIDEO, VACE_FRAMES, VACE_MASKS, ChunkParameters
from filmstrip.errors import BadModelOutput, InvalidField, ModelError
from filmstrip.runtime.processors import Gray, Passthrough
from filmstrip.runtime.sequences import (
    Cancelled,
    Chunk,
    FrameProcessing,
    Stages,
    check_frames,
    check_tensor,
    read_parameters,
)

PARAMETERS = ChunkParameters(index=3, num_frames=2, height=4, width=6)
VIDEO = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)


def chunk(parameters=PARAMETERS, cancelled=False, **tensors) -> Chunk:
    return Chunk(parameters, tensors, lambda: cancelled)


def test_parameters_are_read():
    assert read_parameters(np.array([PARAMETERS.to_json()], object)) == PARAMETERS


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"index": 0}', b'{"colour": 1}', b'{"prompts": [3]}', b"\xff"])
def test_unreadable_parameters_are_told(text):
    with pytest.raises(ModelError, match="cannot read the chunk's parameters"):
        read_parameters(np.array([text], object))


def test_good_tensors_pass():
    check_tensor(0, INPUT_VIDEO, VIDEO)
    check_tensor(0, VACE_FRAMES, np.zeros((1, 3, 2, 4, 6), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("spec", "shape"), [(VACE_FRAMES, (1, 3, 2, 4, 6)), (VACE_MASKS, (1, 1, 2, 4, 6))])
def test_one_value_that_is_not_finite_is_told(spec, shape, value):
    array = np.zeros(shape, np.float32)
    array[..., -1] = value
    with pytest.raises(InvalidField) as caught:
        check_tensor(3, spec, array)
    assert caught.value.message == f"chunk 3: {spec.name} holds NaN or infinity"
    assert caught.value.field == f"chunk_specs[chunk=3].{spec.name}"


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (VIDEO.astype(np.float32), "is float32, wanted UINT8"),
        (VIDEO[..., :1], r"has shape \[2, 4, 6, 1\]"),
        (VIDEO[0], r"has shape \[4, 6, 3\]"),
        (VIDEO[:0], "is empty"),
    ],
)
def test_a_tensor_of_another_kind_is_told(array, problem):
    with pytest.raises(InvalidField, match=rf"chunk 5: input_video {problem}"):
        check_tensor(5, INPUT_VIDEO, array)


def test_what_was_asked_for_passes():
    check_frames(PARAMETERS, VIDEO)


@pytest.mark.parametrize("frames", [VIDEO[:1], VIDEO[:, 1:], VIDEO[..., :1], VIDEO.astype(np.float32)])
def test_other_frames_than_asked_for_are_told(frames):
    with pytest.raises(BadModelOutput, match="chunk 3: the model made"):
        check_frames(PARAMETERS, frames)


def test_a_missing_tensor_is_told():
    with pytest.raises(InvalidField, match="chunk 3: input_video is missing"):
        chunk().tensor(INPUT_VIDEO)


def test_cancelling_stops_between_steps():
    chunk().stop_if_cancelled()
    with pytest.raises(Cancelled):
        chunk(cancelled=True).stop_if_cancelled()


def test_stages_add_up():
    stages = Stages()
    for _ in range(2):
        with stages.stage("sleep"):
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), stages.stage("failing"):
        raise ZeroDivisionError
    assert 0.02 <= stages.seconds["sleep"] < 1
    assert stages.seconds["failing"] >= 0


def test_a_frame_processor_resizes_processes_and_takes_time():
    made = chunk(ChunkParameters(index=0, num_frames=2, height=8, width=12), input_video=VIDEO)
    frames = FrameProcessing(Gray()).chunk(made)
    assert frames.shape == (2, 8, 12, 3)
    assert (frames == frames[..., :1]).all()
    assert set(made.stages.seconds) == {"resize", "process"}


def test_a_frame_processor_leaves_the_right_size_alone():
    np.testing.assert_array_equal(FrameProcessing(Passthrough()).chunk(chunk(input_video=VIDEO)), VIDEO)
