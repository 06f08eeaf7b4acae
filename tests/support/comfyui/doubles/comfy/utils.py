"""Stands for ComfyUI's module: the progress bar, and the scaling of images."""

import threading
from typing import Any

import numpy as np


class ProgressBar:
    made: "list[ProgressBar]" = []

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.total = total
        self.node_id = node_id
        self.updates: list[tuple[int, int, Any]] = []
        self.made.append(self)

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        assert threading.current_thread() is threading.main_thread(), "ComfyUI knows the node by its thread"
        if total is not None:
            self.total = total
        self.updates.append((value, self.total, preview))


def common_upscale(samples: Any, width: int, height: int, upscale_method: str, crop: str) -> Any:
    """Crops as the real one does, then takes the nearest pixels whatever the method."""
    import torch  # noqa: PLC0415 - the double, where it isn't installed

    assert upscale_method in ("bilinear", "nearest-exact")
    assert crop == "center"
    array = samples.numpy()
    old_height, old_width = array.shape[2:]
    x = y = 0
    if old_width / old_height > width / height:
        x = round((old_width - old_width * ((width / height) / (old_width / old_height))) / 2)
    elif old_width / old_height < width / height:
        y = round((old_height - old_height * ((old_width / old_height) / (width / height))) / 2)
    array = array[:, :, y : old_height - y, x : old_width - x]
    rows = ((np.arange(height) + 0.5) * array.shape[2] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * array.shape[3] / width).astype(int)
    return torch.from_numpy(np.ascontiguousarray(array[:, :, rows][:, :, :, columns]))
