"""Stands for ComfyUI's module: its command line."""

from types import SimpleNamespace

args = SimpleNamespace(disable_metadata=False)
