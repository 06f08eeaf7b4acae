"""A pytest plugin (`-p tests.support.hide_optional_packages`) that hides what `make test-setup` installs."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec

HIDDEN = frozenset(
    {
        *("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "safetensors", "sympy", "networkx", "mpmath"),
        *("tensorrt", "tensorrt_rtx", "diffusers", "transformers", "accelerate", "regex", "flatbuffers"),
        *("playwright", "axe_playwright_python"),
    }
)


class _Hider(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, _Hider())
