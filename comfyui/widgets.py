"""Widgets that several nodes share, and how their values become fields; a default gives no field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from .errors import FilmstripError

MAX_SEED = 0xFFFFFFFFFFFFFFFF  # as in ComfyUI's own seed widgets, so that one of them can drive several nodes
RANDOM_SEED = -1
DEFAULT = "default"
SWITCH = [DEFAULT, "on", "off"]
METHOD = [DEFAULT, "linear", "slerp"]

FULL_WEIGHT = 100.0

Widget = tuple[Any, dict[str, Any]]


def text(tooltip: str, *, default: str = "", lines: bool = True, prompts: bool = False) -> Widget:
    """A text; `lines` allows several lines, `prompts` lets ComfyUI's prompt tools expand it."""
    return "STRING", {"default": default, "multiline": lines, "dynamicPrompts": prompts, "tooltip": tooltip}


def number(default: float, low: float, high: float, step: float, tooltip: str) -> Widget:
    """A float."""
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "round": 0.001, "tooltip": tooltip}


def integer(default: int, low: int, high: int, tooltip: str, step: int = 1) -> Widget:
    """An int."""
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def choice(options: list[str], tooltip: str) -> Widget:
    """One of several words; the first is the default."""
    return options, {"default": options[0], "tooltip": tooltip}


def socket(kind: str, tooltip: str) -> Widget:
    """An input that only takes a link."""
    return kind, {"tooltip": tooltip}


LORA_SCALES = text("One LoRA per line, such as 'ink: 0.5'; the Pipeline node lists the names.")
DENOISING_STEPS = text("Such as '1000, 750, 500, 250'. Empty: the pipeline's own.", lines=False)
WEIGHTED_PROMPTS = "One prompt per line, such as '70: a cat'. The default weight is 100."


def without_none(**values: Any) -> dict[str, Any]:
    """Only the fields whose value is not None."""
    return {name: value for name, value in values.items() if value is not None}


def switch(value: str) -> bool | None:
    """True, False, or None for the default."""
    return {"on": True, "off": False}.get(value)


def method(value: str) -> str | None:
    """The method, or None for the default."""
    return None if value == DEFAULT else value


def unless_negative(value: float) -> float | None:
    """The number, or None for the default."""
    return None if value < 0 else value


# -- Texts, line by line -------------------------------------------------------------------------------------------


# Empty lines and lines that start with # are ignored.


def parse_schedule(text: str) -> dict[int, str]:
    """Lines such as `4: a dog`: the prompt from each chunk on, by the chunk's index."""
    prompts: dict[int, str] = {}
    for number, line in _lines(text):
        index, colon, prompt = line.partition(":")
        if not colon or re.fullmatch(r"[0-9]{1,6}", index.strip()) is None:
            raise FilmstripError(f"line {number} of the schedule must look like '4: a dog', got {line!r}")
        if int(index) in prompts:
            raise FilmstripError(f"line {number} of the schedule: chunk {int(index)} already has a prompt")
        prompts[int(index)] = prompt.strip()
    return prompts


def parse_weighted_prompts(text: str) -> list[dict[str, Any]]:
    """Lines such as `70: a cat`: prompts to blend and their weights; 100 if there is no number."""
    prompts = []
    for number, line in _lines(text):
        weight, colon, prompt = line.partition(":")
        value = _float(weight) if colon else None
        if value is None:
            value, prompt = FULL_WEIGHT, line
        if not 0 <= value <= FULL_WEIGHT:
            raise FilmstripError(f"line {number} of the prompts: a weight must be 0 to 100, got {weight.strip()}")
        prompts.append({"text": prompt.strip(), "weight": value})
    return prompts


def parse_lora_scales(text: str) -> dict[str, float]:
    """Lines such as `ink: 0.5`: the scale of each LoRA. The last colon counts, since names may have colons."""
    scales: dict[str, float] = {}
    for number, line in _lines(text):
        name, colon, scale = line.rpartition(":")
        value = _float(scale)
        if not colon or not name.strip() or value is None:
            raise FilmstripError(f"line {number} of the LoRA scales must look like 'ink: 0.5', got {line!r}")
        scales[name.strip()] = value
    return scales


def parse_denoising_steps(text: str) -> list[int]:
    """`1000, 750, 500, 250`: timesteps; the server checks that they fall."""
    words = re.split(r"[\s,]+", text.strip())
    if words == [""]:
        return []
    if not all(re.fullmatch(r"[0-9]{1,6}", word) for word in words):
        raise FilmstripError(
            f"denoising steps must be whole numbers such as '1000, 750, 500, 250', got {text.strip()!r}"
        )
    return [int(word) for word in words]


def validation_error(read: Callable[[str], object], text: str | None) -> str | None:
    """What is wrong with a widget's text, for VALIDATE_INPUTS; a text of None comes by a link later."""
    try:
        if text is not None:
            read(text)
    except FilmstripError as error:
        return str(error)
    return None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
