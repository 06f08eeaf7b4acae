"""What a pipeline supports: the feature that each field of a request needs, its frame sizes, its LoRAs."""

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from filmstrip.contract import PipelineSpec
from filmstrip.errors import InvalidField
from filmstrip.geometry import MAX_REQUEST_SIDE, MIN_SIDE, nearest_multiples

from .schema import ChunkSpec, GenerateRequest, Needs, at_chunk

_MARKED = {
    name: mark
    for model in (GenerateRequest, ChunkSpec)
    for name, field in model.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, Needs)
}
_CHECKED = ("seed", "noise", "cache", "denoising_steps", "loras", "vace", "prompts")
FEATURE_OF_FIELD = {
    name: mark.feature for name, mark in sorted(_MARKED.items(), key=lambda marked: _CHECKED.index(marked[1].feature))
}
"""The feature that each field needs, in the order in which they are checked; every pipeline supports other fields."""
GENERIC_FIELDS = frozenset(name for name, mark in _MARKED.items() if mark.generic)
"""What generic clients always send: accepted by any pipeline."""
_OF_TRANSITION = ("transition_num_steps", "transition_method")


def check_features(request: GenerateRequest, pipeline: PipelineSpec) -> None:
    """Refuse the first field that the pipeline does not support.

    `GENERIC_FIELDS` and prompts are never refused, nor are fields of a transition without target prompts.

    Raises:
        InvalidField: names the field and the features that the pipeline has.
    """
    _check(request, pipeline)
    for position, spec in enumerate(request.chunk_specs or ()):
        _check(spec, pipeline, position)


def _check(fields: GenerateRequest | ChunkSpec, pipeline: PipelineSpec, position: int = 0) -> None:
    for name, feature in FEATURE_OF_FIELD.items():
        if name in GENERIC_FIELDS or name in _without_transition(fields):
            continue
        if _is_set(fields, name) and not getattr(pipeline.features, feature):
            field = where = name
            if isinstance(fields, ChunkSpec):
                field = f"chunk_specs[{position}].{name}"
                where = at_chunk(field, fields.chunk)
            has = ", ".join(name for name, has in pipeline.features.to_dict().items() if has) or "none"
            raise InvalidField(f"{where}: {pipeline.id} does not support {feature}; its features: {has}", field)


def unused_fields(request: GenerateRequest, pipeline: PipelineSpec) -> tuple[str, ...]:
    """The fields that the request or a ChunkSpec sets, to any value, and that have no effect; sorted."""
    useless = {name for name in GENERIC_FIELDS if not getattr(pipeline.features, FEATURE_OF_FIELD[name])}
    found: set[str] = set()
    for fields in (request, *(request.chunk_specs or ())):
        found |= fields.model_fields_set & (useless | _without_transition(fields))
    return tuple(sorted(found))


def _without_transition(fields: GenerateRequest | ChunkSpec) -> frozenset[str]:
    """The fields of a transition, if the ChunkSpec has no target prompts."""
    has_none = isinstance(fields, ChunkSpec) and fields.transition_target_prompts is None
    return frozenset(_OF_TRANSITION) if has_none else frozenset()


def _is_set(fields: GenerateRequest | ChunkSpec, name: str) -> bool:
    """Whether a field is set to anything but what applies without it.

    | field, value | result |
    |---|---|
    | absent, null, [] or {} | False |
    | the field's own default, or the request's default in a ChunkSpec | False |
    | `false`, if the field's own default is null and the request's default is not true | False |
    | `false` in a ChunkSpec, if the request's default is true | True |
    | any other value | True |
    """
    if name not in fields.model_fields_set:
        return False
    value: Any = getattr(fields, name)
    own = type(fields).model_fields[name].default
    of_request = GenerateRequest.model_fields[name].default if name in GenerateRequest.model_fields else None
    is_already_off = value is False and own is None and of_request is not True
    return not is_already_off and value not in (None, own, of_request, [], {})


def frame_size(
    pipeline: PipelineSpec,
    requested: tuple[int | None, int | None],
    inputs: tuple[int | None, int | None] = (None, None),
) -> tuple[int | None, int | None]:
    """Height and width of a generation: the requested ones, else the pipeline's own, else the input's, else None.

    Raises:
        InvalidField: the pipeline does not support it; the message names the nearest sizes that it does.
    """
    sides = []
    own = (pipeline.height, pipeline.width)
    for name, wanted, native, of_input in zip(("height", "width"), requested, own, inputs, strict=True):
        side = wanted or native or of_input
        if side is not None and side % pipeline.granularity:
            good = " or ".join(map(str, nearest_multiples(side, pipeline.granularity, MIN_SIDE, MAX_REQUEST_SIDE)))
            field = name if wanted else "input_path"
            raise InvalidField(f"{field}: {side} is not a multiple of {pipeline.granularity}, try {good}", field)
        sides.append(side)
    size = sides[0], sides[1]
    if pipeline.sizes and size not in pipeline.sizes:
        known = ", ".join(f"{width}x{height}" for height, width in pipeline.sizes)
        field = "width" if requested[0] is None and requested[1] is not None else "height"
        raise InvalidField(
            f"{field}: {pipeline.id} does not support {size[1]}x{size[0]}; exported sizes: {known}", field
        )
    return size


def lora_scales(
    requested: Mapping[str, float] | None, pipeline: PipelineSpec, field: str, chunk: int | None = None
) -> dict[str, float]:
    """Scales by the names under which the LoRAs were exported; a path stands for the name of its file.

    Args:
        requested: scales by name or path.
        pipeline: whose LoRAs they are.
        field: of the request, for messages.
        chunk: whose ChunkSpec the field is in.

    Raises:
        InvalidField: the pipeline has no LoRA of a name, or one is named twice.
    """
    scales: dict[str, float] = {}
    for path, scale in (requested or {}).items():
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
