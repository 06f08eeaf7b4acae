"""Chunks as models get them, and the rules by which sequences are kept and dropped."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from filmstrip.contract import INPUT_VIDEO, VACE_FRAMES, VACE_MASKS, ChunkParameters
from filmstrip.errors import BadModelOutput, InvalidField, ModelError, SequenceLost
from filmstrip.runtime.processors import Gray, Passthrough
from filmstrip.runtime.sequences import (
    Chunk,
    ChunkCancelled,
    FrameProcessorState,
    IdleTimer,
    Sequences,
    Timings,
    check_frames,
    check_tensor,
    read_parameters,
)

# -- Chunks --------------------------------------------------------------------------------------------------

PARAMETERS = ChunkParameters(index=3, num_frames=2, height=4, width=6)
VIDEO = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)


def chunk(parameters=PARAMETERS, cancelled=False, **tensors) -> Chunk:
    return Chunk(parameters, tensors, lambda: cancelled)


def test_parameters_are_read():
    assert read_parameters(np.array([PARAMETERS.to_json()], object)) == PARAMETERS


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"index": 0}', b'{"colour": 1}', b'{"prompts": [3]}', b"\xff"])
def test_unreadable_parameters_are_refused(text):
    with pytest.raises(ModelError, match="cannot read the chunk's parameters"):
        read_parameters(np.array([text], object))


def test_good_tensors_pass():
    check_tensor(0, INPUT_VIDEO, VIDEO)
    check_tensor(0, VACE_FRAMES, np.zeros((1, 3, 2, 4, 6), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("spec", "shape"), [(VACE_FRAMES, (1, 3, 2, 4, 6)), (VACE_MASKS, (1, 1, 2, 4, 6))])
def test_a_single_value_that_is_not_finite_is_refused(spec, shape, value):
    array = np.zeros(shape, np.float32)
    array[..., -1] = value
    with pytest.raises(InvalidField) as caught:
        check_tensor(3, spec, array)
    assert caught.value.message == f"chunk 3: {spec.name} contains NaN or infinity"
    assert caught.value.field == f"chunk_specs[chunk=3].{spec.name}"


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (VIDEO.astype(np.float32), "is float32, must be UINT8"),
        (VIDEO[..., :1], r"has shape \[2, 4, 6, 1\]"),
        (VIDEO[0], r"has shape \[4, 6, 3\]"),
        (VIDEO[:0], "is empty"),
    ],
)
def test_a_tensor_of_the_wrong_type_is_refused(array, problem):
    with pytest.raises(InvalidField, match=rf"chunk 5: input_video {problem}"):
        check_tensor(5, INPUT_VIDEO, array)


def test_what_was_asked_for_passes():
    check_frames(PARAMETERS, VIDEO)


@pytest.mark.parametrize("frames", [VIDEO[:1], VIDEO[:, 1:], VIDEO[..., :1], VIDEO.astype(np.float32)])
def test_frames_of_the_wrong_shape_are_reported(frames):
    with pytest.raises(BadModelOutput, match="chunk 3: the model returned"):
        check_frames(PARAMETERS, frames)


def test_a_missing_tensor_is_refused():
    with pytest.raises(InvalidField, match="chunk 3: input_video is missing"):
        chunk().tensor(INPUT_VIDEO)


def test_cancelling_stops_between_steps():
    chunk().stop_if_cancelled()
    with pytest.raises(ChunkCancelled):
        chunk(cancelled=True).stop_if_cancelled()


def test_stages_add_up():
    timings = Timings()
    for _ in range(2):
        with timings.measure("sleep"):
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), timings.measure("failing"):
        raise ZeroDivisionError
    assert 0.02 <= timings.seconds["sleep"] < 1
    assert timings.seconds["failing"] >= 0


def test_a_frame_processor_resizes_processes_and_takes_time():
    made = chunk(ChunkParameters(index=0, num_frames=2, height=8, width=12), input_video=VIDEO)
    frames = FrameProcessorState(Gray()).chunk(made)
    assert frames.shape == (2, 8, 12, 3)
    assert (frames == frames[..., :1]).all()
    assert set(made.timings.seconds) == {"resize", "process"}


def test_a_frame_processor_does_not_resize_frames_of_the_right_size():
    np.testing.assert_array_equal(FrameProcessorState(Passthrough()).chunk(chunk(input_video=VIDEO)), VIDEO)


# -- Sequences -----------------------------------------------------------------------------------------------


class State:
    pass


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sequences(clock) -> Sequences[State]:
    return Sequences(State, max_sequences=2, idle_s=10, clock=clock)


def start(sequences: Sequences[State], id: int) -> State:
    with sequences.use(id, start=True, end=False) as state:
        return state


def go_on(sequences: Sequences[State], id: int) -> State:
    with sequences.use(id, start=False, end=False) as state:
        return state


def test_a_sequence_keeps_its_state(sequences):
    first, second = start(sequences, 1), start(sequences, 2)
    assert go_on(sequences, 1) is first
    assert go_on(sequences, 2) is second


def test_start_replaces(sequences):
    first = start(sequences, 1)
    assert start(sequences, 1) is not first
    assert len(sequences) == 1


def test_end_frees(sequences):
    start(sequences, 1)
    with sequences.use(1, start=False, end=True):
        assert len(sequences) == 1
    assert len(sequences) == 0
    with pytest.raises(SequenceLost):
        go_on(sequences, 1)


def test_one_request_can_be_start_and_end(sequences):
    with sequences.use(1, start=True, end=True):
        pass
    assert len(sequences) == 0


def test_a_separate_end_frees_the_sequence_and_can_be_repeated(sequences):
    start(sequences, 1)
    sequences.end(1)
    sequences.end(1)
    assert len(sequences) == 0


@pytest.mark.parametrize("first", [True, False])
def test_a_failing_chunk_frees(sequences, first):
    start(sequences, 1)
    with pytest.raises(RuntimeError), sequences.use(1, start=first, end=False):
        raise RuntimeError
    assert len(sequences) == 0


def test_an_unknown_sequence_is_lost(sequences):
    with pytest.raises(SequenceLost):
        go_on(sequences, 7)


def test_one_too_many_drops_the_longest_idle(sequences, clock):
    start(sequences, 1)
    clock.now += 1
    second = start(sequences, 2)
    clock.now += 1
    first = go_on(sequences, 1)
    clock.now += 1
    start(sequences, 3)
    assert go_on(sequences, 1) is first
    with pytest.raises(SequenceLost):
        go_on(sequences, 2)
    assert second is not first


def test_the_replaced_state_is_gone_before_the_new_one_is_made():
    alive: list[int] = []
    made: weakref.WeakSet[State] = weakref.WeakSet()

    def make() -> State:
        gc.collect()
        alive.append(len(made))
        state = State()
        made.add(state)
        return state

    sequences = Sequences(make, max_sequences=1, idle_s=10)
    for number in (1, 1, 2):
        with sequences.use(number, start=True, end=False):
            pass
    assert alive == [0, 0, 0]


def test_a_start_that_fails_leaves_nothing():
    def make() -> State:
        raise MemoryError

    sequences = Sequences(make, max_sequences=1, idle_s=10)
    with pytest.raises(MemoryError), sequences.use(1, start=True, end=False):
        pass
    assert len(sequences) == 0


def test_idle_states_are_dropped(sequences, clock):
    start(sequences, 1)
    clock.now += 6
    start(sequences, 2)
    clock.now += 4.5
    sequences.drop_idle()
    assert len(sequences) == 1
    go_on(sequences, 2)
    with pytest.raises(SequenceLost):
        go_on(sequences, 1)


def test_a_long_chunk_is_not_idle(sequences, clock):
    with sequences.use(1, start=True, end=False) as state:
        clock.now += 1000
        sequences.drop_idle()
    clock.now += 9
    sequences.drop_idle()
    assert go_on(sequences, 1) is state


def test_clear_drops_all(sequences):
    start(sequences, 1)
    start(sequences, 2)
    sequences.clear()
    assert len(sequences) == 0


def test_the_timer_frees_while_nothing_comes():
    sequences = Sequences(State, max_sequences=2, idle_s=0.05)
    timer = IdleTimer(sequences, 0.01)
    state = weakref.ref(start(sequences, 1))
    until = time.monotonic() + 5
    while state() is not None and time.monotonic() < until:
        time.sleep(0.01)
    timer.stop()
    assert state() is None


def test_the_timer_stops():
    timer = IdleTimer(Sequences(State, max_sequences=1, idle_s=1), 0.01)
    threads = [thread for thread in threading.enumerate() if thread.name == "idle-timer"]
    timer.stop()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


class Model(RuleBasedStateMachine):
    """The table against a plain dict of (state, last use)."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = Sequences(State, max_sequences=3, idle_s=10, clock=self.clock)
        self.known: dict[int, tuple[State, float]] = {}

    ids = st.integers(1, 5)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(id=ids, end=st.booleans(), fails=st.booleans())
    def starts(self, id, end, fails):
        self.known.pop(id, None)
        if len(self.known) == 3:
            del self.known[min(self.known, key=lambda key: self.known[key][1])]
        self._use(id, start=True, end=end, fails=fails)

    @rule(id=ids, end=st.booleans(), fails=st.booleans())
    def goes_on(self, id, end, fails):
        if id in self.known:
            self._use(id, start=False, end=end, fails=fails)
        else:
            with pytest.raises(SequenceLost):
                self._use(id, start=False, end=end, fails=fails)

    @rule(id=ids)
    def ends(self, id):
        self.table.end(id)
        self.known.pop(id, None)

    @rule()
    def timer(self):
        self.table.drop_idle()
        self.known = {key: entry for key, entry in self.known.items() if self.clock.now - entry[1] <= 10}

    @invariant()
    def same_number(self):
        assert len(self.table) == len(self.known)

    def _use(self, id, *, start, end, fails):
        self.clock.now += 0.001  # no two uses at the same time
        try:
            with self.table.use(id, start=start, end=end) as state:
                assert start or state is self.known[id][0]
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            end = True
        if end:
            self.known.pop(id, None)
        else:
            self.known[id] = (state, self.clock.now)


TestModel = Model.TestCase
