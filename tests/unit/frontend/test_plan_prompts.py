"""Which prompts are in force: those set last, and transitions from chunk to chunk."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.contract import Interpolation, Prompt
from frontend.plan import ChunkPrompts, StickyPrompts
from frontend.schema import GenerateRequest

TO_B = {"transition_target_prompts": [{"text": "b"}]}
TO_C = {"transition_target_prompts": [{"text": "c"}]}


def walk(num_chunks: int, specs: Mapping[int, Mapping[str, Any]], **fields: Any) -> list[ChunkPrompts]:
    listed = [{"chunk": chunk, **spec} for chunk, spec in specs.items()]
    body = {"pipeline_id": "p", "prompt": "a", "chunk_specs": listed, **fields}
    request = GenerateRequest.model_validate(body)
    by_chunk = {spec.chunk: spec for spec in request.chunk_specs or ()}
    sticky = StickyPrompts(request)
    return [sticky.next_chunk(by_chunk.get(chunk)) for chunk in range(num_chunks)]


def texts(chunks: list[ChunkPrompts]) -> list[str]:
    """`a` where prompt a is in force, `a>b 1/4` at step 1 of 4 to b."""
    return [_told(chunk) for chunk in chunks]


def _told(chunk: ChunkPrompts) -> str:
    names = "+".join(prompt.text for prompt in chunk.prompts)
    if chunk.transition is None:
        return names
    target = "+".join(prompt.text for prompt in chunk.transition.target)
    return f"{names}>{target} {chunk.transition.step}/{chunk.transition.num_steps}"


def test_the_last_prompt_set_persists() -> None:
    specs = {1: {"text": "b"}, 3: {"prompts": [{"text": "c", "weight": 30}, {"text": "d"}]}, 4: {"seed": 7}}
    chunks = walk(6, specs)
    assert texts(chunks) == ["a", "b", "b", "c+d", "c+d", "c+d"]
    assert chunks[5].prompts == (Prompt("c", 30.0), Prompt("d", 100.0))


def test_prompts_of_the_request() -> None:
    assert walk(2, {})[1].prompts == (Prompt("a", 100.0),)
    weighted = walk(2, {}, prompt=[{"text": "x", "weight": 0}, {"text": "y", "weight": 2.5}])
    assert weighted[1].prompts == (Prompt("x", 0.0), Prompt("y", 2.5))


def test_an_empty_text_is_a_prompt() -> None:
    assert walk(2, {1: {"text": ""}})[1].prompts == (Prompt("", 100.0),)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"transition_num_steps": 0}, ["a", "a>b 0/0", "b", "b", "b", "b"]),
        ({"transition_num_steps": 1}, ["a", "a>b 0/1", "b", "b", "b", "b"]),
        ({"transition_num_steps": 2}, ["a", "a>b 0/2", "a>b 1/2", "b", "b", "b"]),
        ({"transition_num_steps": 4}, ["a", "a>b 0/4", "a>b 1/4", "a>b 2/4", "a>b 3/4", "b"]),
        ({}, ["a", "a>b 0/4", "a>b 1/4", "a>b 2/4", "a>b 3/4", "b"]),
        ({"transition_num_steps": None}, ["a", "a>b 0/4", "a>b 1/4", "a>b 2/4", "a>b 3/4", "b"]),
        ({"transition_num_steps": 99}, ["a", *(f"a>b {step}/99" for step in range(5))]),
        ({"text": "c", "transition_num_steps": 2}, ["a", "c>b 0/2", "c>b 1/2", "b", "b", "b"]),
    ],
)
def test_a_transition_takes_its_steps_and_its_target_persists(spec: dict[str, Any], expected: list[str]) -> None:
    assert texts(walk(6, {1: TO_B | spec})) == expected


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ({0: TO_B, 2: {"text": "c"}}, ["a>b 0/4", "a>b 1/4", "c", "c", "c", "c"]),
        ({0: TO_B, 2: {"prompts": [{"text": "c"}]}}, ["a>b 0/4", "a>b 1/4", "c", "c", "c", "c"]),
        ({0: TO_B, 3: {"text": "c"}}, ["a>b 0/4", "a>b 1/4", "a>b 2/4", "c", "c", "c"]),
        (
            {0: TO_B, 2: {"text": "c"} | TO_B | {"transition_num_steps": 2}},
            ["a>b 0/4", "a>b 1/4", "c>b 0/2", "c>b 1/2", "b", "b"],
        ),
        # After an arrival the next one starts from the target.
        (
            {0: TO_B | {"transition_num_steps": 2}, 2: TO_C | {"transition_num_steps": 2}},
            ["a>b 0/2", "a>b 1/2", "b>c 0/2", "b>c 1/2", "c", "c"],
        ),
        ({0: TO_B | {"transition_num_steps": 0}, 1: TO_C}, ["a>b 0/0", *(f"b>c {step}/4" for step in range(4)), "c"]),
        # Fields that are no prompts leave it alone.
        ({0: TO_B, 2: {"seed": 1, "reset_cache": True}}, [*(f"a>b {step}/4" for step in range(4)), "b", "b"]),
    ],
)
def test_what_comes_in_the_middle_of_a_transition(specs: dict[int, dict[str, Any]], expected: list[str]) -> None:
    assert texts(walk(6, specs)) == expected


def test_a_new_transition_in_the_middle_of_one_has_its_own_steps_and_target() -> None:
    """It starts from the embedding in force, which the runtime has; the prompts sent are those before both."""
    chunks = walk(6, {0: TO_B, 2: TO_C | {"transition_num_steps": 3}})
    assert [chunk.transition and (chunk.transition.step, chunk.transition.num_steps) for chunk in chunks] == [
        *((0, 4), (1, 4), (0, 3), (1, 3), (2, 3), None)
    ]
    assert [chunk.target[0].text for chunk in chunks] == ["b", "b", "c", "c", "c", "c"]


def test_the_method_of_a_transition() -> None:
    for spec, method in (({}, Interpolation.LINEAR), ({"transition_method": "slerp"}, Interpolation.SLERP)):
        chunks = walk(2, {0: TO_B | spec}, prompt_interpolation_method="linear")
        assert [chunk.transition.method for chunk in chunks if chunk.transition] == [method, method]


def test_a_transition_of_no_steps_is_a_change_of_prompt() -> None:
    assert [chunk.in_transition for chunk in walk(2, {0: TO_B | {"transition_num_steps": 0}})] == [False, False]
    assert [chunk.in_transition for chunk in walk(2, {0: TO_B | {"transition_num_steps": 1}})] == [True, False]
    assert [chunk.in_transition for chunk in walk(2, {0: TO_B})] == [True, True]


@given(
    st.dictionaries(
        st.integers(0, 20),
        st.fixed_dictionaries(
            {},
            optional={
                "text": st.sampled_from("xyz"),
                "transition": st.tuples(st.sampled_from("uvw"), st.integers(0, 6)),
            },
        ),
    )
)
def test_walking_chunk_by_chunk_is_the_same_as_looking_back(choices: dict[int, dict[str, Any]]) -> None:
    specs = {}
    for chunk, choice in choices.items():
        specs[chunk] = {key: value for key, value in choice.items() if key == "text"}
        if "transition" in choice:
            target, steps = choice["transition"]
            specs[chunk] |= {"transition_target_prompts": [{"text": target}], "transition_num_steps": steps}
    for chunk, found in enumerate(walk(24, specs)):
        # The last chunk that set anything decides.
        setters = [earlier for earlier in range(chunk + 1) if choices.get(earlier)]
        if not setters:
            assert texts([found]) == ["a"]
            continue
        last = setters[-1]
        target, steps = choices[last].get("transition", (None, 0))
        age = chunk - last
        if target is not None and (age == 0 or age < steps):
            assert found.transition is not None
            assert (found.transition.step, found.transition.num_steps) == (age, steps)
            assert found.target == (Prompt(target),)
        else:
            assert found.transition is None
            assert found.prompts == (Prompt(target or choices[last]["text"]),)
