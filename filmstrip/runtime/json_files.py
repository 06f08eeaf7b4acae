"""JSON files of a model's folder into their dataclasses, by pydantic: nothing is converted, no key is passed over."""

from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True)
"""`__pydantic_config__` of each of these dataclasses: a text is no number, and an unknown key is an error."""


def decode(kind: type[T], text: str) -> T:
    """Read a dataclass from JSON.

    Raises:
        ValueError: it isn't JSON, or a field is missing, unknown or of another type; the message names each field.
    """
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise ValueError(
            "; ".join(_problem(one["loc"], one["msg"]) for one in error.errors(include_url=False))
        ) from None


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _problem(place: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, place))}: {message}" if place else message
