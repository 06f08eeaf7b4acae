"""The fields of a request, typed: what `generate` and `BlobBuilder.chunk` take; and limits that both sides know.

The server's limits and defaults are in the schema of its API; docs/api.md says what each field does.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypedDict

MAX_SEED = 2**64 - 1
"""The largest seed of a request or a ChunkSpec; the smallest is 0."""

ID_PATTERN = r"[A-Za-z0-9_-]{1,64}"
"""The id of a generation."""

KEY_PATTERN = r"[ -~]{1,255}"
"""An idempotency key: printable ASCII."""

MAX_PAGE = 100
"""Most generations in one answer of a list."""

Interpolation = Literal["linear", "slerp"]


class WeightedPrompt(TypedDict, total=False):
    """A prompt and its weight, 0 to 100, among those it is blended with; 100 unless set."""

    text: Required[str]
    weight: float


class SharedFields(TypedDict, total=False):
    """Fields of a request that a ChunkSpec can override for its chunk."""

    prompt_interpolation_method: Interpolation | None
    seed: int | None
    noise_scale: float | None
    noise_controller: bool | None
    manage_cache: bool | None
    kv_cache_attention_bias: float | None
    denoising_steps: Sequence[int] | None
    lora_scales: Mapping[str, float] | None
    vace_context_scale: float | None
    vace_use_input_video: bool | None


class ChunkFields(SharedFields, total=False):
    """Fields of a ChunkSpec, without its index and its arrays."""

    text: str | None
    prompts: Sequence[WeightedPrompt] | None
    transition_target_prompts: Sequence[WeightedPrompt] | None
    transition_num_steps: int | None
    transition_method: Interpolation | None
    first_frame_image: str | None
    last_frame_image: str | None
    vace_ref_images: Sequence[str] | None
    reset_cache: bool
    vace_temporally_locked: bool


class ChunkSpec(ChunkFields, total=False):
    """What one chunk overrides; the offsets count bytes from the start of the blob."""

    chunk: Required[int]
    vace_frames_shape: Sequence[int] | None
    vace_frames_offset: int | None
    vace_masks_shape: Sequence[int] | None
    vace_masks_offset: int | None
    input_video_shape: Sequence[int] | None
    input_video_offset: int | None


class GenerateFields(SharedFields, total=False):
    """Fields of a GenerateRequest; None counts as not set."""

    pipeline_id: str
    prompt: str | Sequence[WeightedPrompt]
    num_frames: int | None
    height: int | None
    width: int | None
    input_path: str | None
    data_blob_path: str | None
    pre_processor_id: str | None
    post_processor_id: str | None
    chunk_specs: Sequence[ChunkSpec] | None
