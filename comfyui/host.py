"""The boundary to ComfyUI: interrupt, progress, messages, files, tensors. No other module imports ComfyUI or torch.

The imports are inside the functions, so that the rest of the pack and its tests need no ComfyUI.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import FilmstripError
from .frames import Floats, Pixels, as_images, as_masks

PREVIEW_SIDE = 512
MAX_REFERENCES = 16

log = logging.getLogger("filmstrip")


def check_interrupted() -> None:
    """Raise ComfyUI's own interrupt exception if the user has pressed Stop."""
    from comfy import model_management

    model_management.throw_exception_if_processing_interrupted()


class Display:
    """Shows progress on a node: a bar, a line of text, an image. Only from ComfyUI's own thread.

    Args:
        node_id: ComfyUI's, from the hidden input `unique_id`; None where there is none.
    """

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._bar: Any = None
        self._shown = ""

    def text(self, message: str) -> None:
        """Show a line of text under the node and in ComfyUI's log, unless it is already shown."""
        if message == self._shown:
            return
        self._shown = message
        log.info("Filmstrip: %s", message)
        from server import PromptServer

        # ComfyUI has it since 2025; older versions only get the log.
        send = getattr(getattr(PromptServer, "instance", None), "send_progress_text", None)
        if send is not None and self._node_id is not None:
            send(message, self._node_id)

    def chunks(self, done: int, total: int) -> None:
        """Move the bar."""
        from comfy.utils import ProgressBar

        if self._bar is None:
            self._bar = ProgressBar(total)
        self._bar.update_absolute(done, total)

    def picture(self, frame: Pixels) -> None:
        """Show a frame under the node, with a full bar."""
        from PIL import Image

        if self._bar is not None:
            image = Image.fromarray(np.ascontiguousarray(frame))
            self._bar.update_absolute(self._bar.total, self._bar.total, ("JPEG", image, PREVIEW_SIDE))


@dataclass(frozen=True)
class OutputFile:
    """A file in ComfyUI's output directory, as the page refers to it."""

    path: str
    filename: str
    subfolder: str

    def shown(self) -> dict[str, Any]:
        """What a node returns as `ui`, so that the page plays the video, as ComfyUI's own Save Video does."""
        return {
            "images": [{"filename": self.filename, "subfolder": self.subfolder, "type": "output"}],
            "animated": (True,),
        }


def output_file(prefix: str, height: int, width: int, suffix: str) -> OutputFile:
    """The next free file name for a prefix in the output directory.

    Raises:
        FilmstripError: the prefix leads out of that directory, or cannot be used.
    """
    import folder_paths

    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory(), width, height
        )
    except Exception as error:  # noqa: BLE001 - ComfyUI raises a bare Exception for a prefix that leads out
        reason = str(error).partition("\n")[0].strip("* ")
        raise FilmstripError(f"filename_prefix: {prefix!r} cannot be used: {reason}") from None
    filename = f"{name}_{counter:05}_{suffix}"
    return OutputFile(os.path.join(folder, filename), filename, subfolder)


def as_video(path: str) -> Any:
    """A file as ComfyUI's VIDEO; its path if this ComfyUI is too old to have that type."""
    try:
        from comfy_api.input_impl import VideoFromFile
    except ImportError:
        return path
    return VideoFromFile(path)


def to_array(tensor: Any, *, is_mask: bool = False) -> Floats:
    """A tensor as a float32 array in 0..1; not copied unless it is on a GPU or has another type.

    Bytes are 0..255; a mask of bytes is 0 and 1 if it has no larger value.
    """
    if not hasattr(tensor, "detach"):  # some nodes pass numpy arrays
        array: Floats = np.asarray(tensor, np.float32)
    else:
        array = tensor.detach().cpu().float().numpy()
    is_bytes = str(getattr(tensor, "dtype", "")).endswith("uint8")
    if is_bytes and not (is_mask and array.max(initial=0) <= 1):
        array = array / np.float32(255)
    return array


def to_tensor(array: Floats) -> Any:
    """An array as a tensor that shares its memory."""
    import torch

    return torch.from_numpy(array)


def arrays_of(tensors: dict[str, Any]) -> dict[str, Floats]:
    """IMAGE and MASK tensors as arrays [F, H, W, C] and [F, H, W]; those that are None are skipped.

    Raises:
        FilmstripError: one is neither, or there are too many images.
    """
    arrays: dict[str, Floats] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        is_mask = name == "vace_masks"
        array = to_array(tensor, is_mask=is_mask)
        array = arrays[name] = as_masks(name, array) if is_mask else as_images(name, array)
        if name in ("first_frame_image", "last_frame_image") and len(array) != 1:
            raise FilmstripError(f"{name}: must be one image, got {len(array)}")
        if name == "vace_ref_images" and len(array) > MAX_REFERENCES:
            raise FilmstripError(f"{name}: must be at most {MAX_REFERENCES} images, got {len(array)}")
    return arrays
