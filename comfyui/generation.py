"""One generation from the node's inputs to the last event: uploads, waiting for a busy server, progress."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .chunk_specs import IMAGES, Blob, Specs, merge, place, with_batches
from .client import Client, Event, Server, Shape, sleep_polling
from .errors import FilmstripError
from .frames import Floats, to_png, video_frames
from .host import Display, check_interrupted
from .widgets import RANDOM_SEED

DEFAULT_NUM_FRAMES = 64
BUSY_RETRY_S = 1.0


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of a server, as it goes from node to node."""

    server: Server
    id: str


@dataclass(frozen=True)
class Order:
    """What a node is asked to make.

    Attributes:
        pipeline: which makes it.
        fields: of the request, those that no array decides.
        num_frames: 0 for as many as there are input images, or VACE frames or masks.
        images: the input video, IMAGE.
        batches: `vace_frames` (IMAGE) and `vace_masks` (MASK) of the whole video.
        specs: of single chunks.
        wait_when_busy_s: how long to try again while another generation runs.
    """

    pipeline: Pipeline
    fields: Mapping[str, Any]
    num_frames: int = 0
    images: Floats | None = None
    batches: Mapping[str, Floats] = field(default_factory=dict)
    specs: Specs = ()
    wait_when_busy_s: float = 0


@dataclass(frozen=True)
class Made:
    """A generation that completed.

    Attributes:
        output_path: what to download.
        report: JSON of what happened.
        summary: the same in a line.
    """

    output_path: str
    report: str
    summary: str


def generate(order: Order, client: Client, display: Display) -> Made:
    """Upload, generate, follow.

    Raises:
        FilmstripError: it failed; the message says why.
    """
    started = time.monotonic()
    facts = client.ready_pipeline(order.pipeline.id, display.text)
    request = _request(order, facts, client, display)
    posted = time.monotonic()
    chunks: list[Mapping[str, Any]] = []
    last, waited_s = _follow(order, request, client, display, chunks)
    if last.name == "error":
        raise FilmstripError(str(last.data["error"]), str(last.data["code"]))
    if last.name == "cancelled":
        # Not a shorter video instead: ComfyUI would keep it as this node's result.
        frames = last.data["frames_completed"]
        raise FilmstripError(f"the generation was cancelled by someone else, after {frames} frames", "cancelled")
    generate_s = time.monotonic() - posted - waited_s
    report = {
        **last.data,
        "status": last.name,
        "server": order.pipeline.server.url,
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
        summary += f"; {order.pipeline.id} has no use for {', '.join(last.data['unused'])}"
    return Made(str(last.data["output_path"]), json.dumps(report, indent=1, ensure_ascii=False), summary)


@contextlib.contextmanager
def not_lost(made: Made) -> Iterator[None]:
    """Within its block the result is fetched: what goes wrong there names the result, which the server still has.

    Raises:
        FilmstripError: in place of that of the block.
    """
    try:
        yield
    except FilmstripError as error:
        name = made.output_path
        raise FilmstripError(
            f"{error}; the video is not lost: the server keeps it for an hour, if not set otherwise, as {name}"
            f" (filmstrip download {name} -o FILE)",
            error.code,
        ) from None
    except MemoryError:
        raise FilmstripError(
            "there is not enough memory for the images of this video: take Generate to Video, or filmstrip download"
            f" {made.output_path} -o FILE"
        ) from None


def num_frames_of(order: Order) -> int:
    """How many frames are asked for."""
    if order.num_frames:
        return order.num_frames
    if order.images is not None:
        return len(order.images)
    longest = max((len(batch) for batch in order.batches.values()), default=0)
    return longest if longest > 1 else DEFAULT_NUM_FRAMES


def _request(order: Order, facts: Mapping[str, Any], client: Client, display: Display) -> dict[str, Any]:
    request: dict[str, Any] = {"pipeline_id": order.pipeline.id, **order.fields, "num_frames": num_frames_of(order)}
    if not facts["features"].get("seed"):
        # ComfyUI changes a seed by itself, after each run: a note that it is unused would tell the user nothing.
        request.pop("seed", None)
    if order.images is not None:
        frames, height, width, _ = order.images.shape
        shape: Shape = (frames, height, width, 3)
        display.text(f"uploading {frames} frames of {width} x {height}")
        request["input_path"] = client.upload(shape, video_frames(order.images))
    specs = with_batches(merge(order.specs), order.batches, int(facts["chunk_size"]), request["num_frames"])
    blob = Blob()
    chunk_specs = []
    for index, spec in sorted(specs.items()):
        packed = {name: array for name, array in spec.arrays.items() if name not in IMAGES}
        chunk_specs.append({"chunk": index, **spec.fields, **_images(spec.arrays, client), **place(blob, packed)})
    if blob.num_bytes:
        display.text(f"uploading {blob.num_bytes / 1e6:.1f} MB of arrays for {len(chunk_specs)} chunks")
        request["data_blob_path"] = client.upload_data(blob.num_bytes, blob)
    if chunk_specs:
        request["chunk_specs"] = chunk_specs
    return request


def _images(arrays: Mapping[str, Floats], client: Client) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in IMAGES:
        if name in arrays:
            paths = [client.upload_image(to_png(image)) for image in arrays[name]]
            fields[name] = paths if name == "vace_ref_images" else paths[0]
    return fields


def _follow(
    order: Order, request: Mapping[str, Any], client: Client, display: Display, chunks: list[Mapping[str, Any]]
) -> tuple[Event, float]:
    """Post the request, again while the server is busy; gives the last event and the seconds spent waiting."""

    def on_event(event: Event) -> None:
        if event.name == "progress":
            told = event.data
            chunks.append(told)
            display.chunks(told["chunk"], told["total_chunks"])
            display.text(f"chunk {told['chunk']} of {told['total_chunks']}, {told['fps']:.3g} frames/s")

    started = time.monotonic()
    while True:
        waited_s = time.monotonic() - started
        try:
            return client.generate(request, on_event), waited_s
        except FilmstripError as error:
            if error.code != "busy":
                raise
            if waited_s >= order.wait_when_busy_s:
                waited = f" It was asked for {waited_s:.0f} s: see wait_when_busy_s." if order.wait_when_busy_s else ""
                raise FilmstripError(f"the server is busy: {error}.{waited}", "busy") from None
        display.text(f"the server is busy with another generation; waiting up to {order.wait_when_busy_s:g} s")
        sleep_polling(min(BUSY_RETRY_S, max(order.wait_when_busy_s - waited_s, 0.1)), check_interrupted)
