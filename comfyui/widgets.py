"""Widgets that several nodes have, and what their values mean: those that say "as it is" give no field at all."""

from __future__ import annotations

from typing import Any

from .lines import denoising_steps, lora_scales, weighted_prompts

MAX_SEED = 0xFFFFFFFFFFFFFFFF  # of ComfyUI's own seed widgets, so that one of them can set several nodes
RANDOM_SEED = -1
AS_IS = "default"
SWITCH = [AS_IS, "on", "off"]
METHOD = [AS_IS, "linear", "slerp"]

Widget = tuple[Any, dict[str, Any]]


def text(tooltip: str, *, default: str = "", lines: bool = True, prompts: bool = False) -> Widget:
    """A text; of several lines, and one that ComfyUI's prompt tools may fill, where said so."""
    return "STRING", {"default": default, "multiline": lines, "dynamicPrompts": prompts, "tooltip": tooltip}


def number(default: float, low: float, high: float, step: float, tooltip: str) -> Widget:
    """A float."""
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "round": 0.001, "tooltip": tooltip}


def integer(default: int, low: int, high: int, tooltip: str, step: int = 1) -> Widget:
    """An int."""
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def choice(options: list[str], tooltip: str) -> Widget:
    """One of some words, the first of them unless changed."""
    return options, {"default": options[0], "tooltip": tooltip}


def socket(kind: str, tooltip: str) -> Widget:
    """An input that takes a link only."""
    return kind, {"tooltip": tooltip}


LORA_SCALES = text("A LoRA a line, such as 'ink: 0.5', by the names that the pipeline's facts list.")
DENOISING_STEPS = text("Such as '1000, 750, 500, 250'. Empty: the pipeline's own.", lines=False)
WEIGHTED_PROMPTS = "A prompt a line, such as '70: a cat'. Without a number its weight is 100."


def given(**values: Any) -> dict[str, Any]:
    """The fields whose value is not None."""
    return {name: value for name, value in values.items() if value is not None}


def switch(value: str) -> bool | None:
    """on, off, or nothing said."""
    return {"on": True, "off": False}.get(value)


def method(value: str) -> str | None:
    """linear, slerp, or nothing said."""
    return None if value == AS_IS else value


def scales(value: str) -> dict[str, float] | None:
    """LoRA scales, or nothing said."""
    return lora_scales(value) or None


def steps(value: str) -> list[int] | None:
    """Denoising steps, or nothing said."""
    return denoising_steps(value) or None


def prompts(value: str) -> list[dict[str, Any]] | None:
    """Weighted prompts, or nothing said."""
    return weighted_prompts(value) or None


def unless_negative(value: float) -> float | None:
    """A number, or nothing said."""
    return None if value < 0 else value
