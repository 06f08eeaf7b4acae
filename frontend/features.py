"""What a pipeline does not support: refused or, where generic clients always send the field, named as unused."""

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from filmstrip.contract import PipelineFacts
from filmstrip.errors import InvalidField
from filmstrip.geometry import MAX_SIDE, MIN_SIDE, nearest_multiples

from .schema import ChunkSpec, GenerateRequest, at_chunk

FEATURE_OF_FIELD: Mapping[str, str] = {
    "seed": "seed",
    "noise_scale": "noise",
    "noise_controller": "noise",
    "manage_cache": "cache",
    "reset_cache": "cache",
    "kv_cache_attention_bias": "cache",
    "denoising_steps": "denoising_steps",
    "lora_scales": "loras",
    "vace_context_scale": "vace",
    "vace_use_input_video": "vace",
    "vace_temporally_locked": "vace",
    "vace_frames_shape": "vace",
    "vace_frames_offset": "vace",
    "vace_masks_shape": "vace",
    "vace_masks_offset": "vace",
    "vace_ref_images": "vace",
    "first_frame_image": "vace",
    "last_frame_image": "vace",
    "transition_target_prompts": "prompts",
    "transition_num_steps": "prompts",
    "transition_method": "prompts",
}


GENERIC_FIELDS = frozenset({"seed", "noise_scale", "noise_controller", "manage_cache", "denoising_steps"})
"""What every generator has and generic clients always send: accepted by any pipeline."""

_OF_TRANSITION = ("transition_num_steps", "transition_method")


def check_features(request: GenerateRequest, pipeline: PipelineFacts) -> None:
    """Refuse the first field that asks for something that the pipeline cannot do.

    `GENERIC_FIELDS` and prompts are never refused, nor is what describes a transition without its target prompts.

    Raises:
        InvalidField: names the field and the features that the pipeline has.
    """
    _check(request, pipeline)
    for position, spec in enumerate(request.chunk_specs or ()):
        _check(spec, pipeline, position)


def _check(given: GenerateRequest | ChunkSpec, pipeline: PipelineFacts, position: int = 0) -> None:
    for name, feature in FEATURE_OF_FIELD.items():
        if name in GENERIC_FIELDS or name in _without_transition(given):
            continue
        if _is_set(given, name) and not getattr(pipeline.features, feature):
            field = where = name
            if isinstance(given, ChunkSpec):
                field = f"chunk_specs[{position}].{name}"
                where = at_chunk(field, given.chunk)
            has = ", ".join(name for name, has in pipeline.features.to_dict().items() if has) or "none"
            raise InvalidField(f"{where}: {pipeline.id} does not support {feature}; its features: {has}", field)


def unused_fields(request: GenerateRequest, pipeline: PipelineFacts) -> tuple[str, ...]:
    """The fields that are set in the request or a ChunkSpec, to whatever value, and have no effect; sorted."""
    useless = {name for name in GENERIC_FIELDS if not getattr(pipeline.features, FEATURE_OF_FIELD[name])}
    found: set[str] = set()
    for given in (request, *(request.chunk_specs or ())):
        found |= given.model_fields_set & (useless | _without_transition(given))
    return tuple(sorted(found))


def _without_transition(given: GenerateRequest | ChunkSpec) -> frozenset[str]:
    """The fields of a transition where there is none."""
    has_none = isinstance(given, ChunkSpec) and given.transition_target_prompts is None
    return frozenset(_OF_TRANSITION) if has_none else frozenset()


def _is_set(given: GenerateRequest | ChunkSpec, name: str) -> bool:
    """Whether a field asks for anything beyond what holds anyway."""
    if name not in given.model_fields_set:
        return False
    value: Any = getattr(given, name)
    own = type(given).model_fields[name].default
    of_request = GenerateRequest.model_fields[name].default if name in GenerateRequest.model_fields else None
    asks_nothing = value is False and own is None and of_request is not True
    return not asks_nothing and value not in (None, own, of_request, [], {})


def frame_size(
    pipeline: PipelineFacts, asked: tuple[int | None, int | None], inputs: tuple[int | None, int | None] = (None, None)
) -> tuple[int | None, int | None]:
    """Height and width of a generation: asked for, else the pipeline's own, else the input's, else None.

    Raises:
        InvalidField: the pipeline cannot make it; the message names the nearest sizes that it can.
    """
    sides = []
    own = (pipeline.height, pipeline.width)
    for name, wanted, native, of_input in zip(("height", "width"), asked, own, inputs, strict=True):
        side = wanted or native or of_input
        if side is not None and side % pipeline.granularity:
            good = " or ".join(map(str, nearest_multiples(side, pipeline.granularity, MIN_SIDE, MAX_SIDE)))
            field = name if wanted else "input_path"
            raise InvalidField(f"{field}: {side} is not a multiple of {pipeline.granularity}, try {good}", field)
        sides.append(side)
    size = sides[0], sides[1]
    if pipeline.sizes and size not in pipeline.sizes:
        known = ", ".join(f"{height}x{width}" for height, width in pipeline.sizes)
        field = "width" if asked[0] is None and asked[1] is not None else "height"
        raise InvalidField(
            f"{field}: {pipeline.id} does not support {size[0]}x{size[1]}; exported sizes: {known}", field
        )
    return size


def lora_scales(
    given: Mapping[str, float] | None, pipeline: PipelineFacts, field: str, chunk: int | None = None
) -> dict[str, float]:
    """The scales by the names under which the LoRAs were exported; a path stands for its file's name.

    Args:
        given: scales by name or path.
        pipeline: whose LoRAs they are.
        field: of the request, for messages.
        chunk: whose ChunkSpec the field is in.

    Raises:
        InvalidField: the pipeline has no LoRA of a name, or one is named twice.
    """
    scales: dict[str, float] = {}
    for path, scale in (given or {}).items():
        name = lora_name(path, pipeline.features.loras)
        if name is None or name in scales:
            trouble = "names a LoRA twice" if name else "is not a LoRA of this pipeline"
            known = ", ".join(pipeline.features.loras) or "none"
            where = field if chunk is None else at_chunk(field, chunk)
            raise InvalidField(f"{where}: {path[:80]!r} {trouble}; {pipeline.id} has: {known}", field)
        scales[name] = scale
    return scales


def lora_name(path: str, names: Collection[str]) -> str | None:
    """The name among `names` that a path stands for: the path itself, its file's name, or that without its suffix."""
    file = PurePath(path.replace("\\", "/"))
    return next((name for name in (path, file.name, file.stem) if name in names), None)
