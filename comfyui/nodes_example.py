"""The node Example: inputs that come with the pack, so that the templates run as they are."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from . import video_file, widgets
from .errors import FilmstripError
from .frames import Floats, to_floats
from .host import as_video, to_tensor

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "example_inputs")
EXAMPLES = {
    "clip with sound": "clip.mp4",
    "outlines": "outlines.mp4",
    "painted mask": "mask.png",
    "reference": "reference.png",
    "first frame": "first_frame.png",
    "last frame": "last_frame.png",
}


class FilmstripExample:
    """A small input of 64x64 pixels."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = (
        "A small picture or clip that comes with the pack, for the templates. Put Load Image or Load Video in its "
        "place."
    )
    RETURN_TYPES = ("IMAGE", "MASK", "VIDEO")
    RETURN_NAMES = ("images", "masks", "video")
    OUTPUT_TOOLTIPS = (
        "The frames.",
        "White where the example is painted: only the painted mask has such a part.",
        "The clip with its sound; nothing for pictures.",
    )
    FUNCTION = "load"
    SEARCH_ALIASES = ["sample", "test input", "demo"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        types: dict[str, Any] = {"required": {"example": widgets.choice(list(EXAMPLES), "Which one.")}}
        return widgets.labelled(types)

    def load(self, example: str) -> tuple[Any, Any, Any]:
        """Read the example.

        Raises:
            FilmstripError: there is no such example.
        """
        if example not in EXAMPLES:
            raise FilmstripError(f"example: must be one of {', '.join(EXAMPLES)}, got {example!r}")
        path = os.path.join(FOLDER, EXAMPLES[example])
        if path.endswith(".mp4"):
            frames = list(video_file.read(path))
            video = as_video(path)
        else:
            from PIL import Image

            with Image.open(path) as picture:
                frames = [np.asarray(picture.convert("RGB"))]
            video = None
        images: Floats = np.empty((len(frames), *frames[0].shape), np.float32)
        for frame, image in zip(frames, images, strict=True):
            to_floats(frame, out=image)
        masks = images[..., 0] if "mask" in example else np.zeros(images.shape[:3], np.float32)
        return to_tensor(images), to_tensor(np.ascontiguousarray(masks)), video


NODE_CLASS_MAPPINGS: dict[str, type] = {"FilmstripExample": FilmstripExample}
NODE_DISPLAY_NAME_MAPPINGS = {"FilmstripExample": "Filmstrip Example"}
