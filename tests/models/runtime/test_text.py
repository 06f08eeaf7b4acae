"""Prompts to token ids, embeddings and blends, as the frontend's plan moves them from chunk to chunk."""

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import Tokenizer as TokenizerFile
from tokenizers import models, pre_tokenizers, processors

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.contract import ChunkParameters, Interpolation
from filmstrip.errors import LoadFailed
from filmstrip.runtime.text import PromptBlend, Tokenizer, blend, clean, prompt_encoder
from frontend.plan import StickyPrompts
from frontend.schema import ChunkSpec, GenerateRequest, options_for

# -- Tokens --------------------------------------------------------------------------------------------------

TEXT_LEN = 6
WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "walks", "in", "the", "rain"]
PIECES = [*WORDS[:3], "▁a", "▁cat", "▁walk", "s", "▁", "in", "▁the", "ra"]
PROMPTS = [
    "a cat",
    "",
    "  a\tcat \n",
    "a cat walks in the rain",  # six words and the end
    "the cats walk in the rain in the rain",
    "zebra &amp;amp; \u00e9 \u00fc \U0001f600",
]


def word_level(folder: Path, *, words: list[str] = WORDS, end: bool = True) -> Path:
    """A tokenizer with a number for each word, the kind that a small model is trained with."""
    made = TokenizerFile(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    return folder


def t5(folder: Path) -> Path:
    """A tokenizer of word pieces, of UMT5's kind."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: see docs/export.md")
    scores = [(piece, -float(number)) for number, piece in enumerate(PIECES)]
    transformers.T5Tokenizer(vocab=scores, extra_ids=2).save_pretrained(folder)
    return folder


def test_tokens_are_those_of_transformers(tmp_path: Path, subtests: pytest.Subtests):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: see docs/export.md")
    for make in (word_level, t5):
        for prompt in PROMPTS:
            for text_len in (1, TEXT_LEN, 20):
                with subtests.test(prompt=prompt, text_len=text_len, tokenizer=make.__name__):
                    ids, mask = Tokenizer(make(tmp_path), text_len)(prompt)
                    theirs = transformers.PreTrainedTokenizerFast(
                        tokenizer_file=str(tmp_path / "tokenizer.json"),
                        pad_token="<pad>",
                        eos_token="</s>",
                        unk_token="<unk>",
                    )
                    expected = theirs(clean(prompt), padding="max_length", truncation=True, max_length=text_len)
                    assert (ids.tolist(), mask.tolist()) == ([expected["input_ids"]], [expected["attention_mask"]])
                    assert (ids.dtype, mask.dtype) == ("int64", "int64")
                    assert ids[0, mask.sum() - 1] == 1  # the end


def test_words_get_their_ids(tmp_path: Path, subtests: pytest.Subtests):
    for prompt, ids, num_tokens in [
        ("the cat walks", [7, 4, 5, 1, 0, 0], 4),
        ("the zebra walks", [7, 2, 5, 1, 0, 0], 4),
        ("a cat walks in the rain", [3, 4, 5, 6, 7, 1], 6),
        ("", [1, 0, 0, 0, 0, 0], 1),
    ]:
        with subtests.test(prompt):
            got, mask = Tokenizer(word_level(tmp_path), TEXT_LEN)(prompt)
            assert got.tolist() == [ids]
            assert mask.tolist() == [[1] * num_tokens + [0] * (TEXT_LEN - num_tokens)]


def test_the_files_own_length_and_padding_are_replaced(tmp_path: Path):
    file = TokenizerFile.from_file(str(word_level(tmp_path) / "tokenizer.json"))
    file.enable_padding(length=9, direction="left", pad_id=2, pad_token="<unk>")
    file.enable_truncation(3, direction="left")
    file.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path, TEXT_LEN)("a cat walks")[0].tolist() == [[3, 4, 5, 1, 0, 0]]


CLEANED = [
    ("  a \t cat\n\nwalks\u3000in ", "a cat walks in"),
    ("salt &amp;amp; pepper&nbsp;&lt;3", "salt & pepper <3"),
    ("&amp;amp;amp; stays escaped once", "&amp; stays escaped once"),
    ("\u201ccurly\u201d stays, so does \u00c3\u00a9", "\u201ccurly\u201d stays, so does \u00c3\u00a9"),
    ("", ""),
]


def test_prompts_are_cleaned(subtests: pytest.Subtests):
    for prompt, cleaned in CLEANED:
        with subtests.test(prompt=prompt):
            assert clean(prompt) == cleaned


def test_the_models_tokens_are_those_of_the_clean_prompt(tmp_path: Path):
    tokenizer = Tokenizer(word_level(tmp_path), TEXT_LEN)
    assert tokenizer("a&nbsp;&#99;at ")[0].tolist() == tokenizer("a cat")[0].tolist() == [[3, 4, 1, 0, 0, 0]]


def test_a_file_that_does_not_serve_is_refused(tmp_path: Path):
    with pytest.raises(LoadFailed, match=r"tokenizer\.json can't be read"):
        Tokenizer(tmp_path, TEXT_LEN)
    word_level(tmp_path, end=False)
    with pytest.raises(LoadFailed, match="must end each prompt with </s>"):
        Tokenizer(tmp_path, TEXT_LEN)
    word_level(tmp_path, words=["<nothing>", *WORDS[1:]])
    with pytest.raises(LoadFailed, match="has no token <pad>"):
        Tokenizer(tmp_path, TEXT_LEN)


CHARACTER_REFERENCES = [
    ("&#" + 100_000 * "9" + ";", "\ufffd"),
    ("&#" + 5000 * "0" + "65;x", "Ax"),
    ("&#" + 99_990 * "0" + ";", "\ufffd"),
    ("&#38;#" + 5000 * "1" + " x", "\ufffd x"),
    ("&#x" + 100_000 * "f" + ";", "\ufffd"),
    ("&#1114111;&#1114112;", "\ufffd"),
    ("&#\u0661;&#;&#x;&", "&#\u0661;&#;&#x;&"),
    ("a\0b \ud800 &#xd800;", "a\0b \ufffd \ufffd"),
]


def test_references_of_any_length_become_characters(tmp_path: Path, subtests: pytest.Subtests):
    for prompt, cleaned in CHARACTER_REFERENCES:
        with subtests.test(prompt=prompt[:40]):
            assert clean(prompt) == cleaned
            assert Tokenizer(word_level(tmp_path), TEXT_LEN)(prompt)[0].shape == (1, TEXT_LEN)


SIGNS = ["&#", "&", "#", "x", ";", "&amp;", "&#38;", "&#0;", "&#x80;", "0" * 5000, "9" * 5000]
PIECES_OF_TEXT = st.sampled_from([*SIGNS, "\ud83d", "\udc00", "\0", "\u202e"]) | st.text(
    st.characters(exclude_categories=())
)


@given(st.lists(PIECES_OF_TEXT, max_size=20).map("".join))
def test_any_text_has_tokens(tmp_path_factory: pytest.TempPathFactory, prompt: str):
    folder = tmp_path_factory.getbasetemp() / "tokenizer"
    if not folder.exists():
        folder.mkdir()
        word_level(folder)
    assert Tokenizer(folder, TEXT_LEN)(prompt)[0].shape == (1, TEXT_LEN)
    if "000" not in prompt and "999" not in prompt and not any("\ud800" <= letter <= "\udfff" for letter in prompt):
        assert clean(prompt) == " ".join(html.unescape(html.unescape(prompt)).split())


LINEAR, SLERP = Interpolation.LINEAR, Interpolation.SLERP
HALF = math.sqrt(0.5)


# -- Embeddings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "weights", "expected"),
    [
        # Two embeddings of one token: their sum has norm 2.5, their norms a mean of 3.5.
        ([[[3, 0]], [[0, 4]]], [1, 1], [[2.1, 2.8]]),
        ([[[3, 0]], [[0, 4]]], [50, 50], [[2.1, 2.8]]),
        ([[[3, 0]], [[0, 4]]], [0, 7], [[0, 4]]),
        # (1.5, 0) and (0, 1) from weights 1 and 1/4 of (3, 0) and (0, 4): the norm is that of all tokens.
        ([[[3, 0], [0, 0]], [[0, 0], [0, 4]]], [1, 1], [[2.1, 0], [0, 2.8]]),
        ([[[2, 0]], [[4, 0]], [[6, 0]]], [1, 1, 2], [[4.5, 0]]),
        ([[[1, 0]], [[-1, 0]]], [1, 1], [[0, 0]]),
        ([[[0, 0]], [[0, 0]]], [1, 1], [[0, 0]]),
        ([[[5, 7]]], [3], [[5, 7]]),
    ],
)
def test_a_linear_blend_has_the_mean_of_the_norms(tokens: list, weights: list[float], expected: list):
    made = blend([torch.tensor(one, dtype=torch.float32) for one in tokens], weights, LINEAR)
    torch.testing.assert_close(made, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("start", "end", "share", "expected"),
    [
        ([1, 0], [0, 1], 1 / 2, [HALF, HALF]),
        ([1, 0], [0, 1], 1 / 3, [math.cos(math.pi / 6), math.sin(math.pi / 6)]),
        ([2, 0], [0, 6], 1 / 2, [2 * HALF, 6 * HALF]),  # a right angle: each with sin 45 / sin 90
        ([1, 0], [-0.5, math.sqrt(3) / 2], 1 / 2, [0.5, math.sqrt(3) / 2]),  # half of 120 degrees
        ([2, 2], [4, 4], 1 / 4, [2.5, 2.5]),  # parallel
        ([1, 0], [3, 1e-5], 1 / 2, [2, 5e-6]),  # nearly parallel
        ([1, 0], [-3, 0], 1 / 4, [0, 0]),  # opposite: no plane to turn in
        ([100, 0.5], [-1, 0], 1 / 2, [49.5, 0.25]),  # nearly opposite: turned, it would be 20,000 long
        ([0, 0], [0, 4], 1 / 4, [0, 1]),  # the one prompt is longer than the other
        ([8, 0], [0, 0], 1 / 4, [6, 0]),
        ([0, 0], [0, 0], 1 / 2, [0, 0]),
    ],
)
def test_slerp_turns_each_token(start: list[float], end: list[float], share: float, expected: list[float]):
    others = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    first, second = (
        torch.cat([torch.tensor([token], dtype=torch.float32), other]).unsqueeze(0)
        for token, other in zip((start, end), others, strict=True)
    )
    made = blend([first, second], [1 - share, share], SLERP)
    torch.testing.assert_close(made[0, 0], torch.tensor(expected, dtype=torch.float32))
    turned = [math.sin(share * math.pi / 2), math.cos(share * math.pi / 2)]
    torch.testing.assert_close(made[0, 1:], torch.tensor([turned, [0.0, 0.0]]))


def test_slerp_of_other_than_two_is_linear():
    three = list(torch.randn(3, 1, 4, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(blend(three, [1, 2, 3], SLERP), blend(three, [1, 2, 3], LINEAR))
    assert not torch.equal(blend(three[:2], [1, 2], SLERP), blend(three[:2], [1, 2], LINEAR))


tokens = arrays(np.float64, (2, 3, 4), elements=st.sampled_from([0.0, 0.0, 1e-20, 1e-3, -0.5, 1.0, -7.0, 100.0]))


@given(tokens, st.floats(0, 1), st.sampled_from([LINEAR, SLERP]))
def test_a_blend_has_numbers_only_and_keeps_its_size(pair: np.ndarray, share: float, method: Interpolation):
    start, end = torch.tensor(pair, dtype=torch.float32)
    made = blend([start, end], [1 - share, share], method)
    assert made.isfinite().all()
    longest = max(float(start.norm()), float(end.norm()))
    assert float(made.norm()) <= 2 * longest / (1 if method is LINEAR else 0.03) * (1 + 1e-5)
    mirrored = blend([end, start], [share, 1 - share], method)
    torch.testing.assert_close(made, mirrored, rtol=1e-4, atol=1e-4 * longest)


@given(tokens, st.sampled_from([LINEAR, SLERP]))
def test_the_ends_of_a_blend_are_its_embeddings(pair: np.ndarray, method: Interpolation):
    start, end = torch.tensor(pair, dtype=torch.float32)
    torch.testing.assert_close(blend([start, end], [1, 0], method), start)
    torch.testing.assert_close(blend([start, end], [0, 1], method), end)


@pytest.mark.parametrize("method", [LINEAR, SLERP])
def test_a_blend_in_16_bit_is_computed_in_32(method: Interpolation):
    pair = [one.bfloat16() for one in torch.randn(2, 1, 8, 64, generator=torch.Generator().manual_seed(0))]
    made = blend(pair, [1, 2], method)
    assert torch.equal(made, blend([one.float() for one in pair], [1, 2], method).bfloat16())


# -- Chunk by chunk -------------------------------------------------------------------------------------------


class Encoder:
    """Texts become fixed random embeddings with zeros at their end; it counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str) -> "torch.Tensor":
        self.asked.append(text)
        return embedding_of(text)


class Blends:
    """A sequence's blends, and the encoder that they ask."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        self.prompts = PromptBlend(self.encoder)


class TextEncoder:
    """An engine that counts its runs; it encodes only a prompt's own tokens."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.runs = 0

    def dtype(self, name: str) -> "torch.dtype":
        return {"ids": torch.int64, "embeddings": torch.float32}[name]

    def run(self, inputs: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
        self.runs += 1
        return {"embeddings": inputs["ids"].float().unsqueeze(-1).expand(-1, -1, 2)}


def tokens_of(text: str) -> tuple[np.ndarray, np.ndarray]:
    """A letter and the end, padded to 5."""
    return np.array([[ord(text), 1, 0, 0, 0]]), np.array([[1, 1, 0, 0, 0]])


def embedding_of(text: str) -> "torch.Tensor":
    seed = sum(map(ord, text))
    made = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))
    made[:, 2 + seed % 3 :] = 0
    return made


def told(num_chunks: int, specs: Mapping[int, Mapping[str, Any]], **fields: Any) -> list[ChunkParameters]:
    """What the frontend's plan tells the model of the prompts."""
    listed = [{"chunk": chunk, **spec} for chunk, spec in specs.items()]
    request = GenerateRequest.model_validate({"pipeline_id": "p", "prompt": "a", "chunk_specs": listed, **fields})
    by_chunk = {spec.chunk: spec for spec in request.chunk_specs or ()}
    sticky = StickyPrompts(request)
    chunks = []
    for index in range(num_chunks):
        spec = by_chunk.get(index, ChunkSpec(chunk=index))
        now = sticky.next_chunk(spec)
        chunks.append(
            ChunkParameters(
                index=index,
                num_frames=12,
                height=64,
                width=64,
                prompts=now.prompts,
                prompt_interpolation_method=options_for(request, spec).prompt_interpolation_method,
                transition=now.transition,
            )
        )
    return chunks


def mix(start: Any, end: Any, share: float) -> "torch.Tensor":
    """A share of the way from a text or embedding to another one."""
    start, end = (embedding_of(one) if isinstance(one, str) else one for one in (start, end))
    mixed = (1 - share) * start + share * end
    return mixed * ((1 - share) * start.norm() + share * end.norm()) / mixed.norm()


def way(start: Any, end: Any, num_steps: int, count: int | None = None) -> list["torch.Tensor"]:
    """The embeddings of a transition's first chunks."""
    return [mix(start, end, float(share)) for share in torch.linspace(0, 1, num_steps, dtype=torch.float64)][:count]


def to(target: str, num_steps: int | None = None, **fields: Any) -> dict[str, Any]:
    return {"transition_target_prompts": [{"text": target}], "transition_num_steps": num_steps, **fields}


TRANSITIONS = {
    "no transition": ({}, ["a"] * 3),
    "a new text": ({1: {"text": "b"}}, ["a", "b", "b"]),
    "a blend": ({1: {"prompts": [{"text": "b", "weight": 3}, {"text": "c", "weight": 1}]}}, ["a", mix("b", "c", 0.25)]),
    "0 steps snap": ({1: to("b", 0)}, ["a", "b", "b"]),
    "1 step is the target at once": ({1: to("b", 1)}, ["a", "b", "b"]),
    "2 steps are both ends": ({1: to("b", 2)}, ["a", "a", "b", "b"]),
    "4 steps, and the target persists": ({1: to("b", 4)}, ["a", *way("a", "b", 4), "b", "b"]),
    "4 steps unless it says": ({0: to("b")}, [*way("a", "b", 4), "b"]),
    "a text in the same spec": ({1: to("b", 3, text="c")}, ["a", *way("c", "b", 3), "b"]),
    "a text in the same spec, at once": ({1: to("b", 0, text="c")}, ["a", "b", "b"]),
    "a new text cancels": ({0: to("b", 4), 2: {"text": "c"}}, [*way("a", "b", 4, 2), "c", "c", "c"]),
    "the old text cancels": ({0: to("b", 4), 2: {"text": "a"}}, [*way("a", "b", 4, 2), "a", "a", "a"]),
    "to a blend": (
        {0: {"transition_target_prompts": [{"text": "b"}, {"text": "c"}], "transition_num_steps": 3}},
        [*way("a", mix("b", "c", 0.5), 3), mix("b", "c", 0.5)],
    ),
    "one after another": (
        {0: to("b", 3), 3: to("c", 3)},
        [*way("a", "b", 3), *way("b", "c", 3), "c"],
    ),
    "one cuts another short": (
        {0: to("b", 4), 2: to("c", 3)},
        [*way("a", "b", 4, 2), *way(mix("a", "b", 1 / 3), "c", 3), "c"],
    ),
    "one cuts a short one short": (
        {0: to("b", 4), 2: to("c", 4), 4: to("d", 2)},
        [*way("a", "b", 4, 2), *(cut := way(mix("a", "b", 1 / 3), "c", 4, 2)), cut[-1], "d", "d"],
    ),
    "a snap in the midst": ({0: to("b", 4), 2: to("c", 0), 3: to("d", 2)}, [*way("a", "b", 4, 2), "c", "c", "d", "d"]),
    "a text and target in the midst": (
        {0: to("b", 4), 2: to("d", 3, text="c")},
        [*way("a", "b", 4, 2), *way("c", "d", 3), "d"],
    ),
    "one cuts the last chunk of another": (
        {0: to("b", 4), 3: to("c", 3)},
        [*way("a", "b", 4, 3), *way(mix("a", "b", 2 / 3), "c", 3), "c"],
    ),
}


def test_the_embedding_of_each_chunk(subtests: pytest.Subtests):
    for specs, expected in TRANSITIONS.values():
        with subtests.test(specs=specs, expected=expected):
            prompts = PromptBlend(embedding_of)
            last = None
            for parameters, wanted in zip(told(len(expected), specs), expected, strict=True):
                made, changed = prompts.embedding(parameters)
                torch.testing.assert_close(made, embedding_of(wanted) if isinstance(wanted, str) else wanted)
                assert changed == (last is None or not torch.equal(made, last))
                last = made


def run(
    chunks: list[ChunkParameters], blends: Blends | None = None
) -> tuple[list["torch.Tensor"], list[bool], list[list[str]]]:
    """Embeddings, whether each changed, and the texts that each had encoded."""
    blends = blends or Blends()
    made, changed, asked = [], [], []
    for parameters in chunks:
        blends.encoder.asked = []
        embedding, differs = blends.prompts.embedding(parameters)
        made.append(embedding)
        changed.append(differs)
        asked.append(blends.encoder.asked)
    return made, changed, asked


def test_a_blend_is_computed_once_from_texts_with_a_weight():
    specs = {1: to("b", 3), 5: {"text": "a"}, 6: {"prompts": [{"text": "c", "weight": 0}, {"text": "d"}]}}
    _, changed, asked = run(told(8, specs))
    assert asked == [["a"], [], ["b"], [], [], [], ["d"], []]
    assert changed == [True, False, True, True, False, True, True, False]


def test_a_blend_of_many_texts_is_computed_once():
    many = [{"text": str(index)} for index in range(5)]
    _, changed, asked = run(told(3, {}, prompt=many))
    assert asked == [["0", "1", "2", "3", "4"], [], []]
    assert changed == [True, False, False]


def test_the_blends_used_last_are_kept():
    texts = "abcdaeb"  # four are kept
    _, _, asked = run(told(7, {index: {"text": text} for index, text in enumerate(texts)}))
    assert asked == [["a"], ["b"], ["c"], ["d"], [], ["e"], ["b"]]


@pytest.mark.parametrize("max_encoded", [2, 16])
def test_the_embeddings_used_last_are_kept_for_all_sequences(max_encoded: int):
    engine = TextEncoder()
    encode = prompt_encoder(tokens_of, engine, torch.device("cpu"), max_encoded)
    made = [encode(text) for text in ("a", "b", "a", "c", "a", "b")]
    assert engine.runs == (4 if max_encoded == 2 else 3)
    assert made[0] is made[2] is made[4]
    assert made[0].shape == (1, 5, 2)
    assert not made[0][:, 2:].any()


def test_the_same_embedding_from_other_prompts_changes_nothing():
    specs = {1: {"prompts": [{"text": "a", "weight": 7}]}, 2: {"prompts": [{"text": "a"}, {"text": "b", "weight": 0}]}}
    assert run(told(3, specs))[1] == [True, False, False]


@pytest.mark.parametrize(("texts", "expected"), [("bc", SLERP), ("bcd", LINEAR)])
def test_prompts_are_blended_by_the_chunks_method(texts: str, expected: Interpolation):
    listed = [{"text": text, "weight": 2} for text in texts]
    made, changed, _ = run(told(3, {1: {"prompt_interpolation_method": "slerp"}}, prompt=listed))
    embeddings = [embedding_of(text) for text in texts]
    for embedding, method in zip(made, (LINEAR, expected, LINEAR), strict=True):
        torch.testing.assert_close(embedding, blend(embeddings, [1] * len(texts), method))
    assert changed == [True, expected is SLERP, expected is SLERP]


def test_a_prompt_without_weight_does_not_make_the_others_a_pair():
    three = [{"text": "a"}, {"text": "b"}, {"text": "c", "weight": 0}]
    made = run(told(1, {}, prompt=three, prompt_interpolation_method="slerp"))[0]
    torch.testing.assert_close(made[0], mix("a", "b", 0.5))


def test_a_transition_turns_by_its_own_method():
    made = run(told(4, {0: to("b", 4, transition_method="slerp")}))[0]
    for embedding, share in zip(made, (0, 1 / 3, 2 / 3, 1), strict=True):
        wanted = blend([embedding_of("a"), embedding_of("b")], [1 - share, share], SLERP)
        torch.testing.assert_close(embedding, wanted)


def test_a_reset_in_the_midst_of_a_transition_goes_on_from_the_prompts():
    blends = Blends()
    chunks = told(6, {0: to("b", 4), 1: to("c", 4)})
    cut_short = run(chunks[:3], blends)[0]
    blends.prompts.clear()
    made, changed, asked = run(chunks[3:], blends)
    torch.testing.assert_close(cut_short[2], mix("a", "c", 1 / 3))
    for embedding, wanted in zip(made, [*way("a", "c", 4)[2:], embedding_of("c")], strict=True):
        torch.testing.assert_close(embedding, wanted)
    assert changed == [True, True, False]
    assert asked == [[], [], []]


def test_a_transition_that_begins_at_a_reset_begins_at_the_prompts():
    blends = Blends()
    chunks = told(4, {0: to("b", 4), 2: to("c", 2)})
    run(chunks[:2], blends)
    blends.prompts.clear()
    made, changed, _ = run(chunks[2:], blends)
    torch.testing.assert_close(made[0], embedding_of("a"))
    assert changed == [True, True]
