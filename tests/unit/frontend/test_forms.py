"""Multipart forms: flattened names, and bodies that arrive in any pieces."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from filmstrip.errors import BadRequest, FilmstripError, InvalidField, TooLarge
from frontend.forms import Form, boundary_of, json_object, receive_form

BOUNDARY = b"a-b"


class Sink:
    def __init__(self) -> None:
        self.data = b""

    async def append(self, *parts: bytes | memoryview) -> None:
        self.data += b"".join(map(bytes, parts))


def part(name: str, value: bytes, file_name: str | None = None) -> bytes:
    file = "" if file_name is None else f'; filename="{file_name}"'
    return b"--a-b\r\n" + f'Content-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--a-b--\r\n"


async def receive(body: bytes, piece_bytes: int = 2**20, **limits: Any) -> tuple[Form, bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), piece_bytes):
            yield body[start : start + piece_bytes]

    sink = Sink()
    options: dict[str, Any] = {"max_file_bytes": 2**20, "count_text": lambda _: None} | limits
    received = await receive_form(pieces(), BOUNDARY, file_name="file", file_sink=sink, **options)
    return received, sink.data


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 64, 2**20])
async def test_a_form_arrives_in_any_pieces(piece_bytes: int) -> None:
    data = b"\r\n--a-\r\n--a-b" + bytes(range(256)) * 20 + b"\r\n--a-bc\r\n\r"
    body = form(part("prompt", "ü\r\n".encode()), part("file", data, "x"), part("after", b""))
    received, stored = await receive(body, piece_bytes)
    assert received.fields == [("prompt", "ü\r\n"), ("after", "")]
    assert stored == data
    assert received.file is not None
    assert (received.file.num_bytes, received.file.start) == (len(data), data[:16])


async def test_forms_that_are_refused(subtests: pytest.Subtests) -> None:
    many = form(*(part(f"n{number}", b"") for number in range(5000)))
    long_header = part("n", b"").replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 1900 + b"\r\n\r\n", 1)
    cases: list[tuple[str, bytes, type[FilmstripError]]] = [
        ("empty", b"", BadRequest),
        ("no form", b"x" * 1000, BadRequest),
        ("cut in a part", form(part("prompt", b"x" * 100))[:90], BadRequest),
        ("cut before the end", part("prompt", b"x"), BadRequest),
        ("no name", b"--a-b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a-b--\r\n", BadRequest),
        ("no disposition", b"--a-b\r\nX: y\r\n\r\nx\r\n--a-b--\r\n", BadRequest),
        ("not UTF-8", form(part("prompt", b"\xff")), BadRequest),
        ("a file elsewhere", form(part("prompt", b"x", "x")), InvalidField),
        ("two files", form(part("file", b"x", "x"), part("file", b"x", "x")), InvalidField),
        ("a large file", form(part("file", bytes(2**20 + 1), "x")), TooLarge),
        ("many parts", many, TooLarge),
        ("endless headers", b"--a-b\r\nX: " + b"y" * (3 * 2**20), BadRequest),
        ("an endless preamble", b"y" * (3 * 2**20), BadRequest),
        ("empty lines without an end", b"\r\n" * 2**20, BadRequest),
        ("a boundary that goes on", b"--a-b" + b" " * (3 * 2**20), BadRequest),
        ("long headers", form(*[long_header] * 1000), BadRequest),
    ]
    for name, body, kind in cases:
        with subtests.test(name):
            with pytest.raises(FilmstripError) as caught:
                await receive(body)
            assert type(caught.value) is kind


async def test_what_follows_a_form_is_not_read() -> None:
    received, _ = await receive(form(part("prompt", b"x")) + b"y" * 3_000_000, 1000)
    assert received.fields == [("prompt", "x")]


async def test_texts_are_counted_while_they_arrive() -> None:
    counted: list[int] = []

    def count(num_bytes: int) -> None:
        counted.append(num_bytes)
        if num_bytes > 1000:
            raise TooLarge("too many")

    with pytest.raises(TooLarge):
        await receive(form(part("prompt", b"x" * 600), part("other", b"x" * 10**6)), 100, count_text=count)
    assert max(counted) < 1200


async def test_other_tasks_get_their_turn_while_a_form_is_parsed() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(count())
    await receive(form(part("prompt", b"x" * 2**20)), 2**21)  # in one piece
    task.cancel()
    assert turns >= 2**20 // (64 * 2**10)


def test_the_boundary_is_in_the_content_type(subtests: pytest.Subtests) -> None:
    assert boundary_of("multipart/form-data; boundary=a-b") == b"a-b"
    assert boundary_of('Multipart/Form-Data; boundary="a b"; charset=utf-8') == b"a b"
    assert boundary_of("application/json") is None
    assert boundary_of("") is None
    for refused in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 300}",
    ):
        with subtests.test(refused[:50]), pytest.raises(BadRequest):
            boundary_of(refused)


OBJECTS: list[tuple[list[tuple[str, str]], dict[str, Any]]] = [
    ([("prompt", "42"), ("num_frames", "48")], {"prompt": "42", "num_frames": 48}),
    ([("prompt", "[1]"), ("seed", "-1"), ("x", "1e-3")], {"prompt": "[1]", "seed": -1, "x": 0.001}),
    ([("a", "true"), ("b", "null"), ("c", "NaN")], {"a": True, "b": None, "c": "NaN"}),
    ([("a", "0x10"), ("b", "")], {"a": "0x10", "b": ""}),
    ([("lora_scales[ink]", "0.5"), ("lora_scales[neon]", "1")], {"lora_scales": {"ink": 0.5, "neon": 1}}),
    ([("denoising_steps[]", "1000"), ("denoising_steps[]", "500")], {"denoising_steps": [1000, 500]}),
    (
        [("specs[][chunk]", "0"), ("specs[][chunk]", "2"), ("specs[][text]", "a"), ("specs[][text]", "7")],
        {"specs": [{"chunk": 0, "text": "a"}, {"chunk": 2, "text": "7"}]},
    ),
    ([("chunk_specs", '[{"chunk": 0}]')], {"chunk_specs": [{"chunk": 0}]}),
    ([("a]b[", "1")], {"a]b[": 1}),
    ([("prompt[][text]", "7"), ("prompt[][weight]", "0.5")], {"prompt": [{"text": "7", "weight": 0.5}]}),
    ([("lora_scales[text]", "0.5")], {"lora_scales": {"text": 0.5}}),
    ([("n", "9" * 5000)], {"n": "9" * 5000}),
    ([("n", "[" * 100_000)], {"n": "[" * 100_000}),
]  # fmt: skip


def test_fields_become_json(subtests: pytest.Subtests) -> None:
    for fields, expected in OBJECTS:
        with subtests.test(str(fields)[:60]):
            assert json_object(fields, texts=("prompt",)) == expected


def test_names_that_say_too_little_are_refused(subtests: pytest.Subtests) -> None:
    cases = [
        [("a", "1"), ("a", "2")],
        [("a", "1"), ("a[]", "2")],
        [("a[b]", "1"), ("a[]", "2")],
        [("a[]", "1"), ("a[b]", "2")],
        [("a[b]", "1"), ("a[b]", "2")],
        [("a[b]", "1"), ("a", '{"c": 1}')],
        [("a", '{"c": 1}'), ("a[b]", "1")],
        [("a[b][c]", "1")],
        [("a[][b]", "1"), ("a[][c]", "1"), ("a[][c]", "2")],
        [("a[][b][]", "1")],
    ]
    for fields in cases:
        with subtests.test(str(fields)), pytest.raises(InvalidField) as caught:
            json_object(fields, texts=())
        assert caught.value.field in ("a", "a.b")
