"""JSON files of a model's folder into their dataclasses, by pydantic: nothing is converted, no key is ignored."""

from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True)
"""`__pydantic_config__` of these dataclasses: a string is not a number, and an unknown key is an error."""


def decode(adapter: TypeAdapter[T], text: str) -> T:
    """Read a dataclass from JSON.

    Raises:
        ValueError: it isn't JSON, or a field is missing, unknown or of another type; the message names each field.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ValueError("; ".join(_sentence(problem["loc"], problem["msg"]) for problem in problems)) from None


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, place))}: {message}" if place else message
