"""Stand for the nodes of ComfyUI's own that the example workflows use."""

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


class ImageScale:
    RETURN_TYPES = IMAGE
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        methods = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
        sides = {"width": ("INT",), "height": ("INT",)}
        return {"required": {"image": IMAGE, "upscale_method": (methods,), **sides, "crop": (["disabled", "center"],)}}

    def run(self, image: Any, upscale_method: str, width: int, height: int, crop: str) -> tuple[Any]:
        return (_tensor(np.resize(array_of(image), (1, height, width, 3))),)


class RepeatImageBatch:
    RETURN_TYPES = IMAGE
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": IMAGE, "amount": ("INT",)}}

    def run(self, image: Any, amount: int) -> tuple[Any]:
        return (_tensor(np.repeat(array_of(image), amount, axis=0)),)


class ImageInvert:
    RETURN_TYPES = IMAGE
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": IMAGE}}

    def run(self, image: Any) -> tuple[Any]:
        return (_tensor(1 - array_of(image)),)


class SaveImage:
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": IMAGE, "filename_prefix": ("STRING",)}}

    def run(self, images: Any, filename_prefix: str) -> dict[str, Any]:
        return {"ui": {"images": array_of(images)}}


CORE_NODES: dict[str, Any] = {
    cls.__name__: cls for cls in (LoadImage, ImageScale, RepeatImageBatch, ImageInvert, SaveImage)
}
