"""`python -m training score-conditions`: what a pipeline makes of videos, masks, images and LoRA scales."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from export.errors import ExportError
from filmstrip.client import BlobBuilder, Client, ClientError, as_vace_frames
from filmstrip.console import client_of
from filmstrip.errors import FilmstripError
from training.lora import LORA_NAME
from training.served import TIMEOUT_S, UnfitVideo, served_video
from training.videos import CHUNK_FRAMES, Frames, as_png
from training.wish_sampler import WishSampler
from training.wishes import MEASUREMENTS, Measured, Wish


@click.command("score-conditions", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Of a running server.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A checkpoint's folder, whose networks are run here instead of a server's.",
)
@click.option("--pipeline", default="longlive-small", show_default=True, help="The pipeline to measure.")
@click.option("--scenes", type=click.IntRange(1), default=12, show_default=True, help="Of each kind of request.")
@click.option("--only", type=click.Choice(list(MEASUREMENTS)), multiple=True, help="These kinds.  [default: all]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A JSON file for the result.")
def score_conditions(
    *, url: str, checkpoint: Path | None, pipeline: str, scenes: int, only: tuple[str, ...], out: Path | None
) -> None:
    """Measure what a pipeline makes of all that may lead it beside a prompt.

    Source videos, masks, control frames, images and a LoRA whose scale grows; each number is a mean over held-out
    scenes and stands beside the least that it should be. The exit status is 1 where one is less.
    """
    try:
        with client_of(url, "--url", timeout_s=TIMEOUT_S) as client:
            fulfil = ServedWishes(client, pipeline) if checkpoint is None else WishSampler(checkpoint)
            found = {name: MEASUREMENTS[name](fulfil, scenes) for name in only or MEASUREMENTS}
    except (FilmstripError, ClientError, UnfitVideo, ExportError) as error:
        raise click.ClickException(str(error)) from error
    Console().print(_table(found))
    if out is not None:
        facts = {name: _facts(measured) for name, measured in found.items()}
        what = {"pipeline": pipeline} if checkpoint is None else {"checkpoint": str(checkpoint)}
        out.write_text(json.dumps({**what, "scenes": scenes, "kinds": facts}, indent=2) + "\n")
    if not all(number.holds for measured in found.values() for number in measured.numbers):
        click.get_current_context().exit(1)


# -- Through HTTP ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedWishes:
    """A pipeline behind the HTTP API, as a `training.wishes.Fulfil`.

    Attributes:
        client: of a running server.
        pipeline: its id.
    """

    client: Client
    pipeline: str

    def __call__(self, wish: Wish) -> Frames:
        """Generate a video.

        Raises:
            FilmstripError: the server refuses, or its model fails.
            ClientError: it can't be reached.
            UnfitVideo: see `served_video`.
        """
        return served_video(self.client, wish.num_frames, **self._request(wish))

    def _request(self, wish: Wish) -> dict[str, Any]:
        request = {
            "pipeline_id": self.pipeline,
            "prompt": wish.prompt,
            "seed": wish.seed,
        }
        if wish.source is not None:
            request["input_path"] = self.client.upload(wish.source).input_path
            if wish.control is None:
                request["noise_scale"] = wish.noise_scale
            else:
                request |= {"pre_processor_id": wish.control, "vace_use_input_video": True}
        blob = self._blob(wish)
        if blob.chunk_specs:
            request["chunk_specs"] = blob.chunk_specs
        if blob.size:
            request["data_blob_path"] = self.client.upload_data(blob).data_blob_path
        return request

    def _blob(self, wish: Wish) -> BlobBuilder:
        blob = BlobBuilder()
        images = {} if wish.reference is None else {"vace_ref_images": [self._asset(wish.reference)]}
        for chunk in range(wish.num_chunks):
            part = slice(CHUNK_FRAMES * chunk, CHUNK_FRAMES * (chunk + 1))
            fields: dict[str, Any] = dict(images)
            if wish.frames is not None:
                fields["vace_frames"] = as_vace_frames(wish.frames[part])
            if wish.masks is not None:
                fields["vace_masks"] = wish.masks[part]
            if wish.lora_scales:
                fields["lora_scales"] = {LORA_NAME: wish.lora_scales[chunk]}
            if chunk == 0 and wish.first_image is not None:
                fields["first_frame_image"] = self._asset(wish.first_image)
            if chunk == 0 and wish.last_image is not None:
                fields["last_frame_image"] = self._asset(wish.last_image)
            if fields:
                blob.chunk(chunk, **fields)
        return blob

    def _asset(self, image: Frames) -> str:
        return self.client.upload_asset(as_png(image))


# -- What is shown --------------------------------------------------------------------------------------------------


def _table(found: dict[str, Measured]) -> Table:
    table = Table("request", "mean", "value", "at least", "")
    for name, measured in found.items():
        for number in measured.numbers:
            verdict = "[green]ok[/]" if number.holds else "[red]MISSED[/]"
            table.add_row(name, number.what, f"{number.value:.2f}", f"{number.least:.2f}", verdict)
    return table


def _facts(measured: Measured) -> dict[str, Any]:
    return {
        "numbers": [{**asdict(number), "holds": number.holds} for number in measured.numbers],
        "curves": {name: list(curve.items()) for name, curve in measured.curves.items()},
    }
