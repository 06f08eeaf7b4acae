"""Stands for ComfyUI's module: a video that is a file, of which this one only knows what a test gives it."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any


class VideoFromFile:
    def __init__(self, file: str) -> None:
        self.file = file

    def get_components(self) -> Any:
        import av  # noqa: PLC0415
        import numpy as np  # noqa: PLC0415
        import torch  # noqa: PLC0415 - the double, where it isn't installed

        with av.open(self.file) as container:
            rate = container.streams.video[0].average_rate
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        audio = None
        with av.open(self.file) as container:
            if container.streams.audio:
                rate_of_sound = container.streams.audio[0].rate
                pieces = [frame.to_ndarray() for frame in container.decode(audio=0)]
                waveform = torch.from_numpy(np.concatenate(pieces, axis=1)[None].astype(np.float32))
                audio = {"waveform": waveform, "sample_rate": rate_of_sound}
        images = torch.from_numpy(np.stack(frames).astype(np.float32) / np.float32(255))
        return SimpleNamespace(images=images, audio=audio, frame_rate=Fraction(rate))
