"""What is written in text widgets, line by line: schedules, weighted prompts, LoRA scales, steps. Pure.

Empty lines and lines that begin with # count for nothing, everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from .errors import FilmstripError

FULL_WEIGHT = 100.0


def schedule(text: str) -> dict[int, str]:
    """`0: a cat` and so on: the prompt that each chunk begins with, by the chunk's index."""
    prompts: dict[int, str] = {}
    for number, line in _lines(text):
        index, colon, prompt = line.partition(":")
        if not colon or re.fullmatch(r"[0-9]{1,6}", index.strip()) is None:
            raise FilmstripError(f"line {number} of the schedule is not like '4: a dog': {line!r}")
        if int(index) in prompts:
            raise FilmstripError(f"line {number} of the schedule: chunk {int(index)} has a prompt already")
        prompts[int(index)] = prompt.strip()
    return prompts


def weighted_prompts(text: str) -> list[dict[str, Any]]:
    """`70: a cat` a line: prompts to blend and their weights; 100 for a line without one."""
    prompts = []
    for number, line in _lines(text):
        weight, colon, prompt = line.partition(":")
        value = _number(weight) if colon else None
        if value is None:
            value, prompt = FULL_WEIGHT, line
        if not 0 <= value <= FULL_WEIGHT:
            raise FilmstripError(f"line {number} of the prompts: a weight is 0 to 100, got {weight.strip()}")
        prompts.append({"text": prompt.strip(), "weight": value})
    return prompts


def lora_scales(text: str) -> dict[str, float]:
    """`ink: 0.5` a line: the scale of each LoRA. The last colon counts: a name may have others."""
    scales: dict[str, float] = {}
    for number, line in _lines(text):
        name, colon, scale = line.rpartition(":")
        value = _number(scale)
        if not colon or not name.strip() or value is None:
            raise FilmstripError(f"line {number} of the LoRA scales is not like 'ink: 0.5': {line!r}")
        scales[name.strip()] = value
    return scales


def denoising_steps(text: str) -> list[int]:
    """`1000, 750, 500, 250`: the timesteps; the server checks that they fall."""
    words = re.split(r"[\s,]+", text.strip())
    if words == [""]:
        return []
    if not all(re.fullmatch(r"[0-9]{1,6}", word) for word in words):
        raise FilmstripError(f"denoising steps are whole numbers such as '1000, 750, 500, 250', got {text.strip()!r}")
    return [int(word) for word in words]


def complaint(read: Callable[[str], object], text: str | None) -> str | None:
    """What is wrong with a widget's text, for VALIDATE_INPUTS; None is a text that comes by a link later."""
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


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
