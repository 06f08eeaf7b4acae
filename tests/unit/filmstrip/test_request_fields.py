"""The typed fields that clients take are those of the server's schema."""

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from filmstrip.request_fields import ChunkSpec, GenerateFields, WeightedPrompt
from frontend import schema

KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", Sequence: "array", Mapping: "object"}


def kinds_of_type(hint: Any) -> set[str]:
    """The JSON types of a Python type, but for null."""
    if get_origin(hint) is Literal:
        return {"string"}
    if get_origin(hint) in KINDS or hint in KINDS:
        return {KINDS[get_origin(hint) or hint]}
    return set().union(*(kinds_of_type(choice) for choice in get_args(hint) if choice is not NoneType))


def kinds_of_schema(part: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """The JSON types that a part of a JSON schema takes, but for null."""
    if "$ref" in part:
        return kinds_of_schema(definitions[part["$ref"].rpartition("/")[2]], definitions)
    choices = part.get("anyOf") or part.get("oneOf") or ()
    if choices:
        return set().union(*(kinds_of_schema(choice, definitions) for choice in choices)) - {"null"}
    return {part["type"]}


def test_typed_fields_are_those_of_the_schema(subtests: pytest.Subtests):
    cases = [
        (GenerateFields, schema.GenerateRequest),
        (ChunkSpec, schema.ChunkSpec),
        (WeightedPrompt, schema.WeightedPrompt),
    ]
    for typed, model in cases:
        with subtests.test(typed=typed):
            hints, shown = get_type_hints(typed), model.model_json_schema()
            assert set(hints) == set(model.model_fields)
            for name, hint in hints.items():
                assert kinds_of_type(hint) == kinds_of_schema(shown["properties"][name], shown.get("$defs", {})), name
