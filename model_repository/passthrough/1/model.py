"""The frames as they came."""

from filmstrip.runtime.processors import Passthrough
from filmstrip.runtime.triton_model import FrameProcessorModel


class TritonPythonModel(FrameProcessorModel):
    """Passthrough as Triton calls it."""

    processor = Passthrough
