"""The adapter between Triton's Python backend and our models: the only file that knows `pb_utils`.

A model is a class that creates the state of a sequence (`filmstrip.runtime.sequences.SequenceState`). Everything that
all models share is here: sequences, reading and checking tensors, errors, cancellation, the report.
"""

import gc

gc.disable()  # the imports create much that stays: the collector would traverse it repeatedly and find nothing

import json
import os
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # half of its names come later: use them in functions only

from filmstrip.contract import CHUNK, FRAMES, INPUTS, REPORT, TensorSpec
from filmstrip.errors import FilmstripError, LoadFailed, ModelError
from filmstrip.runtime.processors import FrameProcessor
from filmstrip.runtime.sequences import (
    Chunk,
    ChunkCancelled,
    FrameProcessorState,
    IdleTimer,
    Sequences,
    SequenceState,
    Timings,
    check_frames,
    check_tensor,
    read_parameters,
)

gc.enable()
_SECOND = 1_000_000  # microseconds
_IDLE_CHECK_S = 10.0


class TritonModel(ABC):
    """Base class of every `TritonPythonModel`: a request is a chunk, START and END are Triton's flags."""

    @abstractmethod
    def start(self) -> SequenceState:
        """Create the state of a new sequence; the one that it replaces has been freed."""

    def load(self, args: dict[str, str]) -> None:  # noqa: B027 - most have nothing to load
        """Prepare to start sequences; `args` are those that Triton passes to `initialize`.

        Raises:
            LoadFailed: the model's folder can't be used; Triton logs and returns its message.
        """

    # -- What Triton calls ----------------------------------------------------------------------------------

    def initialize(self, args: dict[str, str]) -> None:
        """Once, before any request."""
        exit_with_parent()
        batching = json.loads(args["model_config"])["sequence_batching"]
        # Triton's idle time starts when a request arrives, ours when it is done: we never free a state first.
        idle_s = int(batching["max_sequence_idle_microseconds"]) / _SECOND
        slots = int(batching.get("oldest", {}).get("max_candidate_sequences", 1))
        try:
            self.load(args)
        except LoadFailed as error:
            raise pb_utils.TritonModelException(error.message) from None
        self._sequences = Sequences(self.start, max_sequences=slots, idle_s=idle_s)
        self._timer = IdleTimer(self._sequences, min(idle_s, _IDLE_CHECK_S))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, in order."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Once, when the model is unloaded."""
        self._timer.stop()
        self._sequences.clear()

    # -- One request ----------------------------------------------------------------------------------------

    def _answer(self, request: Any) -> Any:
        sequence, flags = request.correlation_id(), request.flags()
        start = bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
        end = bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
        if end and not start and _array(request, CHUNK) is None:
            self._sequences.end(sequence)
            return pb_utils.InferenceResponse(output_tensors=[])
        what = "the start of a sequence" if start else "a chunk"
        try:
            with self._sequences.use(sequence, start=start, end=end) as state:
                chunk = self._read(request)
                what = f"chunk {chunk.parameters.index}"
                chunk.stop_if_cancelled()
                frames = state.chunk(chunk)
                check_frames(chunk.parameters, frames)
        except ChunkCancelled:
            return _failure(pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
        except FilmstripError as error:
            return _failure(pb_utils.TritonError(error.to_wire()))
        except Exception:  # noqa: BLE001 - anything that a model raises; the client must not see paths
            pb_utils.Logger.log_error(f"the model failed on {what}\n{traceback.format_exc()}")
            return _failure(pb_utils.TritonError(ModelError(f"the model failed on {what}").to_wire()))
        report = {"stages": chunk.timings.seconds, "open_sequences": len(self._sequences), **chunk.report}
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(FRAMES.name, np.ascontiguousarray(frames)),
                pb_utils.Tensor(REPORT.name, np.array([json.dumps(report).encode()], np.object_)),
            ]
        )

    def _read(self, request: Any) -> Chunk:
        timings = Timings()
        with timings.measure("read"):
            texts = _array(request, CHUNK)
            if texts is None:
                raise ModelError("a request without a chunk can only end a sequence")
            parameters = read_parameters(texts)
            tensors = {}
            for spec in INPUTS:
                array = _array(request, spec) if spec is not CHUNK else None
                if array is not None:
                    check_tensor(parameters.index, spec, array)
                    tensors[spec.name] = array
        return Chunk(parameters, tensors, request.is_cancelled, timings)


def exit_with_parent(period_s: float = 0.5) -> None:
    """Watch the parent process from a daemon thread, and exit at once when it has died.

    A model that works while tritonserver is killed would otherwise live on, with all its memory. The kernel's own
    signal (PR_SET_PDEATHSIG) does not serve here: it comes when the parent's *thread* that started us ends, which
    a tritonserver that lives on may do at any time.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(period_s)
        os._exit(1)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()


def _array(request: Any, spec: TensorSpec) -> npt.NDArray[Any] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
    return None if tensor is None else tensor.as_numpy()


def _failure(error: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


class FrameProcessorModel(TritonModel):
    """A model that runs the frames of an input video through a processor, a new one for each sequence."""

    processor: ClassVar[Callable[[], FrameProcessor]]

    def start(self) -> SequenceState:
        """See `TritonModel`."""
        return FrameProcessorState(type(self).processor())
