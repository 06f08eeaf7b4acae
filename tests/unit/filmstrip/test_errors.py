import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip import errors
from filmstrip.errors import ERRORS, FilmstripError, InvalidField, ModelError, from_wire


def test_every_class_of_the_tree_has_a_code_of_its_own():
    classes = [
        found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, FilmstripError)
    ]
    assert sorted(ERRORS.values(), key=repr) == sorted(classes, key=repr)
    assert all(ERRORS[found.code] is found for found in classes)


def test_the_docstring_shows_the_tree_as_it_is():
    shown = {
        (words[0], int(words[1]), words[2])
        for line in (errors.__doc__ or "").splitlines()
        if len(words := line.lstrip(" │├└─").split()) == 3 and words[1].isdecimal()
    }
    assert shown == {
        (found.__name__, found.status, code) for code, found in ERRORS.items() if found is not FilmstripError
    }


def test_a_child_keeps_the_status_of_its_parent():
    for found in ERRORS.values():
        parent = found.__bases__[0]
        if parent is not FilmstripError and found is not FilmstripError:
            assert found.status == parent.status


def test_the_body_of_an_answer():
    assert InvalidField("seed must be positive", "seed").body() == {
        "error": {"code": "invalid_field", "message": "seed must be positive", "field": "seed"},
        "detail": "seed must be positive",
    }
    assert "field" not in ModelError("broken").body()["error"]


@given(
    kind=st.sampled_from(sorted(ERRORS)),
    message=st.text(),
    field=st.none() | st.text(),
    before=st.text().filter(lambda text: "filmstrip-error:" not in text),
    after=st.text(),
)
def test_errors_round_trip_through_the_text_that_triton_wraps_around_them(kind, message, field, before, after):
    read = from_wire(before + ERRORS[kind](message, field).to_wire() + after)
    assert type(read) is ERRORS[kind]
    assert (read.message, read.field, str(read)) == (message, field, message)


def test_other_texts_are_not_filmstrip_errors(subtests: pytest.Subtests):
    cases = ["", "CUDA out of memory", "filmstrip-error:", "filmstrip-error:{", "filmstrip-error: x"]
    for text in cases:
        with subtests.test(text=text):
            assert from_wire(text) is None


def test_a_damaged_error_is_not_a_filmstrip_error(subtests: pytest.Subtests):
    cases = ["{}", "3", "null", '{"code": [], "message": "", "field": null}']
    for rest in cases:
        with subtests.test(rest=rest):
            assert from_wire("filmstrip-error:" + rest) is None


def test_an_error_of_a_later_version_is_a_model_error():
    wire = InvalidField("new").to_wire().replace("invalid_field", "from_the_future")
    assert json.loads(wire.partition(":")[2])["code"] == "from_the_future"
    assert type(from_wire(wire)) is ModelError
