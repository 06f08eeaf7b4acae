"""Tests of the ComfyUI node pack."""
