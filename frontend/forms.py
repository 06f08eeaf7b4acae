"""Multipart forms: their fields as a JSON object, and one file, which goes to disk as it arrives.

Nested values that a client flattens into names of fields, such as `lora_scales[a]` and `denoising_steps[]`, are
understood as far as the names are unambiguous; any field can also be JSON text.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from filmstrip.errors import BadRequest, InvalidField, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"

_MAX_PARTS = 4096
_MAX_BOUNDARY = 200
_SLICE_BYTES = 64 * 2**10  # parsed at once: the slowest ones take tens of milliseconds
_MAX_HEADER_BYTES = 2048
_MAX_FRAMING_BYTES = 2**20  # of all that is neither text nor file
_BATCH_BYTES = 2**20
_MAX_BATCH = 1024  # pieces, which may be small
_START_BYTES = 16
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
_MAX_NUMBER_CHARACTERS = 400  # what Python would refuse to read is left to the check of the field


class FileSink(Protocol):
    """Where the bytes of a form's file go."""

    async def append(self, *parts: bytes | memoryview) -> None:
        """Append bytes."""


@dataclass
class FormFile:
    """The file of a form.

    Attributes:
        num_bytes: its size.
        start: its first bytes.
    """

    num_bytes: int = 0
    start: bytes = b""


@dataclass
class Form:
    """What was received of a form.

    Attributes:
        fields: names and texts, in the order in which they came.
        file: what is known of its file, if it has one.
    """

    fields: list[tuple[str, str]] = field(default_factory=list)
    file: FormFile | None = None


def boundary_of(content_type: str) -> bytes | None:
    """The boundary in the Content-Type of a form; None if it is no form.

    Raises:
        BadRequest: a form without a usable boundary.
    """
    media_type, options = parse_options_header(content_type)
    if media_type.decode("latin-1").lower() != FORM:
        return None
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise BadRequest(f"Content-Type: {FORM} needs a boundary of 1 to {_MAX_BOUNDARY} characters")
    return boundary


async def receive_form(
    pieces: AsyncIterator[bytes],
    boundary: bytes,
    *,
    file_name: str,
    file_sink: FileSink,
    max_file_bytes: int,
    count_text: Callable[[int], None],
) -> Form:
    """Receive a form.

    Args:
        pieces: the body.
        boundary: see `boundary_of`.
        file_name: the one field that may be a file.
        file_sink: where its bytes go.
        max_file_bytes: limit on its size.
        count_text: called with the bytes of all texts so far; raises if they are too many.

    Raises:
        BadRequest: the body is not a form.
        InvalidField: a file in another field, or more than one.
        TooLarge: the file is larger than its limit, or the form has too many parts.
    """
    parts = _Parts(file_name, max_file_bytes, count_text)
    parser = MultipartParser(boundary, parts.callbacks, max_header_count=8, max_header_size=_MAX_HEADER_BYTES)
    received = 0
    try:
        async for piece in pieces:
            for start in range(0, len(piece), _SLICE_BYTES):
                part = piece[start : start + _SLICE_BYTES]
                parser.write(part)
                received += len(part)
                if received - parts.num_bytes > _MAX_FRAMING_BYTES:
                    raise BadRequest("the body has too much between the parts of its form")
                if parts.batch_bytes >= _BATCH_BYTES or len(parts.batch) >= _MAX_BATCH:
                    await file_sink.append(*parts.take_batch())
                else:
                    await asyncio.sleep(0)  # otherwise other tasks would wait while pieces are there
            if parts.is_complete:  # what follows means nothing
                break
    except MultipartParseError:
        raise BadRequest("the body is not a multipart form") from None
    if not parts.is_complete:
        raise BadRequest("the multipart form is not complete")
    await file_sink.append(*parts.take_batch())
    return parts.form


class _Parts:
    """Puts the parts of a form together; its methods are called by the parser."""

    def __init__(self, file_name: str, max_file_bytes: int, count_text: Callable[[int], None]) -> None:
        self.form = Form()
        self.is_complete = False
        self.batch: list[bytes] = []
        self.batch_bytes = 0
        self._file_name = file_name
        self._max_file_bytes = max_file_bytes
        self._count_text = count_text
        self._text_bytes = 0
        self._num_parts = 0
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._name = ""
        self._text = bytearray()
        self._file: FormFile | None = None

    @property
    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of texts and of the file so far."""
        return self._text_bytes + (0 if self.form.file is None else self.form.file.num_bytes)

    def take_batch(self) -> list[bytes]:
        """What has come of the file since the last call."""
        batch, self.batch, self.batch_bytes = self.batch, [], 0
        return batch

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise TooLarge(f"the form has more than {_MAX_PARTS} parts")
        self._disposition = b""
        self._text = bytearray()
        self._file = None

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        if not options.get(b"name"):
            raise BadRequest("a part of the form has no name")
        self._name = _decoded(options[b"name"])
        if b"filename" not in options:
            self._count(len(options[b"name"]))
            return
        if self._name != self._file_name:
            raise InvalidField(f"{_shown(self._name)}: must not be a file", _shown(self._name))
        if self.form.file is not None:
            raise InvalidField(f"{self._file_name}: more than one file", self._file_name)
        self._file = self.form.file = FormFile()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._count(end - start)
            self._text += data[start:end]
            return
        file = self._file
        file.num_bytes += end - start
        if file.num_bytes > self._max_file_bytes:
            raise TooLarge(f"{self._file_name}: the file exceeds the limit of {self._max_file_bytes} bytes")
        file.start += data[start : min(end, start + _START_BYTES - len(file.start))]
        self.batch.append(data[start:end])
        self.batch_bytes += end - start

    def _end_part(self) -> None:
        if self._file is None:
            self.form.fields.append((self._name, _decoded(self._text)))

    def _end(self) -> None:
        self.is_complete = True

    def _count(self, num_bytes: int) -> None:
        self._text_bytes += num_bytes
        self._count_text(self._text_bytes)


def _decoded(data: bytes | bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRequest("the form's names and texts must be UTF-8") from None


def json_object(fields: Sequence[tuple[str, str]], *, texts: Collection[str]) -> dict[str, Any]:
    """The fields of a form as the JSON object that they stand for.

    Args:
        fields: names and texts.
        texts: top-level fields that are text even if they look like JSON; so is everything called `text`.

    Raises:
        InvalidField: a name is sent twice, or cannot be understood.
    """
    values: dict[tuple[str, ...], list[Any]] = {}
    for name, text in fields:
        match = _NAME.fullmatch(name)
        path = (match[1], *match[2][1:-1].split("][")) if match and match[2] else (name,)
        is_text = (len(path) == 1 and path[0] in texts) or path[1:] == ("", "text")
        values.setdefault(path, []).append(text if is_text else _json_value(text))
    found: dict[str, Any] = {}
    lists: dict[str, dict[str, list[Any]]] = {}
    objects: dict[str, dict[str, Any]] = {}
    for path, sent in values.items():
        name = path[0]
        match path[1:]:
            case ():
                _put(found, name, _only(name, sent))
            case ("",):
                _put(found, name, sent)
            case ("", key) if key:
                lists.setdefault(name, {})[key] = sent
            case (key,):
                objects.setdefault(name, {})[key] = _only(f"{name}.{key}", sent)
            case _:
                raise _ambiguous(name)
    for name, columns in lists.items():
        _put(found, name, _rows(name, columns))
    for name, inner in objects.items():
        _put(found, name, inner)
    return found


def _put(into: dict[str, Any], name: str, value: Any) -> None:
    if name in into:
        raise _ambiguous(name)
    into[name] = value


def _only(name: str, sent: list[Any]) -> Any:
    if len(sent) > 1:
        raise InvalidField(f"{_shown(name)}: sent more than once", _shown(name))
    return sent[0]


def _rows(name: str, columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The entries of a list, of which a form has each key's values one after another."""
    counts = {len(column) for column in columns.values()}
    if len(counts) > 1:  # some entries lack a key, and nothing says which
        raise _ambiguous(name)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _ambiguous(name: str) -> InvalidField:
    return InvalidField(f"{_shown(name)}: ambiguous in a form; send it as one field with JSON text", _shown(name))


def looks_like_json(text: str) -> bool:
    """Whether a text may be a JSON object or list."""
    return text[:1] in ("{", "[")


def _json_value(text: str) -> Any:
    """The value of a JSON text, or the text itself if it is none."""
    is_json = text in ("true", "false", "null") or looks_like_json(text)
    if is_json or (len(text) <= _MAX_NUMBER_CHARACTERS and _NUMBER.fullmatch(text)):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _shown(name: str | None) -> str:
    shown = (name or "''")[:80]
    return shown if shown.isprintable() else ascii(shown)
