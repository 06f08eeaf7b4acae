"""The plan of a generation: a pure function of the request, the pipelines and the shapes of the uploads.

A plan has for each chunk its frames in the output, the model's parameters, and the bytes of the uploads that its
tensors consist of. It refuses every request that these properties show to be impossible.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from filmstrip.contract import (
    NUM_SEEDS,
    ChunkLength,
    ChunkParameters,
    Interpolation,
    Mode,
    PipelineSpec,
    Prompt,
    Transition,
)
from filmstrip.errors import InvalidField, counted
from filmstrip.wire import VideoShape

from .array_plan import (
    MODEL_CHANNELS,
    ImagePlan,
    InputSizes,
    SpecRef,
    TensorPlan,
    image_plans,
    own_video,
    vace_arrays,
    whole_input,
)
from .features import check_features, frame_size, lora_scales, unused_fields
from .schema import ChunkSpec, GenerateRequest, WeightedPrompt, options_for

DEFAULT_TRANSITION_STEPS = 4


@dataclass(frozen=True)
class Chain:
    """The pipelines that each chunk of a generation passes."""

    pipeline: PipelineSpec
    pre_processor: PipelineSpec | None = None
    post_processor: PipelineSpec | None = None

    @property
    def pipelines(self) -> tuple[PipelineSpec, ...]:
        """The pipelines in the order in which a chunk passes them."""
        pipelines = (self.pre_processor, self.pipeline, self.post_processor)
        return tuple(pipeline for pipeline in pipelines if pipeline is not None)


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk.

    Attributes:
        parameters: for the model.
        tensors: arrays read from uploads.
        images: arrays decoded from assets and data URLs.
        first_frame: the chunk's first frame in the output.
        num_kept: frames that go to the output; the last chunk is trimmed.
    """

    parameters: ChunkParameters
    tensors: tuple[TensorPlan, ...]
    images: tuple[ImagePlan, ...]
    first_frame: int
    num_kept: int

    @property
    def input_bytes(self) -> int:
        """Bytes of all arrays that go in."""
        return sum(tensor.num_bytes for tensor in self.tensors) + sum(image.num_bytes for image in self.images)

    @property
    def frames_shape(self) -> VideoShape:
        """Shape of the frames that each pipeline returns."""
        params = self.parameters
        return VideoShape(params.num_frames, params.height, params.width, MODEL_CHANNELS)


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


# -- Prompts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChunkPrompts:
    """The prompts of one chunk.

    Attributes:
        prompts: in force before any transition.
        transition: under way, or None.
    """

    prompts: tuple[Prompt, ...]
    transition: Transition | None

    @property
    def target(self) -> tuple[Prompt, ...]:
        """The prompts that the chunk moves to or stays at."""
        return self.transition.target if self.transition else self.prompts

    @property
    def in_transition(self) -> bool:
        """The chunk moves from one embedding to another; a transition of 0 steps is an immediate change of prompt."""
        return self.transition is not None and self.transition.num_steps > 0


class StickyPrompts:
    """The prompts of a request, chunk by chunk: they stay in force until others are set."""

    def __init__(self, request: GenerateRequest) -> None:
        self._prompts = _as_prompts(request.prompt)
        self._transition: Transition | None = None

    def next_chunk(self, spec: ChunkSpec | None) -> ChunkPrompts:
        """The prompts of the next chunk; its spec may set new ones."""
        self._advance()
        if spec is not None:
            new = spec.prompts if spec.text is None else spec.text
            if new is not None:
                self._prompts = _as_prompts(new)
                self._transition = None
            if spec.transition_target_prompts is not None:
                steps = spec.transition_num_steps
                self._transition = Transition(
                    target=_as_prompts(spec.transition_target_prompts),
                    num_steps=DEFAULT_TRANSITION_STEPS if steps is None else steps,
                    step=0,
                    method=spec.transition_method or Interpolation.LINEAR,
                )
        return ChunkPrompts(self._prompts, self._transition)

    def _advance(self) -> None:
        """Move the transition of the previous chunk one step on, or finish it."""
        now = self._transition
        if now is None:
            return
        if now.step + 1 >= now.num_steps:
            self._prompts, self._transition = now.target, None
        else:
            self._transition = Transition(now.target, now.num_steps, now.step + 1, now.method)


def _as_prompts(prompts: str | list[WeightedPrompt]) -> tuple[Prompt, ...]:
    if isinstance(prompts, str):
        return (Prompt(prompts),)
    return tuple(Prompt(prompt.text, prompt.weight) for prompt in prompts)


# -- Resets -----------------------------------------------------------------------------------------------

MAX_LATENTS_SINCE_RESET = 1024
"""A chunk that would bring the latent frames since the last reset to this many is reset.

Wan 2.1's RoPE tables, `rope_params(1024, ...)`, have this many positions. The runtime computes RoPE for any position;
the limit keeps it to those that the original code can generate.
"""


@dataclass(frozen=True)
class ResetInputs:
    """What decides whether a chunk is reset: its own inputs, compared with those of the chunk before.

    Attributes:
        mode: whether the chunk's latents start from noise (text) or from an input video.
        has_vace_arrays: the chunk has VACE frames or masks; references and key images alone are no reason for a reset.
        prompts: the prompts in force; within a transition, its target.
        in_transition: the chunk lies within a transition of prompts.
        denoising_steps: the requested timesteps, None for the pipeline's own.
        manage_cache: a change of parameters may cause a reset.
        reset_cache: the request asks for a reset.
    """

    mode: Mode
    has_vace_arrays: bool
    prompts: tuple[Prompt, ...]
    in_transition: bool
    denoising_steps: tuple[int, ...] | None
    manage_cache: bool
    reset_cache: bool


def needs_reset(
    previous: ResetInputs | None, current: ResetInputs, latents_since_reset: int, latent_frames: int
) -> bool:
    """Whether a chunk starts with empty caches: the model obeys the `reset` of its parameters.

    A reset clears the KV cache, the VAE feature caches, the blend of prompts and the frame index, and turns its chunk
    into a first chunk again (for longlive: 9 pixel frames in text mode instead of 12).

    A change of the noise scale is no reason: a ramp over several chunks is smooth.

    Args:
        previous: the chunk before, None for the first chunk of a generation.
        current: the chunk in question.
        latents_since_reset: latent frames generated since the last reset.
        latent_frames: latent frames of a chunk that is not a first one.
    """
    if previous is None or current.reset_cache or current.mode is not previous.mode:
        return True
    if latents_since_reset >= MAX_LATENTS_SINCE_RESET - latent_frames:
        return True
    if not current.manage_cache:
        return False
    new_prompt = current.prompts != previous.prompts and not current.in_transition
    return current.denoising_steps != previous.denoising_steps or (
        new_prompt and (current.mode is Mode.VIDEO or current.has_vace_arrays)
    )


# -- Chunks -------------------------------------------------------------------------------------------------


def make_plan(request: GenerateRequest, chain: Chain, inputs: InputSizes, max_chunk_bytes: int) -> Plan:
    """Plan a generation.

    Raises:
        InvalidField: the request cannot be served; the message names chunk and field.
    """
    return _RequestPlanner(request, chain, inputs, max_chunk_bytes).plan()


class _RequestPlanner:
    def __init__(self, request: GenerateRequest, chain: Chain, inputs: InputSizes, max_chunk_bytes: int) -> None:
        self.request = request
        self.chain = chain
        self.pipeline = chain.pipeline
        self.inputs = inputs
        self.max_chunk_bytes = max_chunk_bytes
        self.specs = _by_chunk(request)

    def plan(self) -> Plan:
        check_features(self.request, self.pipeline)
        self._check_processors()
        self._check_input()
        self.lora_scales = lora_scales(self.request.lora_scales, self.pipeline, "lora_scales")
        self.size = self._size()
        chunks = tuple(self._chunks())
        self._check_indices(len(chunks))
        output = VideoShape(self.request.num_frames, *self.size, MODEL_CHANNELS)
        return Plan(self.chain, output, chunks, self.request.seed, unused_fields(self.request, self.pipeline))

    # -- Checks of the whole request ---------------------------------------------------------------------------

    def _check_processors(self) -> None:
        for name in ("pre_processor", "post_processor"):
            spec: PipelineSpec | None = getattr(self.chain, name)
            if spec is not None and not spec.features.frame_processor:
                raise InvalidField(f"{name}_id: {spec.id} is not a frame processor", f"{name}_id")

    def _check_input(self) -> None:
        shape = self.inputs.input_shape
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
        """Height and width of the whole-video input, else of the first video of a single chunk."""
        if self.inputs.input_shape is not None:
            return self.inputs.input_shape.height, self.inputs.input_shape.width
        shapes = (spec_ref.spec.input_video_shape for _, spec_ref in sorted(self.specs.items()))
        first = next((shape for shape in shapes if shape), None)
        return (first[1], first[2]) if first else (None, None)

    def _check_indices(self, num_chunks: int) -> None:
        for index, spec_ref in self.specs.items():
            if index >= num_chunks:
                frames = f"{counted(self.request.num_frames, 'frame')} of {self.pipeline.id}"
                chunks = counted(num_chunks, "chunk")
                raise spec_ref.refuse(
                    "chunk", f"no chunk {index}; the generation has {chunks} ({frames}), numbered from 0"
                )

    # -- Chunks, one after the other --------------------------------------------------------------------

    def _chunks(self) -> Iterator[ChunkPlan]:
        sticky = StickyPrompts(self.request)
        previous: ResetInputs | None = None
        index = first_frame = latents_since_reset = 0
        while first_frame < self.request.num_frames:
            spec_ref = self.specs.get(index)
            chunk = _ChunkPlanner(self, index, spec_ref, sticky.next_chunk(spec_ref.spec if spec_ref else None))
            now = chunk.reset_inputs()
            if self.pipeline.features.cache and self.pipeline.latent_frames is not None:
                reset = needs_reset(previous, now, latents_since_reset, self.pipeline.latent_frames)
            else:
                reset = previous is None
            length = self.pipeline.chunk_length(chunk.mode, reset=reset, has_vace_arrays=chunk.has_vace_arrays)
            latents_since_reset = length.num_latent_frames + (0 if reset else latents_since_reset)
            plan = chunk.plan(length, first_frame, reset=reset)
            yield plan
            first_frame += plan.num_kept
            index += 1
            previous = now


class _ChunkPlanner:
    """One chunk: its options are the spec's where it sets them, else the request's."""

    def __init__(self, planner: _RequestPlanner, index: int, spec_ref: SpecRef | None, prompts: ChunkPrompts) -> None:
        self.planner = planner
        self.request = planner.request
        self.pipeline = planner.pipeline
        self.index = index
        self.spec_ref = spec_ref or SpecRef(ChunkSpec(chunk=index), -1)
        self.spec = self.spec_ref.spec
        self.options = options_for(self.request, self.spec)
        self.prompts = prompts
        self._check_spec()
        has_input = planner.inputs.input_shape is not None or self.spec.input_video_shape is not None
        self.input_is_vace = bool(self.options.vace_use_input_video)
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
                raise self.spec_ref.refuse("input_video_shape", why)
            raise InvalidField(f"input_path: {why}", "input_path")
        self.has_vace_arrays = (
            self.input_is_vace or self.spec.vace_frames_shape is not None or self.spec.vace_masks_shape is not None
        )

    def reset_inputs(self) -> ResetInputs:
        spec = self.spec
        steps = self.options.denoising_steps
        return ResetInputs(
            mode=self.mode,
            has_vace_arrays=self.has_vace_arrays,
            prompts=self.prompts.target,
            in_transition=self.prompts.in_transition,
            denoising_steps=tuple(steps) if steps else None,
            manage_cache=self.options.manage_cache,
            reset_cache=spec.reset_cache,
        )

    def plan(self, length: ChunkLength, first_frame: int, *, reset: bool) -> ChunkPlan:
        """The chunk's plan, once its number of frames is known."""
        num_frames = length.num_frames
        shapes = self.planner.inputs.image_shapes
        steps = self.options.denoising_steps
        parameters = ChunkParameters(
            index=self.index,
            num_frames=num_frames,
            height=self.planner.size[0],
            width=self.planner.size[1],
            mode=self.mode,
            reset=reset,
            pad_first_frame=length.pad_first_frame,
            prompts=self.prompts.prompts,
            prompt_interpolation_method=self.options.prompt_interpolation_method,
            transition=self.prompts.transition,
            seed=self.options.seed % NUM_SEEDS,
            noise_scale=self.options.noise_scale,
            noise_controller=bool(self.options.noise_controller),
            kv_cache_attention_bias=self.options.kv_cache_attention_bias,
            denoising_steps=tuple(steps) if steps else None,
            lora_scales=self._lora_scales(),
            vace_context_scale=self.options.vace_context_scale,
            vace_use_input_video=self.input_is_vace,
            vace_temporally_locked=self.spec.vace_temporally_locked,
            ref_image_shapes=tuple(shapes[name] for name in self.spec.vace_ref_images or ()),
        )
        chunk = ChunkPlan(
            parameters=parameters,
            tensors=tuple(self._tensors(num_frames)),
            images=tuple(image_plans(self.spec, shapes)),
            first_frame=first_frame,
            num_kept=min(num_frames, self.request.num_frames - first_frame),
        )
        self._check_bytes(chunk)
        return chunk

    def _lora_scales(self) -> dict[str, float]:
        if "lora_scales" not in self.spec.model_fields_set:
            return self.planner.lora_scales
        field = f"chunk_specs[{self.spec_ref.position}].lora_scales"
        return lora_scales(self.spec.lora_scales, self.pipeline, field, self.index)

    def _check_bytes(self, chunk: ChunkPlan) -> None:
        """Refuse a chunk whose arrays are too large, and name the largest of them."""
        frames_bytes = len(self.planner.chain.pipelines) * chunk.frames_shape.num_bytes
        limit = self.planner.max_chunk_bytes
        needed = chunk.input_bytes + frames_bytes
        if needed > limit:
            why = f"the arrays of chunk {self.index} take {counted(needed, 'byte')}, over the limit of {limit}"
            largest = max(chunk.tensors, key=lambda tensor: tensor.num_bytes, default=None)
            shape = f"{largest.spec.name}_shape" if largest else ""
            if largest and largest.num_bytes > frames_bytes and getattr(self.spec, shape) is not None:
                raise self.spec_ref.refuse(shape, why)
            raise InvalidField(f"height: {why}", "height")

    def _tensors(self, num_frames: int) -> Iterator[TensorPlan]:
        inputs, size = self.planner.inputs, self.planner.size
        any_size = self.pipeline.height is None or self.planner.chain.pre_processor is not None
        own = own_video(self.spec_ref, num_frames, size, any_size=any_size, blob_bytes=inputs.blob_bytes)
        if own is not None:
            yield own
        elif inputs.input_shape is not None:
            chunk_size = self.pipeline.chunk_size
            yield whole_input(self.index, num_frames, chunk_size, inputs.input_shape, self.request.num_frames)
        yield from vace_arrays(self.spec_ref, num_frames, size, inputs.blob_bytes)

    def _check_spec(self) -> None:
        spec = self.spec
        if spec.text is not None and spec.prompts is not None:
            raise self.spec_ref.refuse("prompts", "text and prompts exclude each other")
        most = self.pipeline.max_references
        if most is not None and len(spec.vace_ref_images or ()) > most:
            raise self.spec_ref.refuse("vace_ref_images", f"{self.pipeline.id} takes at most {counted(most, 'image')}")


def _by_chunk(request: GenerateRequest) -> dict[int, SpecRef]:
    specs: dict[int, SpecRef] = {}
    for position, spec in enumerate(request.chunk_specs or ()):
        spec_ref = SpecRef(spec, position)
        if spec.chunk in specs:
            other = f"chunk_specs[{specs[spec.chunk].position}]"
            raise spec_ref.refuse("chunk", f"{other} is for chunk {spec.chunk} too")
        specs[spec.chunk] = spec_ref
    return specs
