"""One generation, from a node's inputs to the last event: uploads, waiting for a busy server, progress."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .chunk_specs import IMAGES, Blob, Specs, add_to_blob, merge, with_batches
from .client import PipelineRef, ServerClient, StreamEvent, VideoShape, sleep_polling
from .errors import FilmstripError
from .frames import Floats, to_png, video_frames
from .host import Display, check_interrupted
from .widgets import RANDOM_SEED

DEFAULT_NUM_FRAMES = 64
BUSY_RETRY_S = 1.0


@dataclass(frozen=True)
class GenerationInputs:
    """The inputs of a Generate node.

    Attributes:
        pipeline: the pipeline that generates.
        fields: fields of the request that do not depend on arrays.
        num_frames: 0 for as many as there are input images, VACE frames or masks.
        images: the input video, IMAGE.
        batches: `vace_frames` (IMAGE) and `vace_masks` (MASK) of the whole video.
        specs: overrides for single chunks.
        wait_when_busy_s: how long to retry while another generation runs.
    """

    pipeline: PipelineRef
    fields: Mapping[str, Any]
    num_frames: int = 0
    images: Floats | None = None
    batches: Mapping[str, Floats] = field(default_factory=dict)
    specs: Specs = ()
    wait_when_busy_s: float = 0


@dataclass(frozen=True)
class GenerationResult:
    """A generation that completed.

    Attributes:
        output_path: the server's name of the video.
        report: what happened, as JSON.
        summary: the same in one line.
    """

    output_path: str
    report: str
    summary: str


def generate(inputs: GenerationInputs, client: ServerClient, display: Display) -> GenerationResult:
    """Upload the inputs, post the request and follow its events.

    Raises:
        FilmstripError: it failed; the message says why.
    """
    started = time.monotonic()
    info = client.loaded_pipeline(inputs.pipeline.id, display.text)
    request = _request(inputs, info, client, display)
    posted = time.monotonic()
    chunks: list[Mapping[str, Any]] = []
    last, waited_s = _follow(inputs, request, client, display, chunks)
    if last.name == "error":
        raise FilmstripError(str(last.data["error"]), str(last.data["code"]))
    if last.name == "cancelled":
        # No shorter video instead: ComfyUI would cache it as the result of this node.
        frames = last.data["frames_completed"]
        raise FilmstripError(f"the generation was cancelled by someone else, after {frames} frames", "cancelled")
    generate_s = time.monotonic() - posted - waited_s
    report = {
        **last.data,
        "status": last.name,
        "server": inputs.pipeline.server.url,
        "upload_s": round(posted - started, 3),
        "busy_s": round(waited_s, 3),
        "generate_s": round(generate_s, 3),
        "chunks": chunks,
        "request": request,
    }
    summary = f"{last.data['num_frames']} frames in {last.data['num_chunks']} chunks, {generate_s:.1f} s"
    if request.get("seed") == RANDOM_SEED and "seed" in last.data:
        summary += f", seed {last.data['seed']}"
    if last.data.get("unused"):
        summary += f"; {inputs.pipeline.id} does not use {', '.join(last.data['unused'])}"
    return GenerationResult(str(last.data["output_path"]), json.dumps(report, indent=1, ensure_ascii=False), summary)


@contextlib.contextmanager
def naming_result_on_error(result: GenerationResult) -> Iterator[None]:
    """Within the block the result is downloaded; errors name the result, which the server still has.

    Raises:
        FilmstripError: instead of the error of the block.
    """
    try:
        yield
    except FilmstripError as error:
        name = result.output_path
        raise FilmstripError(
            f"{error}; the video is not lost: the server keeps it for an hour by default, as {name}"
            f" (filmstrip download {name} -o FILE)",
            error.code,
        ) from None
    except MemoryError:
        raise FilmstripError(
            "not enough memory for the images of this video: use Generate to Video, or filmstrip download"
            f" {result.output_path} -o FILE"
        ) from None


def num_frames_of(inputs: GenerationInputs) -> int:
    """How many frames to generate."""
    if inputs.num_frames:
        return inputs.num_frames
    if inputs.images is not None:
        return len(inputs.images)
    longest = max((len(batch) for batch in inputs.batches.values()), default=0)
    return longest if longest > 1 else DEFAULT_NUM_FRAMES


def _request(
    inputs: GenerationInputs, info: Mapping[str, Any], client: ServerClient, display: Display
) -> dict[str, Any]:
    request: dict[str, Any] = {"pipeline_id": inputs.pipeline.id, **inputs.fields, "num_frames": num_frames_of(inputs)}
    if not info["features"].get("seed"):
        # ComfyUI changes seeds by itself after each run: a note that the seed is unused would not help the user.
        request.pop("seed", None)
    if inputs.images is not None:
        frames, height, width, _ = inputs.images.shape
        shape: VideoShape = (frames, height, width, 3)
        display.text(f"uploading {frames} frames of {width}x{height}")
        request["input_path"] = client.upload(shape, video_frames(inputs.images))
    specs = with_batches(merge(inputs.specs), inputs.batches, int(info["chunk_size"]), request["num_frames"])
    blob = Blob()
    chunk_specs = []
    for index, spec in sorted(specs.items()):
        packed = {name: array for name, array in spec.arrays.items() if name not in IMAGES}
        chunk_specs.append({"chunk": index, **spec.fields, **_images(spec.arrays, client), **add_to_blob(blob, packed)})
    if blob.num_bytes:
        display.text(f"uploading {blob.num_bytes / 1e6:.1f} MB of arrays for {len(chunk_specs)} chunks")
        request["data_blob_path"] = client.upload_data(blob.num_bytes, blob)
    if chunk_specs:
        request["chunk_specs"] = chunk_specs
    return request


def _images(arrays: Mapping[str, Floats], client: ServerClient) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in IMAGES:
        if name in arrays:
            paths = [client.upload_image(to_png(image)) for image in arrays[name]]
            fields[name] = paths if name == "vace_ref_images" else paths[0]
    return fields


def _follow(
    inputs: GenerationInputs,
    request: Mapping[str, Any],
    client: ServerClient,
    display: Display,
    chunks: list[Mapping[str, Any]],
) -> tuple[StreamEvent, float]:
    """Post the request, and retry while the server is busy; returns the last event and the seconds spent waiting."""

    def on_event(event: StreamEvent) -> None:
        if event.name == "progress":
            chunk = event.data
            chunks.append(chunk)
            display.chunks(chunk["chunk"], chunk["total_chunks"])
            display.text(f"chunk {chunk['chunk']} of {chunk['total_chunks']}, {chunk['fps']:.3g} frames/s")

    started = time.monotonic()
    while True:
        waited_s = time.monotonic() - started
        try:
            return client.generate(request, on_event), waited_s
        except FilmstripError as error:
            if error.code != "busy":
                raise
            if waited_s >= inputs.wait_when_busy_s:
                waited = f" Gave up after {waited_s:.0f} s: see wait_when_busy_s." if inputs.wait_when_busy_s else ""
                raise FilmstripError(f"the server is busy: {error}.{waited}", "busy") from None
        display.text(f"the server is busy with another generation; waiting up to {inputs.wait_when_busy_s:g} s")
        sleep_polling(min(BUSY_RETRY_S, max(inputs.wait_when_busy_s - waited_s, 0.1)), check_interrupted)
