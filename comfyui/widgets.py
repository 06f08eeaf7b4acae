"""Widgets that several nodes share, and how their values become fields; a default gives no field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .errors import FilmstripError

MAX_SEED = 0xFFFFFFFFFFFFFFFF  # as in ComfyUI's own seed widgets, so that one of them can drive several nodes
RANDOM_SEED = -1
DEFAULT = "default"
SWITCH = [DEFAULT, "on", "off"]
METHOD = [DEFAULT, "linear", "slerp"]

FULL_WEIGHT = 100.0

Widget = tuple[Any, dict[str, Any]]

LABELS = {
    "chunk_seed": "seed",
    "chunk_specs": "changes per chunk",
    "filename_prefix": "file name",
    "first_frame_image": "first frame",
    "fps": "frames per second",
    "input_video": "input video",
    "kv_cache_attention_bias": "weight of earlier frames",
    "last_frame_image": "last frame",
    "lora": "LoRA",
    "lora_scales": "LoRA strengths",
    "loras": "LoRAs",
    "noise_controller": "noise from motion",
    "noise_scale": "noise",
    "num_frames": "frames",
    "other_id": "other pipeline",
    "pipeline_id": "pipeline",
    "post_processor": "post-processor",
    "pre_processor": "pre-processor",
    "prompt_interpolation_method": "blending",
    "prompts": "prompts to blend",
    "reset_cache": "cut",
    "schedule": "prompts",
    "text": "prompt",
    "timeout_s": "timeout (s)",
    "token": "API key",
    "transition_method": "transition method",
    "transition_num_steps": "transition length",
    "transition_target_prompts": "move to prompts",
    "vace_context_scale": "control strength",
    "vace_frames": "control frames",
    "vace_masks": "masks",
    "vace_ref_images": "reference images",
    "vace_temporally_locked": "keep timing",
    "vace_use_input_video": "input as control",
    "wait_when_busy_s": "longest wait (s)",
    "weighted_prompts": "prompts to blend",
}
"""What the page calls inputs whose name is not plain; error messages use the same words."""

_INPUT_OF_FIELD = {
    "data_blob_path": "control frames",
    "input_path": "images",
    "post_processor_id": "post_processor",
    "pre_processor_id": "pre_processor",
}
_SPEC_PATH = re.compile(r"chunk_specs\[(\d+)\](?:\.(\w+))?")
_FIELD = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b")


def label(name: str) -> str:
    """What the page calls an input."""
    return LABELS.get(name, name.replace("_", " "))


def labelled(types: dict[str, Any]) -> dict[str, Any]:
    """INPUT_TYPES with the label of each input."""
    for kind in ("required", "optional"):
        for name, (_, options) in types.get(kind, {}).items():
            options["display_name"] = label(name)
    return types


def in_words_of_the_page(message: str, chunks: Sequence[int] = ()) -> str:
    """A message of the server that names inputs as the page does, not fields of the request.

    Args:
        message: such as `chunk_specs[0].vace_masks_shape: must be...`.
        chunks: the chunk of each ChunkSpec of the request.
    """

    def spec(match: re.Match[str]) -> str:
        position, field = int(match[1]), match[2]
        chunk = chunks[position] if position < len(chunks) else position
        return f"chunk {chunk}, {_label_of_field(field)}" if field else f"chunk {chunk}"

    def field(match: re.Match[str]) -> str:
        base = match[0].removesuffix("_offset").removesuffix("_shape")
        return _label_of_field(match[0]) if base in LABELS or base in _INPUT_OF_FIELD else match[0]

    return _FIELD.sub(field, _SPEC_PATH.sub(spec, message))


def _label_of_field(field: str) -> str:
    base = field.removesuffix("_offset").removesuffix("_shape")
    return label(_INPUT_OF_FIELD.get(base, base))


def text(
    tooltip: str, *, default: str = "", lines: bool = True, prompts: bool = False, advanced: bool = False
) -> Widget:
    """A text; `lines` allows several lines, `prompts` lets ComfyUI's prompt tools expand it."""
    options = {"default": default, "multiline": lines, "dynamicPrompts": prompts, "tooltip": tooltip}
    return "STRING", options | _advanced(advanced)


def linked_text(tooltip: str) -> Widget:
    """A text that comes by a link, such as from a node for texts."""
    return "STRING", {"default": "", "multiline": True, "forceInput": True, "tooltip": tooltip, "advanced": True}


def number(
    default: float, low: float, high: float, step: float, tooltip: str, *, slider: bool = False, advanced: bool = False
) -> Widget:
    """A float."""
    options: dict[str, Any] = {"default": default, "min": low, "max": high, "step": step, "round": 0.001}
    if slider:
        options["display"] = "slider"
    return "FLOAT", options | {"tooltip": tooltip} | _advanced(advanced)


def integer(default: int, low: int, high: int, tooltip: str, step: int = 1, *, advanced: bool = False) -> Widget:
    """An int."""
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip} | _advanced(advanced)


def boolean(default: bool, tooltip: str, *, advanced: bool = False) -> Widget:
    """On or off."""
    return "BOOLEAN", {"default": default, "tooltip": tooltip} | _advanced(advanced)


def choice(options: list[str], tooltip: str, *, advanced: bool = False) -> Widget:
    """One of several words; the first is the default."""
    return options, {"default": options[0], "tooltip": tooltip} | _advanced(advanced)


def socket(kind: str, tooltip: str) -> Widget:
    """An input that only takes a link."""
    return kind, {"tooltip": tooltip}


def _advanced(advanced: bool) -> dict[str, Any]:
    """Advanced inputs are folded away until they are asked for."""
    return {"advanced": True} if advanced else {}


def denoising_steps() -> Widget:
    """The timesteps of each chunk."""
    return text("Such as '1000, 750, 500, 250'. Empty: the pipeline's own.", lines=False, advanced=True)


def lora_scales() -> Widget:
    """Strengths of LoRAs as a text."""
    return linked_text("One LoRA per line, such as 'ink: 0.5'. The node Filmstrip LoRA is easier.")


WEIGHTED_PROMPTS = "One prompt per line, such as '70: a cat'. The default weight is 100."
BLENDS = "To blend prompts, write one per line with its weight, such as '70: a cat' and '30: a dog'."


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

_WHOLE = re.compile(r"[0-9]{1,6}")
_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,3})?")
_QUOTED = re.compile(r'"([^"]*)"\s*:\s*"(.*)"\s*,?')
_WEIGHTED = re.compile(r"\s*[0-9]+(?:\.[0-9]+)?\s*:")


def parse_schedule(text: str, *, whole: bool = True) -> dict[float, str]:
    """Lines such as `4: a dog`: the prompt from each position on. `"4": "a dog",` is read too, as other nodes write it.

    Args:
        text: the lines.
        whole: positions are chunks or frames, so whole numbers; otherwise seconds.
    """
    position = _WHOLE if whole else _SECONDS
    prompts: dict[float, str] = {}
    for number, line in _lines(text):
        quoted = _QUOTED.fullmatch(line)
        start, colon, prompt = (quoted[1], ":", quoted[2]) if quoted else line.partition(":")
        if not colon or position.fullmatch(start.strip()) is None:
            raise FilmstripError(f"line {number} of the schedule must look like '4: a dog', got {line!r}")
        if float(start) in prompts:
            raise FilmstripError(f"line {number} of the schedule: {float(start):g} already has a prompt")
        prompts[float(start)] = prompt.strip()
    return prompts


def parse_prompt(text: str) -> str | list[dict[str, Any]]:
    """The text of a prompt box: one prompt, or prompts to blend if each line starts with a weight."""
    lines = [line for _, line in _lines(text)]
    if len(lines) > 1 and all(_WEIGHTED.match(line) for line in lines):
        return parse_weighted_prompts(text)
    return text


def parse_ramp(text: str) -> tuple[tuple[int, float], ...]:
    """`0: 0, 4: 1`: points (chunk, factor) in rising order, between which the factor grows evenly."""
    points: dict[int, float] = {}
    for point in filter(None, (part.strip() for part in re.split(r"[,\n]", text))):
        chunk, colon, factor = point.partition(":")
        value = _float(factor)
        if not colon or re.fullmatch(r"[0-9]{1,6}", chunk.strip()) is None or value is None:
            raise FilmstripError(f"the ramp must look like '0: 0, 4: 1', got {point!r}")
        if int(chunk) in points:
            raise FilmstripError(f"the ramp has chunk {int(chunk)} twice")
        points[int(chunk)] = value
    return tuple(sorted(points.items()))


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
