"""From a request and the facts of its uploads to a list of chunks: pure; what can be refused is refused here.

A plan says for each chunk which frames it adds to the output, what the model is told, and which bytes of which
upload its tensors are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from filmstrip.cache_policy import CacheInputs, reset_reason
from filmstrip.contract import NUM_SEEDS, ChunkParameters, Mode, PipelineFacts
from filmstrip.errors import InvalidField, counted
from filmstrip.wire import VideoShape

from .arrays import (
    MODEL_CHANNELS,
    ImagePlan,
    SpecAt,
    TensorPlan,
    Uploads,
    images,
    own_video,
    vace_arrays,
    whole_input,
)
from .features import check_features, frame_size, lora_scales, unused_fields
from .prompts import ChunkPrompts, StickyPrompts
from .schema import ChunkSpec, GenerateRequest


@dataclass(frozen=True)
class Chain:
    """The pipelines that each chunk of a generation passes."""

    pipeline: PipelineFacts
    pre_processor: PipelineFacts | None = None
    post_processor: PipelineFacts | None = None

    @property
    def stages(self) -> tuple[PipelineFacts, ...]:
        """The pipelines in the order in which a chunk passes them."""
        parts = (self.pre_processor, self.pipeline, self.post_processor)
        return tuple(part for part in parts if part is not None)


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk.

    Attributes:
        parameters: what the model is told.
        tensors: arrays read from uploads.
        images: arrays decoded from assets and data URLs.
        start: the chunk's first frame in the output.
        keep: frames that go to the output; the last chunk is trimmed.
    """

    parameters: ChunkParameters
    tensors: tuple[TensorPlan, ...]
    images: tuple[ImagePlan, ...]
    start: int
    keep: int

    @property
    def input_bytes(self) -> int:
        """Bytes of all arrays that go in."""
        return sum(tensor.num_bytes for tensor in self.tensors) + sum(image.num_bytes for image in self.images)

    @property
    def frames(self) -> VideoShape:
        """Shape of the frames that each stage answers with."""
        told = self.parameters
        return VideoShape(told.num_frames, told.height, told.width, MODEL_CHANNELS)


@dataclass(frozen=True)
class Plan:
    """A whole generation.

    Attributes:
        chain: the pipelines that each chunk passes.
        output: shape of the output.
        chunks: in order.
        seed: the request's.
        unused: fields of the request that the pipeline has no use for, sorted.
    """

    chain: Chain
    output: VideoShape
    chunks: tuple[ChunkPlan, ...]
    seed: int
    unused: tuple[str, ...]


def make_plan(request: GenerateRequest, chain: Chain, uploads: Uploads, max_chunk_bytes: int) -> Plan:
    """Plan a generation.

    Raises:
        InvalidField: the request cannot be served; the message names chunk and field.
    """
    return _Planner(request, chain, uploads, max_chunk_bytes).plan()


class _Planner:
    def __init__(self, request: GenerateRequest, chain: Chain, uploads: Uploads, max_chunk_bytes: int) -> None:
        self.request = request
        self.chain = chain
        self.pipeline = chain.pipeline
        self.uploads = uploads
        self.max_chunk_bytes = max_chunk_bytes
        self.specs = _by_chunk(request)

    def plan(self) -> Plan:
        check_features(self.request, self.pipeline)
        self._check_processors()
        self._check_input()
        lora_scales(self.request.lora_scales, self.pipeline, "lora_scales")
        self.size = self._size()
        chunks = tuple(self._chunks())
        self._check_indices(len(chunks))
        output = VideoShape(self.request.num_frames, *self.size, MODEL_CHANNELS)
        return Plan(self.chain, output, chunks, self.request.seed, unused_fields(self.request, self.pipeline))

    # -- What is checked once ---------------------------------------------------------------------------

    def _check_processors(self) -> None:
        for name in ("pre_processor", "post_processor"):
            facts: PipelineFacts | None = getattr(self.chain, name)
            if facts is not None and not facts.features.frame_processor:
                raise InvalidField(f"{name}_id: {facts.id} is not a frame processor", f"{name}_id")

    def _check_input(self) -> None:
        shape = self.uploads.input_shape
        if shape is not None and shape.channels != MODEL_CHANNELS:
            channels = counted(shape.channels, "channel")
            raise InvalidField(f"input_path: the video has {channels}, the models take {MODEL_CHANNELS}", "input_path")

    def _size(self) -> tuple[int, int]:
        """Height and width of the generation."""
        height, width = frame_size(self.pipeline, (self.request.height, self.request.width), self._input_size())
        if height is None or width is None:
            raise InvalidField(f"input_path: missing, {self.pipeline.id} needs an input video", "input_path")
        return height, width

    def _input_size(self) -> tuple[int | None, int | None]:
        """Height and width of the whole-video input, else of the first video that a chunk has of its own."""
        if self.uploads.input_shape is not None:
            return self.uploads.input_shape.height, self.uploads.input_shape.width
        shapes = (at.spec.input_video_shape for _, at in sorted(self.specs.items()))
        first = next((shape for shape in shapes if shape), None)
        return (first[1], first[2]) if first else (None, None)

    def _check_indices(self, num_chunks: int) -> None:
        for index, at in self.specs.items():
            if index >= num_chunks:
                frames = f"{counted(self.request.num_frames, 'frame')} of {self.pipeline.id}"
                chunks = counted(num_chunks, "chunk")
                raise at.refuse("chunk", f"no chunk {index}; the generation has {chunks} ({frames}), numbered from 0")

    # -- The walk through the chunks --------------------------------------------------------------------

    def _chunks(self) -> Iterator[ChunkPlan]:
        sticky = StickyPrompts(self.request)
        previous: CacheInputs | None = None
        index = start = latent_index = 0
        while start < self.request.num_frames:
            at = self.specs.get(index)
            chunk = _Chunk(self, index, at, sticky.at(at.spec if at else None))
            now = chunk.cache_inputs()
            if self.pipeline.features.cache and self.pipeline.latent_frames is not None:
                first = reset_reason(previous, now, latent_index, self.pipeline.latent_frames) is not None
            else:
                first = previous is None
            conditioned = chunk.has_vace_arrays
            count = self.pipeline.chunk_frames(chunk.mode, first=first, conditioned=conditioned)
            latents = self.pipeline.chunk_latents(chunk.mode, first=first, conditioned=conditioned)
            latent_index = latents if first else latent_index + latents
            plan = chunk.plan(count, start, first=first)
            yield plan
            start += plan.keep
            index += 1
            previous = now


class _Chunk:
    """One chunk of the walk: its values are the spec's where it has them, else the request's."""

    def __init__(self, planner: _Planner, index: int, at: SpecAt | None, prompts: ChunkPrompts) -> None:
        self.planner = planner
        self.request = planner.request
        self.pipeline = planner.pipeline
        self.index = index
        self.at = at or SpecAt(ChunkSpec(chunk=index), -1)
        self.spec = self.at.spec
        self.prompts = prompts
        self._check_spec()
        has_input = planner.uploads.input_shape is not None or self.spec.input_video_shape is not None
        self.input_is_vace = bool(self.value("vace_use_input_video"))
        self.mode = Mode.VIDEO if has_input and not self.input_is_vace else Mode.TEXT
        needs_input = self.input_is_vace or planner.chain.pre_processor is not None
        if not has_input and (needs_input or Mode.TEXT not in self.pipeline.modes):
            who = "the pre-processor" if planner.chain.pre_processor else self.pipeline.id
            why = "vace_use_input_video" if self.input_is_vace else who
            raise InvalidField(
                f"input_path: missing, {why} needs an input video and chunk {index} has none", "input_path"
            )
        if self.mode not in self.pipeline.modes:
            why = f"{self.pipeline.id} takes no input video"
            if self.spec.input_video_shape is not None:
                raise self.at.refuse("input_video_shape", why)
            raise InvalidField(f"input_path: {why}", "input_path")
        self.has_vace_arrays = (
            self.input_is_vace or self.spec.vace_frames_shape is not None or self.spec.vace_masks_shape is not None
        )

    def value(self, name: str) -> Any:
        """The spec's value, or the request's where the spec has none."""
        own = getattr(self.spec, name)
        return getattr(self.request, name) if own is None else own

    def cache_inputs(self) -> CacheInputs:
        spec = self.spec
        key_images = bool(spec.vace_ref_images or spec.first_frame_image or spec.last_frame_image)
        steps = self.value("denoising_steps")
        return CacheInputs(
            mode=self.mode,
            conditioned=self.has_vace_arrays or key_images,
            prompts=self.prompts.target,
            in_transition=self.prompts.in_transition,
            denoising_steps=tuple(steps) if steps else None,
            manage_cache=self.value("manage_cache"),
            reset_cache=spec.reset_cache,
        )

    def plan(self, count: int, start: int, *, first: bool) -> ChunkPlan:
        """The chunk's plan, now that its number of frames is known."""
        shapes = self.planner.uploads.image_shapes
        steps = self.value("denoising_steps")
        parameters = ChunkParameters(
            index=self.index,
            num_frames=count,
            height=self.planner.size[0],
            width=self.planner.size[1],
            mode=self.mode,
            reset=first,
            prompts=self.prompts.prompts,
            prompt_interpolation_method=self.prompts.method,
            transition=self.prompts.transition,
            seed=self.value("seed") % NUM_SEEDS,
            noise_scale=self.value("noise_scale"),
            noise_controller=bool(self.value("noise_controller")),
            kv_cache_attention_bias=self.value("kv_cache_attention_bias"),
            denoising_steps=tuple(steps) if steps else None,
            lora_scales=self._lora_scales(),
            vace_context_scale=self.value("vace_context_scale"),
            vace_use_input_video=self.input_is_vace,
            vace_temporally_locked=self.spec.vace_temporally_locked,
            ref_image_shapes=tuple(shapes[source] for source in self.spec.vace_ref_images or ()),
        )
        chunk = ChunkPlan(
            parameters=parameters,
            tensors=tuple(self._tensors(count)),
            images=tuple(images(self.spec, shapes)),
            start=start,
            keep=min(count, self.request.num_frames - start),
        )
        self._check_bytes(chunk)
        return chunk

    def _lora_scales(self) -> dict[str, float]:
        if self.spec.lora_scales is None:
            return lora_scales(self.request.lora_scales, self.pipeline, "lora_scales")
        field = f"chunk_specs[{self.at.position}].lora_scales"
        return lora_scales(self.spec.lora_scales, self.pipeline, field, self.index)

    def _check_bytes(self, chunk: ChunkPlan) -> None:
        """Refuse a chunk whose arrays are too large, naming the largest of them."""
        frames = len(self.planner.chain.stages) * chunk.frames.num_bytes
        limit = self.planner.max_chunk_bytes
        needed = chunk.input_bytes + frames
        if needed > limit:
            why = f"the arrays of chunk {self.index} take {counted(needed, 'byte')}, over the limit of {limit}"
            largest = max(chunk.tensors, key=lambda tensor: tensor.num_bytes, default=None)
            shape = f"{largest.spec.name}_shape" if largest else ""
            if largest and largest.num_bytes > frames and getattr(self.spec, shape) is not None:
                raise self.at.refuse(shape, why)
            raise InvalidField(f"height: {why}", "height")

    def _tensors(self, count: int) -> Iterator[TensorPlan]:
        uploads, size = self.planner.uploads, self.planner.size
        any_size = self.pipeline.height is None or self.planner.chain.pre_processor is not None
        own = own_video(self.at, count, size, any_size=any_size, blob_bytes=uploads.blob_bytes)
        if own is not None:
            yield own
        elif uploads.input_shape is not None:
            chunk_size = self.pipeline.chunk_size
            yield whole_input(self.index, count, chunk_size, uploads.input_shape, self.request.num_frames)
        yield from vace_arrays(self.at, count, size, uploads.blob_bytes)

    def _check_spec(self) -> None:
        spec = self.spec
        if spec.text is not None and spec.prompts is not None:
            raise self.at.refuse("prompts", "text and prompts exclude each other")
        most = self.pipeline.max_references
        if most is not None and len(spec.vace_ref_images or ()) > most:
            raise self.at.refuse("vace_ref_images", f"{self.pipeline.id} takes at most {counted(most, 'image')}")


def _by_chunk(request: GenerateRequest) -> dict[int, SpecAt]:
    specs: dict[int, SpecAt] = {}
    for position, spec in enumerate(request.chunk_specs or ()):
        at = SpecAt(spec, position)
        if spec.chunk in specs:
            other = f"chunk_specs[{specs[spec.chunk].position}]"
            raise at.refuse("chunk", f"{other} is for chunk {spec.chunk} too")
        specs[spec.chunk] = at
    return specs
