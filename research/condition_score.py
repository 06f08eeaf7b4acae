"""`python -m research score-conditions`: what a pipeline makes of videos, masks, images and LoRA scales."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from export.errors import ExportError
from filmstrip.client import BlobBuilder, Client, ClientError, as_vace_frames
from filmstrip.console import make_client
from filmstrip.errors import FilmstripError
from research.evaluation import MEASUREMENTS, EvalCase, Measured
from research.local_sampler import LocalSampler
from research.lora import LORA_NAME
from research.served import TIMEOUT_S, UnfitVideo, served_video
from tests.support.toyworld.videos import CHUNK_FRAMES, Frames, as_png


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
    """Measure how a pipeline follows every kind of conditioning other than a prompt.

    Source videos, masks, control frames, images and a LoRA whose scale grows; each number is a mean over held-out
    scenes and is shown with its threshold. The exit status is 1 where one is less.
    """
    try:
        with make_client(url, "--url", timeout_s=TIMEOUT_S) as client:
            run_case = ServedCases(client, pipeline) if checkpoint is None else LocalSampler(checkpoint)
            found = {name: MEASUREMENTS[name](run_case, scenes) for name in only or MEASUREMENTS}
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
class ServedCases:
    """A pipeline behind the HTTP API, as a `research.evaluation.RunCase`.

    Attributes:
        client: of a running server.
        pipeline: its id.
    """

    client: Client
    pipeline: str

    def __call__(self, case: EvalCase) -> Frames:
        """Generate a video.

        Raises:
            FilmstripError: the server refuses, or its model fails.
            ClientError: it can't be reached.
            UnfitVideo: see `served_video`.
        """
        return served_video(self.client, case.num_frames, **self._request(case))

    def _request(self, case: EvalCase) -> dict[str, Any]:
        request = {
            "pipeline_id": self.pipeline,
            "prompt": case.prompt,
            "seed": case.seed,
        }
        if case.source is not None:
            request["input_path"] = self.client.upload(case.source).input_path
            if case.control is None:
                request["noise_scale"] = case.noise_scale
            else:
                request |= {"pre_processor_id": case.control, "vace_use_input_video": True}
        blob = self._blob(case)
        if blob.chunk_specs:
            request["chunk_specs"] = blob.chunk_specs
        if blob.size:
            request["data_blob_path"] = self.client.upload_data(blob).data_blob_path
        return request

    def _blob(self, case: EvalCase) -> BlobBuilder:
        blob = BlobBuilder()
        images = {} if case.reference is None else {"vace_ref_images": [self._asset(case.reference)]}
        for chunk in range(case.num_chunks):
            part = slice(CHUNK_FRAMES * chunk, CHUNK_FRAMES * (chunk + 1))
            fields: dict[str, Any] = dict(images)
            if case.frames is not None:
                fields["vace_frames"] = as_vace_frames(case.frames[part])
            if case.masks is not None:
                fields["vace_masks"] = case.masks[part]
            if case.lora_scales:
                fields["lora_scales"] = {LORA_NAME: case.lora_scales[chunk]}
            if chunk == 0 and case.first_image is not None:
                fields["first_frame_image"] = self._asset(case.first_image)
            if chunk == 0 and case.last_image is not None:
                fields["last_frame_image"] = self._asset(case.last_image)
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
