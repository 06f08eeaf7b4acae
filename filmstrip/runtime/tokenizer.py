"""Prompts to the token ids that a text encoder takes."""

import html
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as TokenizerFile

from filmstrip.errors import LoadFailed

Ids = npt.NDArray[np.int64]

PADDING = "<pad>"
END = "</s>"

_MAX_REFERENCE_DIGITS = 7  # of the largest code point, 1114111
_DECIMAL_REFERENCE = re.compile(r"&#([0-9]+)")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Tokenizer:
    """A `tokenizer.json` in Hugging Face's form, whose prompts all get one length.

    Args:
        folder: the model's, which has the `tokenizer.json`.
        text_len: tokens of a prompt, the end and the padding included.

    Raises:
        LoadFailed: there is none, it can't be read, or it lacks `<pad>` or does not end a prompt with `</s>`.
    """

    def __init__(self, folder: Path, text_len: int) -> None:
        try:
            self._file = TokenizerFile.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise LoadFailed(f"tokenizer.json can't be read: {error}") from error
        padding = self._file.token_to_id(PADDING)
        if padding is None:
            raise LoadFailed(f"tokenizer.json has no token {PADDING}")
        # Both replace what the file says of them.
        self._file.enable_padding(length=text_len, pad_id=padding, pad_token=PADDING)
        self._file.enable_truncation(text_len)
        if self._file.encode("").tokens[:1] != [END]:
            raise LoadFailed(f"tokenizer.json must end each prompt with {END}, by its post-processor")

    def __call__(self, prompt: str) -> tuple[Ids, Ids]:
        """Token ids and mask of a prompt, each [1, text_len]; the mask is 1 at a token, 0 at padding.

        A prompt that is too long loses its last tokens, never its end.
        """
        encoding = self._file.encode(clean(prompt))
        return np.array([encoding.ids], np.int64), np.array([encoding.attention_mask], np.int64)


def clean(prompt: str) -> str:
    """A prompt as Wan cleans it: HTML's entities become characters, twice over, runs of whitespace one space.

    Wan's own code then has ftfy mend text that was decoded wrongly and straighten curly quotes. That is not done here:
    prompts arrive as UTF-8, and their quotes are as the writer wants them.
    """
    text = _SURROGATE.sub("\ufffd", _unescape(_unescape(prompt)))  # half a character can't be encoded
    return " ".join(text.split())


def _unescape(text: str) -> str:
    """`html.unescape` for references of any length: `int` refuses more than 4,300 digits."""
    return html.unescape(_DECIMAL_REFERENCE.sub(_shortened, text))


def _shortened(reference: re.Match[str]) -> str:
    """The same reference without leading zeros; a digit too many keeps it outside Unicode."""
    return "&#" + (reference[1].lstrip("0") or "0")[: _MAX_REFERENCE_DIGITS + 1]
