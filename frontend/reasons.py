"""Why a model is not served, in one sentence for clients, made of what Triton says."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_LONGEST = 500  # letters
DIED_AT_START = "its process ended while it started; is there enough memory? Triton's log may say more"
_NO_REASON = "Triton does not say why; its log may"

_LOAD_PREFIX = re.compile(r"^load failed for model '[^']*': (version \d+ is at \w+ state: )?")
_STATUS_PREFIX = re.compile(
    r"^(Internal|Invalid argument|Not found|Unavailable|Unsupported|Unknown|Already exists|Cancelled): "
)
_PLAIN_ERROR = re.compile(r"^(?:[\w.]+\.)?(?:TritonModelException|ValueError|RuntimeError|LoadFailed): ")
_QUOTED_FOLDERS = re.compile(r"(?P<quote>['\"`])(?:[Ff][Ii][Ll][Ee]:)?(?:~[\w.-]*)?/(?:(?!(?P=quote))[^\n])*/")
_FOLDERS = re.compile(
    r"(?:\b[Ff][Ii][Ll][Ee]:/+|(?<![\w./:])/{2,}|(?<![\w./])(?:/{3,}|(?:~[\w-]*)?/))(?=[^\s/])"
    # A name may have a colon or an apostrophe, but not at its end: there they belong to the sentence.
    r"(?:(?:[^/\n:'\"]|:(?=[^\s/])|(?<=\w)'(?=\w))*[^/\s:'\"]/+)*"
)
_NOT_OURS = (
    (re.compile(r"Stub process '[^']*' is not healthy"), DIED_AT_START),
    (re.compile(r"failed to poll from model repository"), "Triton cannot read its model folder; Triton's log says why"),
    (
        re.compile(r"at least one version must be available"),
        "its model folder has no version folder, which is named by a number, such as 1",
    ),
    (re.compile(r"Python model file not found"), "its version folder has no model.py"),
    (re.compile(r"DEADLINE_EXCEEDED|Deadline Exceeded"), "it did not start in time"),
)


def sentence(text: str, folders: Iterable[Path] = ()) -> str:
    """The useful sentence of what Triton says of a model, on one line, without tracebacks and paths of folders.

    Args:
        text: what Triton says.
        folders: known to appear in it. Only these are recognised whatever characters their names have.
    """
    for pattern, ours in _NOT_OURS:
        if pattern.search(text):
            return ours
    text = _STATUS_PREFIX.sub("", _LOAD_PREFIX.sub("", text.strip()))
    text = text.partition("\n\nAt:\n")[0]
    if "Traceback (most recent call last)" in text:
        text = text.rstrip().splitlines()[-1]
    text = without_folders(_PLAIN_ERROR.sub("", text), folders)
    text = " ".join(text.split()).rstrip(";. ")
    return text[: _LONGEST - 1] + "…" if len(text) > _LONGEST else text or _NO_REASON


def without_folders(text: str, folders: Iterable[Path] = ()) -> str:
    """The text with only the last name of each absolute path or file URL.

    Args:
        text: to shorten.
        folders: known to appear in it, besides the home directory and those of Python.
    """
    home = Path(os.path.expanduser("~"))
    known = {Path(sys.prefix), Path(sys.base_prefix), home, *(folder.absolute() for folder in folders)}
    names = {str(folder) for folder in known | {folder.resolve() for folder in known}}
    for name in sorted(names, key=len, reverse=True):
        if name != "/":
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?=/)", "", text)
    return _FOLDERS.sub("", _QUOTED_FOLDERS.sub(r"\g<quote>", text))
