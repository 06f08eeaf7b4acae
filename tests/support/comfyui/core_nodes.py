"""Stands for the nodes of ComfyUI's own that workflows of tests use."""

from typing import Any

import numpy as np

from tests.support.comfyui.host import array_of, ramp

IMAGE = ("IMAGE",)


def _tensor(array: Any) -> Any:
    import torch  # noqa: PLC0415 - the double, where it isn't installed

    return torch.from_numpy(np.ascontiguousarray(array))


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (["example.png"],)}}

    def run(self, image: str) -> tuple[Any, Any]:
        assert image == "example.png"
        return _tensor(ramp(1, 128, 160)), _tensor(np.zeros((1, 64, 64), np.float32))


class RepeatImageBatch:
    RETURN_TYPES = IMAGE
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": IMAGE, "amount": ("INT",)}}

    def run(self, image: Any, amount: int) -> tuple[Any]:
        return (_tensor(np.repeat(array_of(image), amount, axis=0)),)


class SaveImage:
    """Saves nothing, but says where it would be, as the real one does."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": IMAGE, "filename_prefix": ("STRING",)}}

    def run(self, images: Any, filename_prefix: str) -> dict[str, Any]:
        self.saved = array_of(images)
        files = [
            {"filename": f"{filename_prefix}_{number:05}_.png", "subfolder": "", "type": "output"}
            for number in range(1, len(self.saved) + 1)
        ]
        return {"ui": {"images": files}}


CORE_NODES: dict[str, Any] = {cls.__name__: cls for cls in (LoadImage, RepeatImageBatch, SaveImage)}
