"""Types of the options of `python -m export` and `python -m export.memory`."""

import re
from pathlib import Path
from typing import Any

import click

from export.spec import Size


class SizeType(click.ParamType[Size]):
    """The type of options that take WIDTHxHEIGHT in pixels."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """Parse the text of an option."""
        match = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", value)
        if match is None:
            self.fail(f"{value!r} is not a size: write WIDTHxHEIGHT in pixels, such as 576x320", param, ctx)
        return Size(width=int(match[1]), height=int(match[2]))


class LoraType(click.ParamType[tuple[str, Path]]):
    """The type of options that take NAME=FILE."""

    name = "NAME=FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        """Parse the text of an option."""
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            self.fail(f"{value!r} is not a LoRA: write a name and its file, such as ink=ink.safetensors", param, ctx)
        if not Path(path).is_file():
            self.fail(f"there is no file {path}", param, ctx)
        return name, Path(path)
