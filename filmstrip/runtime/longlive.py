"""One chunk of LongLive, and of other causal generators of its family, through the engines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from filmstrip.runtime.engines.engine import Engine, to_device
from filmstrip.runtime.engines.load import load_engines
from filmstrip.runtime.engines.manifest import BadEngine
from filmstrip.runtime.pipeline_config import FILE_NAME, PipelineConfig
from filmstrip.runtime.pixels import pad_first_frame, strip_pad, to_frames, to_pixels
from filmstrip.runtime.processors import Frames, resize
from filmstrip.runtime.schedule import (
    ChunkNoise,
    SigmaTable,
    chunk_steps,
    controlled_noise_scale,
    initial_latents,
    motion,
    renoise,
    x0_from_velocity,
)
from filmstrip.runtime.sequences import Chunk, Stages, invalid
from filmstrip.runtime.text import LoraScales, PromptBlend, PromptEncoder, TextKeys, Tokenize, Tokenizer
from filmstrip.runtime.transformer import Generator, PassPlan, RopeTables
from filmstrip.runtime.vace import GRAPHS as VACE_GRAPHS
from filmstrip.runtime.vace import VaceBranch, VaceContext, is_doubled
from filmstrip.runtime.vae import FeatureStream, StreamingEncoder

_MILLISECONDS = 1000


class Event(Protocol):
    """A mark in the queue of a GPU: `torch.cuda.Event`."""

    def record(self) -> None:
        """Put it behind what is queued so far."""
        ...

    def synchronize(self) -> None:
        """Wait until the GPU has come to it."""
        ...

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this mark to a later one, both of which the GPU has passed."""
        ...


def gpu_event() -> Event:
    """A mark in the current stream of the current GPU."""
    make: Callable[..., Any] = torch.cuda.Event
    event: Event = make(enable_timing=True)
    return event


class DeviceStages(Stages):
    """Seconds that the device works on each stage; the host is never more than a stage ahead of it.

    So a client that goes away saves the device all steps but the one at work and the next, and the device never waits.

    Args:
        stages: that were timed before, whose seconds go on here.
        new_event: makes a mark.
    """

    def __init__(self, stages: Stages, new_event: Callable[[], Event] = gpu_event) -> None:
        super().__init__()
        self.seconds = stages.seconds
        self._new_event = new_event
        self._spans: list[tuple[str, Event, Event]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See `Stages`; the time is known after `settle`."""
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
        """Wait for the last stage, and add up the times of all."""
        for name, begin, end in self._spans:
            end.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + begin.elapsed_time(end) / _MILLISECONDS
        self._spans.clear()


def denoise(
    chunk: Chunk,
    latents: Tensor,
    timesteps: Sequence[float],
    *,
    predict: Callable[[Tensor, float], Tensor],
    draw_noise: Callable[[], Tensor],
    sigma_at: Callable[[float], float],
    x0_from_velocity: Callable[[Tensor, Tensor, float], Tensor],
    renoise: Callable[[Tensor, Tensor, float], Tensor],
) -> Tensor:
    """Predict the clean latents at each timestep; between two, put the noise of the next one on them.

    Args:
        chunk: what the latents are for; it times the stage `denoise` and may be cancelled before each step.
        latents: with the noise of the first timestep, [B, C, T, H, W].
        timesteps: falling.
        predict: the velocity of latents at a timestep, of their shape.
        draw_noise: the next noise of the chunk's generator, of the latents' shape.
        sigma_at: the noise level that a timestep stands for.
        x0_from_velocity: clean latents from noisy ones, their velocity and their sigma.
        renoise: noisy latents from clean ones, noise and a sigma.

    Returns:
        The clean latents of the last step; without any, the latents as they came.

    Raises:
        Cancelled: the client has taken the request back.
    """
    for step, timestep in enumerate(timesteps):
        chunk.stop_if_cancelled()
        with chunk.stages.stage("denoise"):
            sigma = sigma_at(timestep)
            if step > 0:
                latents = renoise(latents, draw_noise(), sigma)
            latents = x0_from_velocity(latents, predict(latents, timestep), sigma)
    return latents


_GRAPHS = (
    *("text_encoder", "text_kv", "transformer"),
    *("vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"),
)
_NO_VACE = "needs a VACE branch, which this pipeline has not"
_OF_VACE = (VACE_FRAMES, VACE_MASKS, FIRST_FRAME_IMAGE, LAST_FRAME_IMAGE, VACE_REF_IMAGES)


def graph_names(config: PipelineConfig) -> tuple[str, ...]:
    """The graphs that a pipeline is made with."""
    return _GRAPHS + (VACE_GRAPHS if config.num_vace_layers else ())


class LongLive:
    """A loaded pipeline: what all its sequences share.

    Args:
        config: its numbers.
        engines: by the name of the graph: those of `graph_names`, on one device but for the text encoder's.
        tokenize: prompts to token ids.
    """

    def __init__(self, config: PipelineConfig, engines: Mapping[str, Engine], tokenize: Tokenize) -> None:
        self.config = config
        self.engines = engines
        self.device = engines["transformer"].device
        self.encode_prompt = PromptEncoder(tokenize, engines["text_encoder"], self.device)
        self.sigmas = SigmaTable(config.timestep_shift)
        # Engines should not be queued on the default stream: see `Engine`.
        new_stream: Callable[..., Any] = torch.cuda.Stream
        self._stream = new_stream(self.device) if self.device.type == "cuda" else None

    def start(self) -> "LongLiveSequence":
        """The state of a new sequence; it takes memory with its first chunk."""
        return LongLiveSequence(self)

    @contextmanager
    def at_work(self, chunk: Chunk) -> Iterator[None]:
        """For the work on a chunk: without gradients and, on a GPU, in a queue of its own and timed there."""
        with torch.inference_mode():
            if self._stream is None:
                yield
                return
            with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
                chunk.stages = stages = DeviceStages(chunk.stages)
                yield
                stages.settle()


class _Caches:
    """What a sequence remembers at one size, but for its text."""

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
        self.generator = Generator(engines["transformer"], config, tables, rows, cols)
        self.encode = encoder()
        self.decode = FeatureStream(
            engines["vae_decoder_first"], engines["vae_decoder_next"], takes="latents", gives="pixels"
        )
        self.vace: VaceBranch | None = None
        if config.num_vace_layers:
            self.vace = VaceBranch(engines, config, tables, inactive=encoder(), reactive=encoder())
        self.last_input: Tensor | None = None
        """The last frame of the chunk's input video, [1, 3, 1, H, W] on the host."""

    def reset(self) -> None:
        self.generator.reset()
        self.encode.reset()
        self.decode.reset()
        if self.vace is not None:
            self.vace.reset()
        self.last_input = None


@dataclass(frozen=True)
class _Conditions:
    """What the latents of one chunk are denoised under."""

    embedding: Tensor
    loras: LoraScales
    inputs: dict[str, Tensor]
    """The same as the transformer takes it."""
    context: VaceContext | None = None


class LongLiveSequence:
    """A sequence's state: see `filmstrip.runtime.sequences.SequenceState`.

    On a GPU all work is queued: the host is a step ahead, so that the GPU never waits for it.
    """

    def __init__(self, pipeline: LongLive) -> None:
        self._pipeline = pipeline
        self._config = pipeline.config
        self._prompts = PromptBlend()
        self._keys = TextKeys(pipeline.engines["text_kv"])
        self._latent_index = 0  # of the next latent frame, from the sequence's start: a reset does not set it back
        self._caches: _Caches | None = None

    def chunk(self, chunk: Chunk) -> Frames:
        """Make the next chunk.

        Raises:
            Cancelled: the client has taken the request back.
            InvalidField: the chunk has a size, an array or a LoRA that the pipeline wasn't made for.
            ModelError: it does not start afresh where it must; the frontend is at fault.
        """
        with self._pipeline.at_work(chunk):
            frames = self._make(chunk)
        seconds, num_steps = chunk.stages.seconds, chunk.report["denoise_steps"]
        if num_steps:
            seconds["denoise_step"] = seconds["denoise"] / num_steps
        return frames

    def _make(self, chunk: Chunk) -> Frames:
        told, stage = chunk.parameters, chunk.stages.stage
        num_latent_frames = self._config.latent_frames_per_chunk + is_doubled(chunk)
        # 1. A chunk that starts afresh forgets all caches and the text in force.
        self._check_vace(chunk)
        caches = self._caches_for(told)
        # 2. The text: encoded, blended, or on its way to another.
        with stage("text"):
            conditions, is_new_text = self._text(told)
        # 3. The input video as latents; how much noise they get may follow its motion.
        # 4. What the VACE branch is conditioned with.
        with stage("encode"):
            source, noise_scale = self._source(chunk, caches)
            if caches.vace is not None:
                conditions = replace(conditions, context=caches.vace.context(chunk, num_latent_frames))
        # 5. Under a new text, what is remembered is made anew: nothing where the chunk starts afresh.
        if is_new_text and told.mode is Mode.TEXT:
            with stage("cache"):
                caches.generator.recache(conditions.inputs)
        # 6. Noise, of the seed and the chunk's place alone; in video mode a share of it.
        noise = self._noise(told, num_latent_frames)
        latents = initial_latents(noise.draw(), source, noise_scale)
        # 7. Which timesteps.
        config = self._config
        own_steps = config.text_steps if told.mode is Mode.TEXT else config.video_steps
        steps = chunk_steps(told.mode, told.denoising_steps or own_steps, noise_scale, config.video_step_offset)
        chunk.report["denoise_steps"] = len(steps)
        # 8. Denoise; the cache is read only.
        plan = caches.generator.plan(num_latent_frames)
        latents = denoise(
            chunk,
            latents,
            steps,
            predict=self._predictor(told, caches, plan, conditions),
            draw_noise=noise.draw,
            sigma_at=self._pipeline.sigmas.at,
            x0_from_velocity=x0_from_velocity,
            renoise=renoise,
        )
        # 9. Remember the clean latents.
        chunk.stop_if_cancelled()
        with stage("cache"):
            caches.generator.write(plan, latents, conditions.inputs)
        self._latent_index += num_latent_frames
        # 10. Decode.
        with stage("decode"):
            pixels = caches.decode(latents)
            return to_frames(strip_pad(pixels) if is_doubled(chunk) else pixels)

    # -- The steps ------------------------------------------------------------------------------------------

    def _check_vace(self, chunk: Chunk) -> None:
        if self._config.num_vace_layers:
            return
        for spec in _OF_VACE:
            if spec.name in chunk.tensors:
                raise invalid(chunk.parameters.index, spec, _NO_VACE)
        if chunk.parameters.vace_use_input_video:
            raise invalid(chunk.parameters.index, INPUT_VIDEO, f"as VACE frames {_NO_VACE}")

    def _caches_for(self, told: ChunkParameters) -> _Caches:
        """The caches that the chunk goes on with: empty ones where it starts afresh."""
        size = (told.height, told.width)
        if size not in self._config.sizes:
            known = ", ".join(f"{height}x{width}" for height, width in self._config.sizes)
            raise InvalidField(
                f"chunk {told.index}: height: the engines make no {size[0]}x{size[1]}, they were made for {known}",
                "height",
            )
        if not told.reset:
            if self._caches is None or self._caches.size != size:
                raise ModelError(f"chunk {told.index} goes on from none of its size: it must start afresh")
            return self._caches
        self._prompts.reset()
        if self._caches is not None and self._caches.size == size:
            self._caches.reset()
        else:
            self._caches = None  # gives its memory back first
            self._caches = _Caches(self._pipeline, size)
        return self._caches

    def _text(self, told: ChunkParameters) -> tuple[_Conditions, bool]:
        """The text in force, and whether what is cached was made under another or is about to be."""
        embedding, changed = self._prompts.embedding(told, self._pipeline.encode_prompt)
        loras = LoraScales.of(told, self._config.loras, self._pipeline.device)
        inputs = self._keys.of(embedding, loras) | loras.inputs(self._pipeline.engines["transformer"])
        in_transition = told.transition is not None and told.transition.num_steps > 0
        return _Conditions(embedding, loras, inputs), changed or in_transition

    def _source(self, chunk: Chunk, caches: _Caches) -> tuple[Tensor | None, float]:
        """The input video's latents in video mode, None in text mode; the noise scale."""
        told = chunk.parameters
        if told.mode is Mode.TEXT:
            return None, told.noise_scale
        frames = chunk.tensor(INPUT_VIDEO)
        if len(frames) != told.num_frames:
            raise invalid(told.index, INPUT_VIDEO, f"has {len(frames)} frames, wanted {told.num_frames}")
        # The motion is measured on the host, where nothing has to be waited for.
        pixels = to_pixels(resize(frames, told.height, told.width))
        noise_scale = told.noise_scale
        if told.noise_controller:
            moved = motion(pixels, self._config.latent_frames_per_chunk, caches.last_input)
            noise_scale = controlled_noise_scale(moved, noise_scale)
        caches.last_input = pixels[:, :, -1:].clone()
        pixels = to_device(pixels, self._pipeline.device)
        return caches.encode(pad_first_frame(pixels) if is_doubled(chunk) else pixels), noise_scale

    def _noise(self, told: ChunkParameters, num_latent_frames: int) -> ChunkNoise:
        sides = (side // self._config.spatial_factor for side in (told.height, told.width))
        shape = (1, self._config.latent_channels, num_latent_frames, *sides)
        return ChunkNoise(told.seed, self._latent_index, shape, self._pipeline.device)

    def _predictor(
        self, told: ChunkParameters, caches: _Caches, plan: PassPlan, conditions: _Conditions
    ) -> Callable[[Tensor, float], Tensor]:
        """One step's velocity: the VACE branch gives hints on the very latents that the transformer denoises."""

        def predict(latents: Tensor, timestep: float) -> Tensor:
            hints = None
            if caches.vace is not None and conditions.context is not None:
                hints = caches.vace.hints(
                    conditions.context,
                    latents,
                    timestep,
                    embedding=conditions.embedding,
                    loras=conditions.loras,
                    scale=told.vace_context_scale,
                )
            return caches.generator.velocity(
                plan, latents, timestep, conditions.inputs, hints=hints, attention_bias=told.kv_cache_attention_bias
            )

        return predict


def load_longlive(folder: Path, *, device: torch.device, num_threads: int, cuda_graphs: bool = False) -> LongLive:
    """Read the configuration, the tokenizer and the engines.

    Args:
        folder: of a version of the model, such as `model_repository/longlive/1`.
        device: the CPU or a GPU.
        num_threads: for each engine on the CPU.
        cuda_graphs: see `filmstrip.runtime.engines.tensorrt.TensorRtEngine`.

    Raises:
        LoadFailed: one of them is missing or can't be used. For the operator: the message may name files.
    """
    try:
        config = PipelineConfig.read(folder)
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{folder / FILE_NAME} can't be read: {error}") from error
    try:
        loaded = load_engines(
            folder / "engines",
            device=device,
            num_threads=num_threads,
            graphs=graph_names(config),
            loras=config.loras,
            sizes=[f"{height}x{width}" for height, width in config.sizes],
            cuda_graphs=cuda_graphs,
        )
    except BadEngine as error:
        raise LoadFailed(str(error)) from error
    return LongLive(config, loaded.engines, Tokenizer(folder, config.text_len))
