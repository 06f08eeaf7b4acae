"""The same API without our client: httpx, and events read line by line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from docs.examples.show import PIPELINE, save, seen

PROMPT = "a yellow square moving down on a purple background"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", default="http://127.0.0.1:8000", show_default=True, help="URL of a running server.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out/examples", show_default=True)
def main(server: str, out: Path) -> None:
    """A video from a sentence with nothing but an HTTP library: a post, its events, a download."""
    out.mkdir(parents=True, exist_ok=True)
    request = {"pipeline_id": PIPELINE, "prompt": PROMPT, "num_frames": 45, "seed": 1}
    # A chunk may take long, and so may the wait for the next event.
    with httpx.Client(base_url=server, timeout=120) as http:
        with http.stream("POST", "/api/v1/generate", json=request) as response:
            if response.is_error:
                response.read()
                raise click.ClickException(response.json()["error"]["message"])
            for name, data in events(response.iter_lines()):
                click.echo(f"{name}: {data}")
        if name != "complete":
            raise click.ClickException("the generation ended without a video")
        body = http.get("/api/v1/generate/download", params={"path": data["output_path"]}).raise_for_status().content
    ndim, *shape = np.frombuffer(body[:20], "<u4").tolist()  # the header: 4, then T, H, W, C
    assert ndim == len(shape)
    video = np.frombuffer(body[20:], np.uint8).reshape(shape)
    click.echo(f"asked for: {PROMPT}\nlast chunk shows: {seen(video[-12:])}")
    save(out / "plain_http", {"": video})


def events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events: names and data, by the letter of the format as this server writes it."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue  # a comment that keeps the connection alive
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif fields:
            yield fields["event"], json.loads(fields["data"])
            fields = {}


if __name__ == "__main__":
    main()
