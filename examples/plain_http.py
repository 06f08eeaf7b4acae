"""The same API without our client: httpx, and events read line by line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from examples.show import PIPELINE, save, seen
from filmstrip.wire import Video

PROMPT = "a yellow square moving down on a purple background"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", default="http://127.0.0.1:8000", show_default=True, help="URL of a running server.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out/examples", show_default=True)
def main(server: str, out: Path) -> None:
    """A video from a sentence with nothing but an HTTP library: a post, its events, a download."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        # The server writes a comment now and then while a chunk takes long. A proxy for the internet can't reach it.
        with httpx.Client(base_url=server, timeout=60, trust_env=False) as http:
            video = generate(http, {"pipeline_id": PIPELINE, "prompt": PROMPT, "num_frames": 45, "seed": 1})
    except httpx.HTTPError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"asked for: {PROMPT}\nlast chunk shows: {seen(video[-12:])}")
    save(out / "plain_http", {"": video})


def generate(http: httpx.Client, request: dict[str, Any]) -> Video:
    """Post a request, print its events, and download the video that they end with, uint8 [T, H, W, C]."""
    name, data = "", dict[str, Any]()
    with http.stream("POST", "/api/v1/generate", json=request) as response:
        if response.is_error:
            response.read()
            raise click.ClickException(f"{response.status_code}: {response.text}")
        for name, data in events(response.iter_lines()):
            click.echo(f"{name}: {data}")
    if name != "complete":
        raise click.ClickException(f"the generation ended without a video: {name} {data}")
    answer = http.get("/api/v1/generate/download", params={"path": data["output_path"]}).raise_for_status()
    ndim, *shape = np.frombuffer(answer.content[:20], "<u4").tolist()  # the header: 4, then T, H, W, C
    if ndim != len(shape):
        raise click.ClickException(f"the download begins with {ndim}, not with the number of its dimensions")
    return np.frombuffer(answer.content[20:], np.uint8).reshape(shape)


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
