"""One generation, from a node's inputs to the last event: checks, uploads, the queue, progress, lost connections."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .chunk_specs import (
    IMAGES,
    Blob,
    ChunkSpec,
    Loras,
    Specs,
    add_to_blob,
    merge,
    place_prompts,
    with_batches,
    with_loras,
    with_references,
)
from .client import PipelineRef, ServerClient, StreamEvent, VideoShape, sleep_polling, while_polling
from .errors import FilmstripError
from .frames import Floats, to_png, video_frames
from .host import Display, check_interrupted, installation, resized
from .widgets import RANDOM_SEED, in_words_of_the_page, label

DEFAULT_NUM_FRAMES = 64
RETRY_S = 1.0
QUEUE_LOOK_S = 0.5
BUSY_GRACE_S = 1.0
"""A generation may be queued for a moment although nothing else runs."""
REATTACH_S = 30.0
"""How long a lost connection is tried again. A server keeps a generation that nobody follows for 15 s by default."""
PREVIEW_WIDTH = 256

SCALE = "scale and crop"
REFUSE = "refuse"

_LOST = frozenset({"broken", "timed_out", "unreachable"})


@dataclass(frozen=True)
class GenerationInputs:
    """The inputs of a Generate node.

    Attributes:
        pipeline: the pipeline that generates.
        fields: fields of the request that do not depend on arrays.
        num_frames: 0 for as many as there are input images, VACE frames or masks.
        images: the input video, IMAGE.
        batches: `vace_frames` (IMAGE) and `vace_masks` (MASK) of the whole video.
        references: `vace_ref_images` of every chunk, IMAGE.
        specs: overrides for single chunks.
        loras: LoRAs and their strengths.
        other_sizes: what is done with control frames, masks and key images of another size: `SCALE` or `REFUSE`.
        wait_when_busy_s: how long to wait while another generation runs.
    """

    pipeline: PipelineRef
    fields: Mapping[str, Any]
    num_frames: int = 0
    images: Floats | None = None
    batches: Mapping[str, Floats] = field(default_factory=dict)
    references: Floats | None = None
    specs: Specs = ()
    loras: Loras = ()
    other_sizes: str = SCALE
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
    """Check the inputs, upload them and follow the generation; what the server still holds is not made again.

    Raises:
        FilmstripError: it failed; the message says why.
    """
    started = time.monotonic()
    info = client.loaded_pipeline(inputs.pipeline.id, display.text)
    draft = _Draft(inputs, info)
    with _words_of_the_page(draft):
        display.text("checking the inputs")
        draft.complete(client, display)
        name = while_polling(draft.id, check_interrupted, lambda: None)
        held = client.find(name)
        if held is not None and held["state"] in ("failed", "cancelled"):
            client.delete(name)
            held = None
        follower = _Follower(name, client, display, inputs.wait_when_busy_s)
        if held is None:
            draft.check(client, display)
            request = draft.upload(client, display)
            posted = time.monotonic()
            last = follower.submit({**request, "on_disconnect": "cancel", "previews": _PREVIEWS})
        else:
            request = held.get("request") or {}
            posted = time.monotonic()
            last = follower.attach()
        if last.name == "error":
            raise FilmstripError(str(last.data["error"]), str(last.data["code"]))
    if last.name == "cancelled":
        # No shorter video instead: ComfyUI would cache it as the result of this node.
        frames = last.data["frames_completed"]
        why = "the connection was lost for too long" if follower.was_lost else "it was cancelled by someone else"
        raise FilmstripError(f"the generation ended early: {why}, after {frames} frames", "cancelled")
    made = client.find(name) or {}
    busy_s = max((made.get("started_at") or 0) - (made.get("created_at") or 0), 0)
    generate_s = max((made.get("ended_at") or 0) - (made.get("started_at") or 0), 0)
    report = {
        **last.data,
        "status": last.name,
        "generation": name,
        "server": inputs.pipeline.server.url,
        "held": held is not None,
        "upload_s": round(posted - started, 3),
        "busy_s": round(busy_s, 3),
        "generate_s": round(generate_s, 3),
        "chunks": follower.chunks,
        "warnings": draft.warnings,
        "request": request,
    }
    summary = f"{last.data['num_frames']} frames in {last.data['num_chunks']} chunks, {generate_s:.1f} s"
    if held is not None:
        summary += ", kept by the server"
    if inputs.fields.get("seed") == RANDOM_SEED and "seed" in last.data:
        summary += f", seed {last.data['seed']}"
    if last.data.get("unused"):
        unused = ", ".join(label(name) for name in last.data["unused"])
        summary += f"; {inputs.pipeline.id} does not use {unused}"
    for warning in draft.warnings:
        summary += f"; {warning}"
    return GenerationResult(str(last.data["output_path"]), json.dumps(report, indent=1, ensure_ascii=False), summary)


_PREVIEWS = {"every": 1, "width": PREVIEW_WIDTH}


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


@contextlib.contextmanager
def _words_of_the_page(draft: _Draft) -> Iterator[None]:
    """Errors of the server within the block name inputs as the page does."""
    try:
        yield
    except FilmstripError as error:
        message = in_words_of_the_page(str(error), draft.chunks_of_specs)
        if message == str(error):
            raise
        changed = FilmstripError(message, error.code)
        changed.field = error.field
        raise changed from None


def num_frames_of(inputs: GenerationInputs) -> int:
    """How many frames to generate."""
    if inputs.num_frames:
        return inputs.num_frames
    if inputs.images is not None:
        return len(inputs.images)
    longest = max((len(batch) for batch in inputs.batches.values()), default=0)
    return longest if longest > 1 else DEFAULT_NUM_FRAMES


# -- Requests -------------------------------------------------------------------------------------------------------


class _Draft:
    """A request whose files are not uploaded yet.

    Args:
        inputs: of the node.
        info: of the pipeline.

    Attributes:
        warnings: for the user, about inputs that have no effect.
        chunks_of_specs: the chunk of each ChunkSpec of the request.
    """

    def __init__(self, inputs: GenerationInputs, info: Mapping[str, Any]) -> None:
        self._inputs = inputs
        self._num_frames = num_frames_of(inputs)
        self._chunk_size = int(info["chunk_size"])
        self._base: dict[str, Any] = {
            "pipeline_id": inputs.pipeline.id,
            **inputs.fields,
            "num_frames": self._num_frames,
        }
        if not info["features"].get("seed"):
            # ComfyUI changes seeds by itself after each run: a note that the seed is unused would not help the user.
            self._base.pop("seed", None)
        if inputs.loras and not self._has_ramp:
            self._base["lora_scales"] = {lora.name: lora.strength for lora in inputs.loras} | inputs.fields.get(
                "lora_scales", {}
            )
        self._height = self._side("height", info, 1)
        self._width = self._side("width", info, 2)
        self._fitted: dict[tuple[Any, ...], Floats] = {}
        self._images: dict[tuple[Any, ...], bytes] = {}
        self._specs: dict[int, ChunkSpec] = {}
        self._blob = Blob()
        self._request: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.chunks_of_specs: list[int] = []

    def complete(self, client: ServerClient, display: Display) -> None:
        """Put everything into its chunk; asks the server which frames a chunk has, if that matters.

        Raises:
            FilmstripError: the server refuses what is known so far.
        """
        inputs = self._inputs
        own = [spec for spec in inputs.specs if isinstance(spec, ChunkSpec)]
        self._set_specs(self._with_arrays(merge(own)))
        if len(own) < len(inputs.specs) or self._has_ramp or inputs.references is not None:
            plan = self._dry_run(client, display)
            placed, self.warnings = place_prompts(inputs.specs, plan["starts"], self._num_frames)
            specs = self._with_arrays(merge(placed))
            num_chunks = len(plan["starts"])
            if self._has_ramp:
                specs = with_loras(specs, inputs.loras, num_chunks)
            if inputs.references is not None:
                specs = with_references(specs, inputs.references, num_chunks)
            self._set_specs(specs)

    def check(self, client: ServerClient, display: Display) -> None:
        """Let the server check the request before anything is uploaded.

        Raises:
            FilmstripError: the server refuses it.
        """
        if self._inputs.images is not None or self._blob.num_bytes or self._images:
            self._dry_run(client, display)

    def id(self) -> str:
        """The name of this generation: that of its content, so that the same one is found again.

        A random seed has a new name each time. Two ComfyUIs have different names, so that one cannot stop the other's.
        """
        inputs = self._inputs
        digest = hashlib.blake2b(digest_size=24)
        parts = [inputs.pipeline.server.token, installation(), json.dumps(self._stand_in(), sort_keys=True)]
        if inputs.fields.get("seed") == RANDOM_SEED:
            parts.append(secrets.token_hex())
        for part in parts:
            digest.update(part.encode() + b"\0")
        arrays: Iterable[Floats] = () if inputs.images is None else inputs.images
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        for piece in self._blob:
            digest.update(piece)
        for key in sorted(self._images, key=repr):
            digest.update(self._images[key])
        return f"comfyui-{digest.hexdigest()}"

    def upload(self, client: ServerClient, display: Display) -> dict[str, Any]:
        """Upload the files; returns the request."""
        inputs, request = self._inputs, dict(self._request)
        if inputs.images is not None:
            frames, height, width, _ = inputs.images.shape
            shape: VideoShape = (frames, height, width, 3)
            display.text(f"uploading {frames} frames of {width}x{height}")
            request["input_path"] = client.upload(shape, video_frames(inputs.images))
        if self._blob.num_bytes:
            display.text(f"uploading {self._blob.num_bytes / 1e6:.1f} MB of arrays for {len(self._specs)} chunks")
            request["data_blob_path"] = client.upload_data(self._blob.num_bytes, self._blob)
        if self._images:
            display.text(f"uploading {len(self._images)} images")
            paths = {key: client.upload_image(file) for key, file in self._images.items()}
            request["chunk_specs"] = self._chunk_specs(paths)
        return request

    @property
    def _has_ramp(self) -> bool:
        return any(lora.ramp for lora in self._inputs.loras)

    def _side(self, name: str, info: Mapping[str, Any], axis: int) -> int | None:
        images = self._inputs.images
        own = self._base.get(name) or info.get(name) or (None if images is None else images.shape[axis])
        return int(own) if own else None

    def _with_arrays(self, specs: Mapping[int, ChunkSpec]) -> dict[int, ChunkSpec]:
        """The specs with their part of the batches, everything in the size of the video."""
        fitted = {
            index: replace(spec, arrays={name: self._fit(name, array) for name, array in spec.arrays.items()})
            for index, spec in specs.items()
        }
        batches = {name: self._fit(name, batch) for name, batch in self._inputs.batches.items()}
        return with_batches(fitted, batches, self._chunk_size, self._num_frames)

    def _fit(self, name: str, array: Floats) -> Floats:
        """An array in the size of the video; references and input videos are scaled by the server."""
        size = (self._height, self._width)
        if name in ("vace_ref_images", "input_video") or None in size or array.shape[1:3] == size:
            return array
        if self._inputs.other_sizes != SCALE:
            height, width = array.shape[1:3]
            raise FilmstripError(
                f"{label(name)}: are {width}x{height}, but the video is {size[1]}x{size[0]}"
                f" (see {label('other_sizes')})"
            )
        key = (name, _identity(array))
        if key not in self._fitted:
            assert self._height is not None
            assert self._width is not None
            self._fitted[key] = resized(array, self._height, self._width, is_mask=name == "vace_masks")
        return self._fitted[key]

    def _set_specs(self, specs: Mapping[int, ChunkSpec]) -> None:
        self._specs = dict(sorted(specs.items()))
        self.chunks_of_specs = list(self._specs)
        self._blob, self._images = Blob(), {}
        self._packed: dict[int, dict[str, Any]] = {}
        for index, spec in self._specs.items():
            arrays = {name: array for name, array in spec.arrays.items() if name not in IMAGES}
            self._packed[index] = add_to_blob(self._blob, arrays)
            for image in _images_of(spec):
                key = _identity(image)
                if key not in self._images:
                    self._images[key] = to_png(image)
        self._request = dict(self._base)
        if self._specs:
            self._request["chunk_specs"] = self._chunk_specs({})

    def _chunk_specs(self, paths: Mapping[tuple[Any, ...], str]) -> list[dict[str, Any]]:
        """The ChunkSpecs, with sizes in place of images without a path."""

        def path(image: Floats) -> Any:
            size = {"width": int(image.shape[1]), "height": int(image.shape[0])}
            return paths.get(_identity(image), size)

        specs = []
        for index, spec in self._specs.items():
            images: dict[str, Any] = {}
            for name in IMAGES:
                if name in spec.arrays:
                    named = [path(image) for image in spec.arrays[name]]
                    images[name] = named if name == "vace_ref_images" else named[0]
            specs.append({"chunk": index, **spec.fields, **images, **self._packed[index]})
        return specs

    def _stand_in(self) -> dict[str, Any]:
        uploads: dict[str, Any] = {}
        if self._inputs.images is not None:
            uploads["input_shape"] = [*self._inputs.images.shape[:3], 3]
        if self._blob.num_bytes:
            uploads["blob_bytes"] = self._blob.num_bytes
        return {**self._request, **({"uploads": uploads} if uploads else {})}

    def _dry_run(self, client: ServerClient, display: Display) -> dict[str, Any]:
        while True:
            try:
                return client.dry_run(self._stand_in())
            except FilmstripError as error:
                if error.code != "too_many_requests":
                    raise
            display.text("the server checks at most 60 requests a minute; waiting")
            sleep_polling(RETRY_S, check_interrupted)


def _images_of(spec: ChunkSpec) -> Iterator[Floats]:
    for name in IMAGES:
        yield from spec.arrays.get(name, ())


def _identity(array: Floats) -> tuple[Any, ...]:
    """The same memory read in the same way is the same array."""
    return array.__array_interface__["data"][0], array.strides, array.shape


# -- Following ------------------------------------------------------------------------------------------------------


class _Follower:
    """Starts one generation and follows it; Stop ends it on the server.

    Attributes:
        chunks: the progress events.
        was_lost: the connection broke on the way.
    """

    def __init__(self, id: str, client: ServerClient, display: Display, wait_s: float) -> None:
        self._id = id
        self._client = client
        self._display = display
        self._wait_s = wait_s
        self._after = 0
        self._total = 0
        self._started = time.monotonic()
        self._position: int | None = None
        self._look_at = self._started + QUEUE_LOOK_S
        self.chunks: list[Mapping[str, Any]] = []
        self.was_lost = False

    def submit(self, request: Mapping[str, Any]) -> StreamEvent:
        """Start the generation, waiting while the server is busy; returns its last event."""
        try:
            while True:
                try:
                    self._client.submit(self._id, request)
                    break
                except FilmstripError as error:
                    if error.code != "queue_full":
                        raise
                self._check_wait()
                sleep_polling(RETRY_S, check_interrupted)
            return self._follow()
        except BaseException:
            # Also if the answer did not come: a generation may run that nobody follows.
            self._client.delete(self._id)
            raise

    def attach(self) -> StreamEvent:
        """Follow a generation that the server already has; returns its last event."""
        return self._follow()

    def _follow(self) -> StreamEvent:
        lost_since: float | None = None
        while True:
            before = self._after
            try:
                return self._client.follow(self._id, self._after, self._on_event, self._look_at_queue)
            except FilmstripError as error:
                if error.code not in _LOST:
                    raise
                now = time.monotonic()
                if lost_since is None or self._after > before:
                    lost_since = now
                if now - lost_since >= REATTACH_S:
                    raise
                self.was_lost = True
                self._display.text(f"{error}; trying again")
            sleep_polling(RETRY_S, check_interrupted)

    def _on_event(self, event: StreamEvent) -> None:
        self._after = event.number or self._after
        match event.name:
            case "queued":
                self._position = int(event.data["position"])
                self._check_wait()
            case "progress":
                self._show_progress(event.data)
            case "preview":
                image = str(event.data["image"] or "")
                if self._total and "," in image:
                    file = base64.b64decode(image.partition(",")[2])
                    self._display.preview(event.data["chunk"], self._total, file)

    def _look_at_queue(self) -> None:
        """Show that the generation waits. No event says that it starts: the server is asked.

        Raises:
            FilmstripError: it has waited for long enough.
        """
        if self._position is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + RETRY_S
        state = self._client.find(self._id)
        if state is None or state["state"] != "queued":
            self._position = None
        else:
            self._check_wait()

    def _check_wait(self) -> None:
        waited_s = time.monotonic() - self._started
        if waited_s >= max(self._wait_s, BUSY_GRACE_S):
            waited = f" Gave up after {waited_s:.0f} s: see {label('wait_when_busy_s')}." if self._wait_s else ""
            raise FilmstripError(f"the server is busy: another generation is running.{waited}", "busy")
        place = f", place {self._position} in the queue" if self._position and self._position > 1 else ""
        self._display.text(f"the server is busy with another generation{place}; waiting up to {self._wait_s:g} s")

    def _show_progress(self, chunk: Mapping[str, Any]) -> None:
        self._position = None
        self.chunks.append(chunk)
        done, self._total = chunk["chunk"], chunk["total_chunks"]
        self._display.chunks(done, self._total)
        seconds = [float(each["latency"]) for each in self.chunks]
        left = sum(seconds) / len(seconds) * (self._total - done)
        self._display.text(
            f"chunk {done} of {self._total}, {chunk['fps']:.3g} frames/s,"
            f" {_clock(sum(seconds))} elapsed, about {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
