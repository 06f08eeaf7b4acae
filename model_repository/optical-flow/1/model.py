"""Motion from the frame before, as colours."""

from filmstrip.runtime.processors import OpticalFlow
from filmstrip.runtime.triton_model import FrameProcessorModel


class TritonPythonModel(FrameProcessorModel):
    """OpticalFlow as Triton calls it."""

    processor = OpticalFlow
