"""Stands for ComfyUI's package of this name."""
