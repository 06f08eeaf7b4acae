"""Prompts to token ids: what transformers makes of the same file, with one length and the end kept."""

import html
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as TokenizerFile
from tokenizers import models, pre_tokenizers, processors

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.errors import LoadFailed
from filmstrip.runtime.text import Tokenizer, clean

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


@pytest.mark.parametrize("make", [word_level, t5])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("text_len", [1, TEXT_LEN, 20])
def test_it_is_what_transformers_makes_of_the_file(tmp_path: Path, make, prompt: str, text_len: int):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: see docs/export.md")
    ids, mask = Tokenizer(make(tmp_path), text_len)(prompt)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    expected = theirs(clean(prompt), padding="max_length", truncation=True, max_length=text_len)
    assert (ids.tolist(), mask.tolist()) == ([expected["input_ids"]], [expected["attention_mask"]])
    assert (ids.dtype, mask.dtype) == ("int64", "int64")
    assert ids[0, mask.sum() - 1] == 1  # the end


@pytest.mark.parametrize(
    ("prompt", "ids", "num_tokens"),
    [
        ("the cat walks", [7, 4, 5, 1, 0, 0], 4),
        ("the zebra walks", [7, 2, 5, 1, 0, 0], 4),
        ("a cat walks in the rain", [3, 4, 5, 6, 7, 1], 6),
        ("", [1, 0, 0, 0, 0, 0], 1),
    ],
)
def test_words_get_their_numbers(tmp_path: Path, prompt: str, ids: list[int], num_tokens: int):
    got, mask = Tokenizer(word_level(tmp_path), TEXT_LEN)(prompt)
    assert got.tolist() == [ids]
    assert mask.tolist() == [[1] * num_tokens + [0] * (TEXT_LEN - num_tokens)]


def test_the_files_own_length_and_padding_are_replaced(tmp_path: Path):
    file = TokenizerFile.from_file(str(word_level(tmp_path) / "tokenizer.json"))
    file.enable_padding(length=9, direction="left", pad_id=2, pad_token="<unk>")
    file.enable_truncation(3, direction="left")
    file.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path, TEXT_LEN)("a cat walks")[0].tolist() == [[3, 4, 5, 1, 0, 0]]


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a \t cat\n\nwalks\u3000in ", "a cat walks in"),
        ("salt &amp;amp; pepper&nbsp;&lt;3", "salt & pepper <3"),
        ("&amp;amp;amp; stays escaped once", "&amp; stays escaped once"),
        ("\u201ccurly\u201d stays, so does \u00c3\u00a9", "\u201ccurly\u201d stays, so does \u00c3\u00a9"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(prompt: str, cleaned: str):
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


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("&#" + 100_000 * "9" + ";", "\ufffd"),
        ("&#" + 5000 * "0" + "65;x", "Ax"),
        ("&#" + 99_990 * "0" + ";", "\ufffd"),
        ("&#38;#" + 5000 * "1" + " x", "\ufffd x"),
        ("&#x" + 100_000 * "f" + ";", "\ufffd"),
        ("&#1114111;&#1114112;", "\ufffd"),
        ("&#\u0661;&#;&#x;&", "&#\u0661;&#;&#x;&"),
        ("a\0b \ud800 &#xd800;", "a\0b \ufffd \ufffd"),
    ],
)
def test_references_of_any_length_become_characters(tmp_path: Path, prompt: str, cleaned: str):
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
