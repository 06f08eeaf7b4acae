"""Filmstrip: whole videos from one request, made chunk by chunk on NVIDIA Triton."""

__version__ = "0.1.0"
