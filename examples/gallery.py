"""Runs every example and writes the last section of README.md: what each has printed, and its contact sheet."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

HEADING = "## What they make"
_FOLDER = Path(__file__).resolve().parent
_ROOT = _FOLDER.parent
_CURVES = "curves"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", default="http://127.0.0.1:8000", show_default=True, help="URL of a running server.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=_FOLDER,
    help="Of README.md and its images.  [default: this one]",
)
@click.option(
    "--only",
    multiple=True,
    help="These; what others have made stays.  [default: all of the table, and the curves]",
)
def main(server: str, folder: Path, only: tuple[str, ...]) -> None:
    """Run every example and write what it makes into README.md and its images."""
    readme = folder / "README.md"
    text, found, old = readme.read_text().partition(f"{HEADING}\n")
    if not found:
        raise click.ClickException(f"{readme} has no {HEADING!r}")
    images = folder / "images"
    images.mkdir(exist_ok=True)
    names = only or (*re.findall(r"^\|[^|]+\| `\S+ -m examples\.(\w+)` \|", text, re.MULTILINE), _CURVES)
    sections = {} if not only else dict(_sections(old))
    with tempfile.TemporaryDirectory() as made:
        for name in names:
            printed = _run(name, server, made)
            pictures = sorted(path for path in Path(made).iterdir() if path.suffix in {".png", ".svg"})
            for picture in pictures:
                shutil.move(picture, images / picture.name)
            sections[_title(name)] = _section(name, printed, [picture.name for picture in pictures])
    readme.write_text("\n".join([text + found, *sections.values()]))


def _run(name: str, server: str, out: str) -> list[str]:
    """What an example prints, without the files that it names last."""
    click.echo(name)
    command = [sys.executable, "-m", f"examples.{name}", "--server", server, "--out", out]
    done = subprocess.run(command, cwd=_ROOT, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode != 0:
        raise click.ClickException(f"{name}: {done.stderr}")
    return [line for line in done.stdout.splitlines() if out not in line]


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Those that are there, by their titles."""
    for section in re.split(r"^(?=### )", text, flags=re.MULTILINE)[1:]:
        yield section.splitlines()[0].removeprefix("### "), section.rstrip("\n") + "\n"


def _section(name: str, printed: list[str], pictures: list[str]) -> str:
    title = _title(name)
    shown = [f"![{title}](images/{picture})" for picture in pictures]
    return "\n".join([f"### {title}", "", *shown, "", "```text", *printed, "```", ""])


if __name__ == "__main__":
    main()
