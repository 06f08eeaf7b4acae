"""Contour lines, white on black."""

from filmstrip.runtime.processors import Scribble
from filmstrip.runtime.triton_model import FrameProcessorModel


class TritonPythonModel(FrameProcessorModel):
    """Scribble as Triton calls it."""

    processor = Scribble
