"""A stand-in for a generator with every feature, which reports its inputs and fails on request.

Frames, text mode: value (seed + 31 * chunk index + 7 * frame + y + x + 85 * channel) % 256. Video mode: the
input frames, resized. The report's "probe" holds the parameters as received, "tensors" (sha256 and shape of each)
and "num_chunks" of this sequence so far; the same goes as one JSON line to the file named by PROBE_LOG.

A chunk whose first prompt starts with one of these misbehaves, after it was logged:
    !raise      RuntimeError with a file path in its text
    !error      a FilmstripError
    !shape      frames of a wrong shape
    !sleep S    S seconds in 10 ms steps, cancelled between any two; logs {"event": "cancelled"} then
    !hang       an hour, ignoring cancellation
    !die        the process exits
"""

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from filmstrip.contract import INPUT_VIDEO, ChunkParameters, Mode
from filmstrip.errors import ModelError
from filmstrip.runtime.processors import Frames, resize
from filmstrip.runtime.sequences import Chunk, ChunkCancelled
from filmstrip.runtime.triton_model import TritonModel


def pattern(parameters: ChunkParameters) -> Frames:
    """What text mode answers with."""
    shape = (parameters.num_frames, parameters.height, parameters.width, 3)
    frame, y, x, channel = np.ogrid[tuple(slice(length) for length in shape)]
    return ((parameters.seed + 31 * parameters.index + 7 * frame + y + x + 85 * channel) % 256).astype(np.uint8)


class ProbeState:
    """One sequence of the probe."""

    def __init__(self) -> None:
        self._num_chunks = 0

    def chunk(self, chunk: Chunk) -> Frames:
        self._num_chunks += 1
        entry = {
            "event": "chunk",
            "parameters": asdict(chunk.parameters),
            "tensors": {
                name: {"sha256": hashlib.sha256(array.tobytes()).hexdigest(), "shape": list(array.shape)}
                for name, array in chunk.tensors.items()
            },
            "num_chunks": self._num_chunks,
        }
        chunk.report["probe"] = entry
        _log(entry)
        with chunk.timings.measure("generate"):
            frames = self._frames(chunk)
            return _misbehave(chunk, frames)

    def _frames(self, chunk: Chunk) -> Frames:
        parameters = chunk.parameters
        if parameters.mode is Mode.VIDEO:
            return resize(chunk.tensor(INPUT_VIDEO), parameters.height, parameters.width)
        return pattern(parameters)


def _misbehave(chunk: Chunk, frames: Frames) -> Frames:
    prompts = chunk.parameters.prompts
    match prompts[0].text.split() if prompts else []:
        case ["!raise", *_]:
            raise RuntimeError("no such file: /opt/models/secret/engine.plan")
        case ["!error", *_]:
            raise ModelError("the probe was told to fail")
        case ["!shape", *_]:
            return frames[:, 1:]
        case ["!sleep", seconds, *_]:
            _sleep(chunk, float(seconds))
        case ["!hang", *_]:
            time.sleep(3600)
        case ["!die", *_]:
            os._exit(1)
    return frames


def _sleep(chunk: Chunk, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
        if chunk.is_cancelled():
            _log({"event": "cancelled", "index": chunk.parameters.index})
            raise ChunkCancelled


def _log(event: dict[str, object]) -> None:
    path = os.environ.get("PROBE_LOG")
    if path:
        with Path(path).open("a") as log:
            log.write(json.dumps(event) + "\n")


class TritonPythonModel(TritonModel):
    """The probe as Triton calls it."""

    def start(self) -> ProbeState:
        return ProbeState()
