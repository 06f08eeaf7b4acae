"""The frames in grey."""

from filmstrip.runtime.processors import Gray
from filmstrip.runtime.triton_model import FrameProcessorModel


class TritonPythonModel(FrameProcessorModel):
    """Gray as Triton calls it."""

    processor = Gray
