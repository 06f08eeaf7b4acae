"""The requests of generations as they are compared and kept."""

import hashlib
import json
import secrets
from collections.abc import Collection
from typing import Any

from .data_urls import without_data_urls
from .jobs import Record
from .schema import RANDOM_SEED, GenerateRequest

_NUM_RANDOM_SEEDS = 2**32


def digest_and_text(request: GenerateRequest) -> tuple[str, str]:
    """A hash by which a repeated request is recognised, whatever the order of its keys, and the JSON to keep."""
    text = json.dumps(request.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), stored_request(request, request)


def with_seed(request: GenerateRequest) -> GenerateRequest:
    """The request with a number for a random seed."""
    if request.seed != RANDOM_SEED:
        return request
    return _rebuilt(request, request.model_fields_set, seed=secrets.randbelow(_NUM_RANDOM_SEEDS))


def defaulted_fields(request: GenerateRequest) -> frozenset[str]:
    """The fields that have a value which the client did not send: its load parameters."""
    fields = GenerateRequest.model_fields
    return frozenset(
        name for name, value in request if name not in request.model_fields_set and value != fields[name].default
    )


def stored_request(sent: GenerateRequest, checked: GenerateRequest) -> str:
    """The JSON to keep: what was sent with the client's defaults, and no data URLs."""
    specs = without_data_urls(checked).chunk_specs
    names = sent.model_fields_set | defaulted_fields(sent)
    return _rebuilt(sent, names, chunk_specs=specs).model_dump_json(exclude_unset=True)


def restored_request(record: Record, text: str) -> GenerateRequest:
    """The request that a record was made for."""
    request = GenerateRequest.model_validate_json(text)
    return _rebuilt(request, request.model_fields_set - set(record.defaulted), seed=record.seed)


def _rebuilt(request: GenerateRequest, fields_set: Collection[str], **changes: Any) -> GenerateRequest:
    return GenerateRequest.model_construct(_fields_set=set(fields_set), **(dict(request) | changes))
