"""The boundary to ComfyUI: interrupt, progress, messages, files, tensors. No other module imports ComfyUI or torch.

The imports are inside the functions, so that the rest of the pack and its tests need no ComfyUI.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import FilmstripError
from .frames import Floats, Pixels, as_images, as_masks
from .widgets import label

PREVIEW_SIDE = 512
MAX_REFERENCES = 16
_SERVER_NODE = "FilmstripServer"

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
        if message != self._shown:
            log.info("Filmstrip: %s", message)
            self._show(message)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """A run of the node: replaces what the last run left under it, and shows there why this one ends early.

        ComfyUI logs the error itself, so it is not logged here.
        """
        self._show("starting")  # the page ignores an empty text
        try:
            yield
        except FilmstripError as error:
            self._show(str(error))
            raise
        except BaseException as error:
            self._show("stopped" if _is_interrupt(error) else f"{type(error).__name__}: {error}")
            raise

    def _show(self, message: str) -> None:
        self._shown = message
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

    def preview(self, done: int, total: int, image: bytes) -> None:
        """Show an image file under the node; one that cannot be read is passed over."""
        from PIL import Image

        with contextlib.suppress(OSError):
            picture = Image.open(io.BytesIO(image)).convert("RGB")
            self.chunks(done, total)
            self._bar.update_absolute(done, total, ("JPEG", picture, PREVIEW_SIDE))

    def picture(self, frame: Pixels) -> None:
        """Show a frame under the node, with a full bar."""
        from PIL import Image

        if self._bar is not None:
            image = Image.fromarray(np.ascontiguousarray(frame))
            self._bar.update_absolute(self._bar.total, self._bar.total, ("JPEG", image, PREVIEW_SIDE))


def _is_interrupt(error: BaseException) -> bool:
    from comfy import model_management

    return isinstance(error, (KeyboardInterrupt, model_management.InterruptProcessingException))


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
            with_date(prefix), folder_paths.get_output_directory(), width, height
        )
    except Exception as error:  # noqa: BLE001 - ComfyUI raises a bare Exception for a prefix that leads out
        reason = str(error).partition("\n")[0].strip("* ")
        raise FilmstripError(f"filename_prefix: {prefix!r} cannot be used: {reason}") from None
    filename = f"{name}_{counter:05}_{suffix}"
    return OutputFile(os.path.join(folder, filename), filename, subfolder)


_DATE = re.compile(r"%date:([^%]*)%")
_DATE_PARTS = re.compile(r"yyyy|yy|MM|M|dd|d|hh|h|mm|m|ss|s")


def with_date(prefix: str, now: datetime.datetime | None = None) -> str:
    """A prefix whose `%date:yyyy-MM-dd%` is replaced, as ComfyUI's page does it for its own nodes."""
    now = now or datetime.datetime.now()
    parts = {"yyyy": f"{now.year:04}", "yy": f"{now.year % 100:02}"}
    for letter, value in {"M": now.month, "d": now.day, "h": now.hour, "m": now.minute, "s": now.second}.items():
        parts |= {letter: str(value), letter * 2: f"{value:02}"}
    return _DATE.sub(lambda match: _DATE_PARTS.sub(lambda part: parts[part[0]], match[1]), prefix)


def metadata(graph: Any, extra: Any, secrets: Sequence[str]) -> dict[str, str]:
    """What ComfyUI's Save Video writes into a file: the workflow, so that the file can be dropped onto the page.

    Args:
        graph: of the hidden input PROMPT; None where there is none.
        extra: of the hidden input EXTRA_PNGINFO, likewise.
        secrets: texts that must not be in the file, such as API keys.

    Returns:
        Nothing if ComfyUI runs with --disable-metadata.
    """
    try:
        from comfy.cli_args import args
    except ImportError:
        args = None
    if getattr(args, "disable_metadata", False):
        return {}
    values = {**(extra if isinstance(extra, dict) else {}), **({} if graph is None else {"prompt": graph})}
    hidden = frozenset(filter(None, secrets))
    return {name: json.dumps(_without_secrets(value, hidden)) for name, value in values.items()}


def _without_secrets(value: Any, secrets: frozenset[str]) -> Any:
    """The same JSON value, with the API keys of all Server nodes, and these texts, emptied."""
    if isinstance(value, str):
        return "" if value.strip() in secrets else value
    if isinstance(value, list):
        return [_without_secrets(each, secrets) for each in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _without_secrets(each, secrets) for key, each in value.items()}
    if _SERVER_NODE in (value.get("class_type"), value.get("type")):
        inputs, widgets = copy.get("inputs"), copy.get("widgets_values")
        if isinstance(inputs, dict) and isinstance(inputs.get("token"), str):
            copy["inputs"] = {**inputs, "token": ""}
        if isinstance(widgets, list):  # address, token, timeout
            copy["widgets_values"] = [*widgets[:1], *("" for _ in widgets[1:2]), *widgets[2:]]
        elif isinstance(widgets, dict):
            copy["widgets_values"] = {**widgets, "token": ""}
    return copy


def as_video(path: str) -> Any:
    """A file as ComfyUI's VIDEO; its path if this ComfyUI is too old to have that type."""
    try:
        from comfy_api.input_impl import VideoFromFile
    except ImportError:
        return path
    return VideoFromFile(path)


@dataclass(frozen=True)
class Sound:
    """Audio as ComfyUI's AUDIO has it: float32 [channels, samples] in -1..1."""

    samples: Floats
    rate: int


@dataclass(frozen=True)
class VideoParts:
    """What a VIDEO input holds."""

    images: Any
    sound: Sound | None
    fps: float


def parts_of_video(video: Any) -> VideoParts:
    """The frames, sound and frame rate of a VIDEO.

    Raises:
        FilmstripError: it is none.
    """
    if not hasattr(video, "get_components"):
        raise FilmstripError("video: must come from a node such as Load Video")
    parts = video.get_components()
    return VideoParts(parts.images, sound_of(parts.audio), float(parts.frame_rate))


def sound_of(audio: Any) -> Sound | None:
    """An AUDIO input; None where there is none, or no sample in it."""
    if audio is None:
        return None
    samples: Floats = np.asarray(to_array(audio["waveform"]), np.float32)
    while samples.ndim > 2:  # [1, channels, samples]
        samples = samples[0]
    return Sound(samples, int(audio["sample_rate"])) if samples.size else None


def resized(array: Floats, height: int, width: int, *, is_mask: bool) -> Floats:
    """Images [F, H, W, C] or masks [F, H, W] in another size, cropped around the centre, as by ComfyUI's nodes."""
    import torch
    from comfy.utils import common_upscale

    planes = array[:, None] if is_mask else array.transpose(0, 3, 1, 2)
    tensor = torch.from_numpy(np.ascontiguousarray(planes, np.float32))
    scaled: Floats = common_upscale(tensor, width, height, "nearest-exact" if is_mask else "bilinear", "center").numpy()
    return np.ascontiguousarray(scaled[:, 0] if is_mask else scaled.transpose(0, 2, 3, 1))


def installation() -> str:
    """A name of this ComfyUI that stays the same when it is started again."""
    import folder_paths

    return f"{socket.gethostname()}:{folder_paths.get_user_directory()}"


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
        array = arrays[name] = as_masks(label(name), array) if is_mask else as_images(label(name), array)
        if np.isnan(array.min()):
            raise FilmstripError(f"{label(name)}: has values that are not numbers (NaN)")
        if name in ("first_frame_image", "last_frame_image") and len(array) != 1:
            raise FilmstripError(f"{label(name)}: must be one image, got {len(array)}")
        if name == "vace_ref_images" and len(array) > MAX_REFERENCES:
            raise FilmstripError(f"{label(name)}: must be at most {MAX_REFERENCES} images, got {len(array)}")
    return arrays
