"""LongLive, and other causal video models of its family: a sequence, and the steps that generate a chunk of it."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from filmstrip.contract import (
    FIRST_FRAME_IMAGE,
    INPUT_VIDEO,
    LAST_FRAME_IMAGE,
    VACE_FRAMES,
    VACE_MASKS,
    VACE_REF_IMAGES,
    ChunkParameters,
    Mode,
)
from filmstrip.errors import InvalidField, LoadFailed, ModelError
from filmstrip.model_folders import EXPORT_FILE
from filmstrip.runtime.engines.engine import Engine, load_engines, to_device
from filmstrip.runtime.engines.manifest import BadEngine
from filmstrip.runtime.longlive_config import LongLiveConfig
from filmstrip.runtime.pixels import pad_first_frame, strip_pad, to_frames, to_pixels
from filmstrip.runtime.processors import Frames, resize
from filmstrip.runtime.sequences import Chunk, Timings, invalid
from filmstrip.runtime.text import SequenceText, Tokenize, Tokenizer, prompt_encoder
from filmstrip.runtime.transformer import CachedTransformer, RopeTables
from filmstrip.runtime.vace import GRAPHS as VACE_GRAPHS
from filmstrip.runtime.vace import VaceConditioner
from filmstrip.runtime.vae import FeatureStream, StreamingEncoder

_GRAPHS = (
    *("text_encoder", "text_kv", "transformer"),
    *("vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"),
)
_NO_VACE = "needs a VACE branch, which this pipeline doesn't have"
_VACE_TENSORS = (VACE_FRAMES, VACE_MASKS, FIRST_FRAME_IMAGE, LAST_FRAME_IMAGE, VACE_REF_IMAGES)


# -- The pipeline: what all sequences share -----------------------------------------------------------------


def graph_names(config: LongLiveConfig) -> tuple[str, ...]:
    """The graphs that a pipeline consists of."""
    return _GRAPHS + (VACE_GRAPHS if config.num_vace_layers else ())


def load_longlive(folder: Path, *, device: torch.device, num_threads: int, cuda_graphs: bool = False) -> "LongLive":
    """Load a pipeline from its model's folder: the configuration, the tokenizer and the engines.

    Args:
        folder: of a version of the model, such as `model_repository/longlive/1`.
        device: the CPU or a GPU.
        num_threads: for each engine on the CPU.
        cuda_graphs: see `filmstrip.runtime.engines.tensorrt.TensorRtEngine`.

    Raises:
        LoadFailed: one of them is missing or can't be used. For the operator: the message may name files.
    """
    try:
        config = LongLiveConfig.read(folder)
    except OSError as error:
        raise LoadFailed(f"{folder / EXPORT_FILE} can't be read: {error}") from error
    except ValueError as error:
        raise LoadFailed(
            f"{folder / EXPORT_FILE} can't be read, perhaps it was written by another version of the export: {error}"
        ) from error
    try:
        engines = load_engines(
            folder / "engines",
            device=device,
            num_threads=num_threads,
            graphs=graph_names(config),
            loras=config.loras,
            sizes=config.sizes,
            cuda_graphs=cuda_graphs,
        )
    except BadEngine as error:
        raise LoadFailed(str(error)) from error
    return LongLive(config, engines, Tokenizer(folder, config.text_len))


class LongLive:
    """A loaded pipeline.

    Args:
        config: its numbers.
        engines: by the name of the graph: those of `graph_names`, all on one device except the text encoder's.
        tokenize: prompts to token ids.
    """

    def __init__(self, config: LongLiveConfig, engines: Mapping[str, Engine], tokenize: Tokenize) -> None:
        self.config = config
        self.engines = engines
        self.device = engines["transformer"].device
        self.encode_prompt = prompt_encoder(tokenize, engines["text_encoder"], self.device)
        self.sigmas = SigmaTable(config.timestep_shift)
        # Engines should not run in the default stream: see `Engine`.
        new_stream: Callable[..., Any] = torch.cuda.Stream
        self._stream = new_stream(self.device) if self.device.type == "cuda" else None

    def start(self) -> "LongLiveSequence":
        """The state of a new sequence; it allocates memory with its first chunk."""
        return LongLiveSequence(self)

    @contextmanager
    def working_on(self, chunk: Chunk) -> Iterator[None]:
        """The context for the work on a chunk: without gradients and, on a GPU, in our own stream and timed there."""
        with torch.inference_mode():
            if self._stream is None:
                yield
                return
            with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
                chunk.timings = timings = GpuTimings(chunk.timings)
                yield
                timings.settle()


# -- A sequence ---------------------------------------------------------------------------------------------


class _Caches:
    """What a sequence keeps at one size, except its text."""

    def __init__(self, pipeline: LongLive, size: tuple[int, int]) -> None:
        config, engines = pipeline.config, pipeline.engines
        rows, cols = (
            side // (config.spatial_factor * patch) for side, patch in zip(size, config.patch_size[1:], strict=True)
        )
        tables = RopeTables(config.head_dim, config.rope_theta, rows, cols, pipeline.device)

        def encoder() -> StreamingEncoder:
            return StreamingEncoder(
                engines["vae_encoder_first"],
                engines["vae_encoder_next"],
                chunk_size=config.chunk_size,
                temporal_factor=config.temporal_factor,
            )

        self.size = size
        self.transformer = CachedTransformer(engines["transformer"], config, tables, rows, cols)
        self.encode = encoder()
        self.decode = FeatureStream(
            engines["vae_decoder_first"], engines["vae_decoder_next"], input_name="latents", output_name="pixels"
        )
        self.vace: VaceConditioner | None = None
        if config.num_vace_layers:
            self.vace = VaceConditioner(engines, config, tables, inactive=encoder(), reactive=encoder())
        self.last_input: Tensor | None = None
        """The last frame of the previous chunk's input video, [1, 3, 1, H, W] on the host."""

    def clear(self) -> None:
        self.transformer.clear()
        self.encode.clear()
        self.decode.clear()
        if self.vace is not None:
            self.vace.clear()
        self.last_input = None


class LongLiveSequence:
    """A sequence's state: see `filmstrip.runtime.sequences.SequenceState`.

    On a GPU all work is queued: the host is a step ahead, so that the GPU never waits for it.
    """

    def __init__(self, pipeline: LongLive) -> None:
        self._pipeline = pipeline
        self._config = pipeline.config
        self._text = SequenceText(pipeline.encode_prompt, pipeline.engines, pipeline.config.loras)
        self._latent_index = 0  # of the next latent frame, from the sequence's start: a reset does not set it back
        self._caches: _Caches | None = None

    def chunk(self, chunk: Chunk) -> Frames:
        """Generate the next chunk, [F, H, W, 3] uint8.

        Raises:
            ChunkCancelled: the client has cancelled the request.
            InvalidField: the chunk has a size, an array or a LoRA that the pipeline doesn't support.
            ModelError: the chunk must reset and doesn't; the frontend is at fault.
        """
        with self._pipeline.working_on(chunk):
            frames = self._generate(chunk)
        seconds, num_steps = chunk.timings.seconds, chunk.report["denoise_steps"]
        if num_steps:
            seconds["denoise_step"] = seconds["denoise"] / num_steps
        return frames

    def _generate(self, chunk: Chunk) -> Frames:
        params, measure, config = chunk.parameters, chunk.timings.measure, self._config
        num_latent_frames = config.latent_frames_per_chunk + params.pad_first_frame  # T
        # 1. A reset clears all caches and the text in force.
        self._check_vace(chunk)
        caches = self._caches_for(params)
        # 2. The text: encoded, blended, or in a transition.
        with measure("text"):
            text = self._text.chunk(params)
        # 3. The input video as latents; the noise scale may follow its motion.
        # 4. The context of the VACE branch.
        with measure("encode"):
            source, noise_scale = self._source(chunk, caches)  # [1, C, T, h, w]
            context = caches.vace.context(chunk, num_latent_frames) if caches.vace is not None else None
        # 5. A new text needs a new cache; after a reset the cache is empty, and nothing happens here.
        if text.is_new:
            with measure("cache"):
                caches.transformer.recache(text.inputs)
        # 6. Noise, which only depends on the seed and the chunk's position; in video mode mixed with the source.
        noise = self._noise(params, num_latent_frames)
        latents = initial_latents(noise.draw(), source, noise_scale)  # [1, C, T, h, w]
        # 7. The timesteps.
        own_steps = _own_steps(config, params)
        steps = chunk_steps(params.mode, params.denoising_steps or own_steps, noise_scale, config.video_step_offset)
        chunk.report["denoise_steps"] = len(steps)
        # 8. Denoise; the cache is only read.
        span = caches.transformer.chunk_span(num_latent_frames)

        def velocity(latents: Tensor, timestep: float) -> Tensor:
            hints = None
            if caches.vace is not None and context is not None:
                hints = caches.vace.hints(context, latents, timestep, text, params.vace_context_scale)
            bias = params.kv_cache_attention_bias
            return caches.transformer.velocity(span, latents, timestep, text.inputs, hints=hints, attention_bias=bias)

        latents = denoise(chunk, latents, steps, velocity=velocity, noise=noise, sigmas=self._pipeline.sigmas)
        # 9. Cache the clean latents.
        chunk.stop_if_cancelled()
        with measure("cache"):
            caches.transformer.write(span, latents, text.inputs)
        self._latent_index += num_latent_frames
        # 10. Decode.
        with measure("decode"):
            pixels = caches.decode(latents)  # [1, 3, F, H, W], one frame more if the first was padded
            return to_frames(strip_pad(pixels) if params.pad_first_frame else pixels)

    # -- The steps ------------------------------------------------------------------------------------------

    def _check_vace(self, chunk: Chunk) -> None:
        if self._config.num_vace_layers:
            return
        for spec in _VACE_TENSORS:
            if spec.name in chunk.tensors:
                raise invalid(chunk.parameters.index, spec, _NO_VACE)
        if chunk.parameters.vace_use_input_video:
            raise invalid(chunk.parameters.index, INPUT_VIDEO, f"as VACE frames {_NO_VACE}")

    def _caches_for(self, params: ChunkParameters) -> _Caches:
        """The caches that the chunk continues from, or empty ones if it resets."""
        size = (params.height, params.width)
        if size not in self._config.sizes:
            known = ", ".join(f"{width}x{height}" for height, width in self._config.sizes)
            raise InvalidField(
                f"chunk {params.index}: height: the pipeline does not support {params.width}x{params.height}; "
                f"exported sizes: {known}",
                "height",
            )
        if not params.reset:
            if self._caches is None or self._caches.size != size:
                raise ModelError(f"chunk {params.index} does not continue a chunk of its size: it must reset")
            return self._caches
        self._text.clear()
        if self._caches is not None and self._caches.size == size:
            self._caches.clear()
        else:
            self._caches = None  # frees its memory before more is allocated
            self._caches = _Caches(self._pipeline, size)
        return self._caches

    def _source(self, chunk: Chunk, caches: _Caches) -> tuple[Tensor | None, float]:
        """The input video's latents [1, C, T, h, w] in video mode, None in text mode; the noise scale."""
        params = chunk.parameters
        if params.mode is Mode.TEXT:
            return None, params.noise_scale
        frames = chunk.tensor(INPUT_VIDEO)
        if len(frames) != params.num_frames:
            raise invalid(params.index, INPUT_VIDEO, f"has {len(frames)} frames, must have {params.num_frames}")
        # Measured on the host: reading a number from the GPU would wait for it.
        pixels = to_pixels(resize(frames, params.height, params.width))  # [1, 3, F, H, W]
        noise_scale = params.noise_scale
        if params.noise_controller:
            moved = motion(pixels, self._config.latent_frames_per_chunk, caches.last_input)
            noise_scale = controlled_noise_scale(moved, noise_scale)
        caches.last_input = pixels[:, :, -1:].clone()
        pixels = to_device(pixels, self._pipeline.device)
        return caches.encode(pad_first_frame(pixels) if params.pad_first_frame else pixels), noise_scale

    def _noise(self, params: ChunkParameters, num_latent_frames: int) -> "ChunkNoise":
        sides = (side // self._config.spatial_factor for side in (params.height, params.width))
        shape = (1, self._config.latent_channels, num_latent_frames, *sides)
        return ChunkNoise(params.seed, self._latent_index, shape, self._pipeline.device)


# -- Noise --------------------------------------------------------------------------------------------------


class ChunkNoise:
    """The noise of one chunk, in the order in which it is drawn: the initial noise, then one for each renoising.

    It only depends on the seed and the chunk's position, not on what ran before. It is drawn on the CPU in float32 and
    then moved, so that it is the same for every device.

    Args:
        seed: of the generation or the chunk.
        latent_index: of the chunk's first latent frame in the generation, resets not counted.
        shape: of each draw, [1, C, T, H, W].
        device: of the noise.
    """

    def __init__(
        self, seed: int, latent_index: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed + latent_index)
        self._shape = shape
        self._device = device

    def draw(self) -> Tensor:
        """The next noise, normally distributed."""
        return to_device(torch.randn(self._shape, generator=self._generator, dtype=torch.float32), self._device)


def initial_latents(noise: Tensor, source: Tensor | None, noise_scale: float) -> Tensor:
    """The latents that denoising starts from, [1, C, T, H, W].

    Args:
        noise: the chunk's first draw.
        source: the input video's latents, None in text mode.
        noise_scale: share of noise in video mode, 0..1; 0 gives exactly the source.
    """
    return noise if source is None else renoise(source, noise, noise_scale)


# -- Timesteps ----------------------------------------------------------------------------------------------

NUM_TIMESTEPS = 1000
_ROUNDING = 1e-6  # 1 - 0.9 is a little less than 0.1, and must still give timestep 100


class SigmaTable:
    """The 1000 sigmas that a network was trained on: evenly spaced, then shifted towards noise.

    Source:
        Wan2.1's flow matching scheduler.
    """

    def __init__(self, shift: float) -> None:
        even = [(NUM_TIMESTEPS - index) / NUM_TIMESTEPS for index in range(NUM_TIMESTEPS)]
        self.sigmas = tuple(shift * s / (1 + (shift - 1) * s) for s in even)
        """Falling, starting at 1."""

    def at(self, timestep: float) -> float:
        """The sigma whose timestep, 1000 * sigma, is nearest to the given one, which need not be an integer."""
        after = bisect_left(self.sigmas, -timestep, key=lambda sigma: -NUM_TIMESTEPS * sigma)
        around = self.sigmas[max(0, after - 1) : after + 1]
        return min(around, key=lambda sigma: abs(NUM_TIMESTEPS * sigma - timestep))


def _own_steps(config: LongLiveConfig, params: ChunkParameters) -> tuple[float, ...]:
    """The pipeline's own timesteps for a chunk; a first chunk in text mode, with nothing cached, may have more."""
    if params.mode is Mode.VIDEO:
        return config.video_steps
    return config.first_text_steps if params.reset and config.first_text_steps else config.text_steps


def chunk_steps(mode: Mode, steps: Sequence[float], noise_scale: float, offset: int = 0) -> tuple[float, ...]:
    """The timesteps of a chunk, falling.

    In text mode they are `steps`. In video mode the share of noise in the latents determines the first timestep, and
    only those of `steps` that are lower follow it.

    Args:
        mode: what the chunk is generated from.
        steps: the request's timesteps or the pipeline's own, falling.
        noise_scale: share of noise in the latents, 0..1; video mode only.
        offset: how far below the share of noise the first timestep lies; video mode only.

    Returns:
        The timesteps; none if the first would be 0, so that the source is returned unchanged.
    """
    if mode is Mode.TEXT:
        return tuple(steps)
    first = max(0, math.floor(NUM_TIMESTEPS * noise_scale + _ROUNDING) - offset)
    return (first, *(step for step in steps if step < first)) if first > 0 else ()


# -- Denoising ----------------------------------------------------------------------------------------------

# Flow matching: latents at sigma are (1 - sigma) * x0 + sigma * noise, and the network predicts noise - x0.


def x0_from_velocity(x_t: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """Clean latents from noisy ones and their velocity, in the type of the noisy ones; computed in float64."""
    return (x_t.double() - sigma * velocity.double()).to(x_t.dtype)


def renoise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents with a share `sigma` of noise, in their own type; computed in float64."""
    return ((1 - sigma) * x0.double() + sigma * noise.double()).to(x0.dtype)


def denoise(
    chunk: Chunk,
    latents: Tensor,
    timesteps: Sequence[float],
    *,
    velocity: Callable[[Tensor, float], Tensor],
    noise: ChunkNoise,
    sigmas: SigmaTable,
) -> Tensor:
    """Predict the clean latents at each timestep; between two, add the noise of the next one.

    Args:
        chunk: whose latents they are; it times `denoise` and may be cancelled before each step.
        latents: with the noise of the first timestep, [1, C, T, H, W].
        timesteps: falling.
        velocity: the network: the velocity of latents at a timestep, of their shape.
        noise: of the chunk; its initial one is drawn already.
        sigmas: the noise levels of the timesteps.

    Returns:
        The clean latents of the last step; without steps, the latents unchanged.

    Raises:
        ChunkCancelled: the client has cancelled the request.
    """
    for step, timestep in enumerate(timesteps):
        chunk.stop_if_cancelled()
        with chunk.timings.measure("denoise"):
            sigma = sigmas.at(timestep)
            if step > 0:
                latents = renoise(latents, noise.draw(), sigma)
            latents = x0_from_velocity(latents, velocity(latents, timestep), sigma)
    return latents


# -- The noise controller: less noise where the input moves -------------------------------------------------

_FULL_MOTION = 0.2  # RMS difference between successive frames that counts as motion 1
_SCALE_STILL = 0.8  # noise scale without motion
_SCALE_DROP = 0.2  # how much lower it is at motion 1
_REQUEST_SHARE = 0.1  # weight of the request's own noise scale


def motion(frames: Tensor, num_last: int, previous: Tensor | None = None) -> float:
    """The strongest motion, 0..1, towards any of a chunk's last pixel frames.

    Args:
        frames: the chunk's input, [1, 3, F, H, W] in -1..1.
        num_last: the number of frames to look at, which is the number of latent frames of a chunk.
        previous: the last frame of the previous chunk, [1, 3, 1, H, W]; used if the chunk is too short to have a frame
            before those.
    """
    seen = frames if previous is None else torch.cat([previous, frames], dim=2)
    seen = seen[:, :, -(num_last + 1) :].float()
    if seen.shape[2] < 2:
        return 0.0
    difference = seen.diff(dim=2).square().mean(dim=(0, 1, 3, 4)).sqrt()  # [F]
    return min(1.0, float(difference.max()) / _FULL_MOTION)


def controlled_noise_scale(motion: float, noise_scale: float) -> float:
    """The noise scale at a motion of 0..1; the request's own has a weight of a tenth."""
    return (1 - _REQUEST_SHARE) * (_SCALE_STILL - _SCALE_DROP * motion) + _REQUEST_SHARE * noise_scale


# -- Timing on a GPU ----------------------------------------------------------------------------------------

_MILLISECONDS = 1000


class GpuEvent(Protocol):
    """A mark in a GPU's queue of work: `torch.cuda.Event`."""

    def record(self) -> None:
        """Queue it after all work so far."""
        ...

    def synchronize(self) -> None:
        """Wait until the GPU has passed it."""
        ...

    def elapsed_time(self, end_event: "GpuEvent") -> float:
        """Milliseconds from this mark to a later one; the GPU must have passed both."""
        ...


def gpu_event() -> GpuEvent:
    """A mark for the current stream of the current GPU."""
    make: Callable[..., Any] = torch.cuda.Event
    event: GpuEvent = make(enable_timing=True)
    return event


class GpuTimings(Timings):
    """Times work on the GPU itself, as the host only queues it. The host is never more than one measured part ahead.

    So if a client goes away, the GPU is spared all steps but the current and the next one; and it never waits.

    Not run on a GPU yet. The tests use events with a clock of their own.

    Args:
        timings: those so far, which are continued.
        new_event: creates a mark.
    """

    def __init__(self, timings: Timings, new_event: Callable[[], GpuEvent] = gpu_event) -> None:
        super().__init__()
        self.seconds = timings.seconds
        self._new_event = new_event
        self._spans: list[tuple[str, GpuEvent, GpuEvent]] = []

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """See `Timings`; the time is known after `settle`."""
        if len(self._spans) > 1:
            _, _, end_of_last_but_one = self._spans[-2]
            end_of_last_but_one.synchronize()
        begin, end = self._new_event(), self._new_event()
        begin.record()
        try:
            yield
        finally:
            end.record()
            self._spans.append((name, begin, end))

    def settle(self) -> None:
        """Wait for the last part, and add up the times of all."""
        for name, begin, end in self._spans:
            end.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + begin.elapsed_time(end) / _MILLISECONDS
        self._spans.clear()
