"""The models on a real Triton: sequences, chunks, errors and cancelling as the frontend will meet them."""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from filmstrip.contract import CHUNK, FRAMES, INPUTS, REPORT, ChunkParameters, Mode, Prompt
from filmstrip.errors import BadModelOutput, FilmstripError, InvalidField, ModelError, SequenceLost, from_wire
from filmstrip.runtime.processors import Gray, OpticalFlow, Passthrough, Scribble, resize
from tests.support.server import Frontend

PROCESSORS = {"passthrough": Passthrough, "gray": Gray, "scribble": Scribble, "optical-flow": OpticalFlow}
_DTYPES = {spec.name: spec.dtype for spec in INPUTS}
_ids = itertools.count(time.time_ns() // 1000)


class NoStart(Exception):
    """Triton's own answer for a sequence that isn't open."""


@dataclass
class Answer:
    frames: np.ndarray
    report: dict[str, Any]


class Sequence:
    """One sequence of one model, as the frontend would hold it."""

    def __init__(self, client: grpc.InferenceServerClient, model: str, id: int | None = None) -> None:
        self.client = client
        self.model = model
        self.id = next(_ids) if id is None else id

    def send(self, parameters=None, *, start=False, end=False, timeout_s=None, **arrays) -> Answer | None:
        inputs = []
        if parameters is not None:
            arrays[CHUNK.name] = np.array([parameters.to_json()], object)
        for name, array in arrays.items():
            inputs.append(grpc.InferInput(name, list(array.shape), _DTYPES[name]))
            inputs[-1].set_data_from_numpy(array)
        try:
            result = self.client.infer(
                self.model,
                inputs,
                sequence_id=self.id,
                sequence_start=start,
                sequence_end=end,
                client_timeout=timeout_s,
            )
        except grpc.InferenceServerException as error:
            if "must specify the START flag" in error.message():
                raise NoStart from error
            raise from_wire(error.message()) or error from error
        if not result.get_response().outputs:
            return None
        return Answer(result.as_numpy(FRAMES.name), json.loads(result.as_numpy(REPORT.name)[0]))

    def end(self) -> None:
        assert self.send(end=True) is None


@pytest.fixture
def client(server: Frontend) -> Iterator[grpc.InferenceServerClient]:
    with server.triton_client() as client:
        yield client


@pytest.fixture
def open_sequence(client) -> Iterator[Any]:
    """Makes sequences, and ends those that a test leaves open."""
    made = []

    def make(model: str) -> Sequence:
        made.append(Sequence(client, model))
        return made[-1]

    yield make
    for sequence in made:
        with contextlib.suppress(NoStart):
            sequence.end()


@pytest.fixture(params=sorted(PROCESSORS))
def processor(request) -> str:
    return request.param


def video(num_frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A soft random picture that wanders."""
    ground = np.random.default_rng(seed).integers(0, 256, (1, 8, 8, 3), np.uint8)
    ground = resize(ground, height, width)[0]
    return np.stack([np.roll(ground, (index, 2 * index), (0, 1)) for index in range(num_frames)])


def of(frames: np.ndarray, index: int = 0) -> ChunkParameters:
    """Parameters that keep the frames' number and size."""
    return ChunkParameters(index, *frames.shape[:3])


def text(index: int = 0, prompt: str = "a cat", **values) -> ChunkParameters:
    return ChunkParameters(index, 9, 16, 32, mode=Mode.TEXT, prompts=(Prompt(prompt),), **values)


# -- Frames ----------------------------------------------------------------------------------------------------


def test_chunk_by_chunk_is_the_whole_to_the_byte(open_sequence, processor):
    whole = video(31)
    expected = PROCESSORS[processor]().process(whole)
    sequence = open_sequence(processor)
    for index, at in enumerate((0, 12, 24)):
        chunk = whole[at : at + 12]
        answer = sequence.send(of(chunk, index), start=at == 0, end=at == 24, input_video=chunk)
        np.testing.assert_array_equal(answer.frames, expected[at : at + 12])
        assert {"read", "resize", "process"} <= answer.report["stages"].keys()
        assert all(seconds >= 0 for seconds in answer.report["stages"].values())


def test_height_and_width_resize(open_sequence, processor):
    frames = video(2)
    parameters = ChunkParameters(0, 2, 80, 50)
    answer = open_sequence(processor).send(parameters, start=True, end=True, input_video=frames)
    np.testing.assert_array_equal(answer.frames, PROCESSORS[processor]().process(resize(frames, 80, 50)))


def test_one_pixel(open_sequence, processor):
    frames = np.full((1, 1, 1, 3), 7, np.uint8)
    answer = open_sequence(processor).send(of(frames), start=True, end=True, input_video=frames)
    assert answer.frames.shape == (1, 1, 1, 3)


def test_three_sequences_of_one_model_do_not_mix(open_sequence):
    clips = [video(24, seed=seed) for seed in range(3)]
    sequences = [open_sequence("optical-flow") for _ in clips]
    made: list[list[np.ndarray]] = [[], [], []]
    for index, at in enumerate(range(0, 24, 6)):
        for clip, sequence, parts in zip(clips, sequences, made, strict=True):
            chunk = clip[at : at + 6]
            parts.append(sequence.send(of(chunk, index), start=at == 0, input_video=chunk).frames)
    for clip, parts in zip(clips, made, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), OpticalFlow().process(clip))


def test_the_probes_pattern_and_its_pass(open_sequence):
    probe = open_sequence("probe")
    made = probe.send(text(seed=5), start=True)
    y, x, channel = np.ogrid[:16, :32, :3]
    np.testing.assert_array_equal(made.frames[2], (5 + 7 * 2 + y + x + 85 * channel) % 256)
    frames = video(9)
    passed = probe.send(ChunkParameters(1, 9, 16, 32), input_video=frames)
    np.testing.assert_array_equal(passed.frames, resize(frames, 16, 32))
    assert [made.report["probe"]["num_chunks"], passed.report["probe"]["num_chunks"]] == [1, 2]
    assert passed.report["probe"]["tensors"]["input_video"]["shape"] == [9, 48, 64, 3]


# -- Sequences -------------------------------------------------------------------------------------------------


def test_a_chunk_without_start_is_tritons_error(open_sequence, processor):
    with pytest.raises(NoStart):
        open_sequence(processor).send(of(video(1)), input_video=video(1))


def test_start_replaces(open_sequence):
    flow, clip = open_sequence("optical-flow"), video(4)
    flow.send(of(clip[:2]), start=True, input_video=clip[:2])
    answer = flow.send(of(clip[2:]), start=True, input_video=clip[2:])
    assert answer.frames[0].min() == 255
    assert answer.report["open_sequences"] == 1


def test_start_replaces_in_the_one_slot(open_sequence):
    probe = open_sequence("probe")
    probe.send(text(), start=True)
    assert probe.send(text(), start=True).report["probe"]["num_chunks"] == 1


@pytest.mark.parametrize("model", ["optical-flow", "probe"])
def test_after_end_no_state_is_left(open_sequence, model):
    frames = video(9)
    parameters = ChunkParameters(0, 9, 48, 64)
    for _ in range(2):
        sequence = open_sequence(model)
        assert sequence.send(parameters, start=True, input_video=frames).report["open_sequences"] == 1
        assert sequence.send(parameters, end=True, input_video=frames).report["open_sequences"] == 0
    sequence = open_sequence(model)
    sequence.send(parameters, start=True, input_video=frames)
    sequence.end()
    last = open_sequence(model).send(parameters, start=True, end=True, input_video=frames)
    assert last.report["open_sequences"] == 0


def test_end_without_inputs_is_cheap_and_closes_the_sequence(open_sequence, processor):
    frames, took_s = video(1), []
    for _ in range(5):
        sequence = open_sequence(processor)
        sequence.send(of(frames), start=True, input_video=frames)
        began = time.perf_counter()
        sequence.end()
        took_s.append(time.perf_counter() - began)
        with pytest.raises(NoStart):
            sequence.send(of(frames, 1), input_video=frames)
    assert min(took_s) < 0.5


# -- Errors ----------------------------------------------------------------------------------------------------


def refused(sequence: Sequence, parameters: ChunkParameters, **arrays: np.ndarray) -> FilmstripError:
    with pytest.raises(FilmstripError) as caught:
        sequence.send(parameters, start=True, **arrays)
    return caught.value


def test_an_unexpected_exception_tells_no_path(open_sequence):
    error = refused(open_sequence("probe"), text(4, "!raise"))
    assert (type(error), error.message) == (ModelError, "the model failed on chunk 4")


def test_a_filmstrip_error_arrives_unchanged(open_sequence):
    assert refused(open_sequence("probe"), text(prompt="!error")).message == "the probe was told to fail"


def test_frames_of_another_shape_are_refused(open_sequence):
    error = refused(open_sequence("probe"), text(1, "!shape"))
    assert isinstance(error, BadModelOutput)
    assert "chunk 1: the model returned uint8 [9, 15, 32, 3], expected uint8 [9, 16, 32, 3]" in error.message


def test_a_number_of_frames_that_was_not_asked_for_is_refused(open_sequence):
    parameters = ChunkParameters(0, 3, 48, 64)
    assert isinstance(refused(open_sequence("gray"), parameters, input_video=video(2)), BadModelOutput)


@pytest.mark.parametrize("name", ["vace_frames", "vace_masks"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_chunk_and_field(open_sequence, name, value):
    array = np.zeros((1, 3 if name == "vace_frames" else 1, 9, 16, 32), np.float32)
    array[0, 0, 8, 15, 31] = value
    error = refused(open_sequence("probe"), text(3), **{name: array})
    assert isinstance(error, InvalidField)
    assert error.message == f"chunk 3: {name} contains NaN or infinity"
    assert error.field == f"chunk_specs[chunk=3].{name}"


def test_a_missing_input_video_is_refused(open_sequence, processor):
    error = refused(open_sequence(processor), of(video(1)))
    assert error.message == "chunk 0: input_video is missing"


def test_an_empty_input_video_is_refused(open_sequence, processor):
    error = refused(open_sequence(processor), of(video(1)), input_video=video(1)[:0])
    assert error.message.startswith("chunk 0: input_video is empty")


def test_a_start_without_a_chunk_is_refused(open_sequence):
    with pytest.raises(ModelError, match="without a chunk"):
        open_sequence("gray").send(start=True)


def test_a_failed_chunk_loses_the_state_but_end_closes_as_ever(open_sequence):
    probe = open_sequence("probe")
    refused(probe, text(prompt="!error"))
    with pytest.raises(SequenceLost):
        probe.send(text(1))
    probe.end()
    assert open_sequence("probe").send(text(), start=True, end=True).report["open_sequences"] == 0


# -- Cancelling ------------------------------------------------------------------------------------------------


def test_cancelling_reaches_the_model(open_sequence):
    """A call that gives up is cancelled; the one slot is then free long before the chunk would have ended."""
    probe, began = open_sequence("probe"), time.monotonic()
    with pytest.raises(grpc.InferenceServerException, match="Deadline Exceeded"):
        probe.send(text(prompt="!sleep 60"), start=True, timeout_s=0.3)
    probe.end()
    answer = open_sequence("probe").send(text(), start=True, end=True)
    assert time.monotonic() - began < 10
    assert (answer.report["probe"]["num_chunks"], answer.report["open_sequences"]) == (1, 0)


def test_cancelling_frees_the_state(open_sequence):
    probe = open_sequence("probe")
    probe.send(text(), start=True)
    with pytest.raises(grpc.InferenceServerException, match="Deadline Exceeded"):
        probe.send(text(1, "!sleep 60"), timeout_s=0.3)
    with pytest.raises(SequenceLost):
        probe.send(text(2))
