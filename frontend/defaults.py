"""What a client's last load of a pipeline set: defaults for its later requests.

Pure functions: `frontend.parts` keeps the defaults, by client and pipeline.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from filmstrip.contract import PipelineFacts
from filmstrip.errors import InvalidField

from .features import GENERIC_FIELDS, check_features, frame_size, lora_scales
from .schema import RANDOM_SEED, GenerateRequest, LoadParams

_NUM_RANDOM_SEEDS = 2**32


def request_defaults(load_params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a GenerateRequest that load parameters set."""
    params = LoadParams.of(load_params)
    defaults = {name: getattr(params, name) for name in params.model_fields_set - {"loras"}}
    if params.loras is not None:
        defaults["lora_scales"] = {lora.path: lora.scale for lora in params.loras}
    return defaults


def check_defaults(defaults: Mapping[str, Any], pipeline: PipelineFacts, field: str) -> None:
    """Refuse what a request with these defaults would be refused for; `field` is that of the load parameters.

    Raises:
        InvalidField: the pipeline cannot make the size, has no LoRA of a name, or lacks a feature.
    """
    others = {name: value for name, value in defaults.items() if name != "lora_scales"}
    request = GenerateRequest(pipeline_id=pipeline.id, prompt="", **others)
    try:
        check_features(request, pipeline)
        frame_size(pipeline, (request.height, request.width))
        lora_scales(defaults.get("lora_scales"), pipeline, "loras")
    except InvalidField as error:
        raise InvalidField(f"{field}.{error.message}", f"{field}.{error.field}") from None


def ignored_params(load_params: Mapping[str, Any] | None, pipeline: PipelineFacts | None) -> frozenset[str]:
    """Names of the load parameters that have no effect, as far as is known of the pipeline."""
    has_seed = pipeline is None or pipeline.features.seed
    useless = frozenset() if has_seed else LoadParams.of(load_params).model_fields_set & {"seed"}
    return LoadParams.ignored(load_params) | useless


def with_defaults(request: GenerateRequest, defaults: Mapping[str, Any]) -> GenerateRequest:
    """The request as it is carried out: defaults where it sets nothing, and a number for a random seed."""
    added = {name: value for name, value in defaults.items() if name not in request.model_fields_set}
    values = dict(request) | added
    if values["seed"] == RANDOM_SEED:
        values["seed"] = secrets.randbelow(_NUM_RANDOM_SEEDS)
    # The client did not send the added fields: they must not count as unused.
    fields_set = request.model_fields_set | (added.keys() - GENERIC_FIELDS)
    return GenerateRequest.model_construct(_fields_set=fields_set, **values)
