"""The nodes Chunk Spec and Prompt Schedule: per-chunk overrides."""

from __future__ import annotations

from typing import Any

from . import widgets
from .chunk_specs import ChunkSpec, Specs
from .host import MAX_REFERENCES, arrays_of

MAX_CHUNK = 9999
_CHAIN = widgets.socket(
    "FILMSTRIP_CHUNK_SPECS", "Specs of other chunks. If one sets the same field of this chunk, this node wins."
)


class FilmstripChunkSpec:
    """Overrides for one chunk, added to those of other chunks."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = (
        "Overrides for one chunk. Chain several nodes, one for each chunk. Values apply to "
        "that chunk only; prompts stay in force until the next prompt."
    )
    RETURN_TYPES = ("FILMSTRIP_CHUNK_SPECS",)
    RETURN_NAMES = ("chunk_specs",)
    OUTPUT_TOOLTIPS = ("For another Chunk Spec, a Prompt Schedule or a Generate node.",)
    FUNCTION = "add"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        return {
            "required": {"chunk": widgets.integer(0, 0, MAX_CHUNK, "Index of the chunk, from 0.")},
            "optional": {
                "chunk_specs": _CHAIN,
                "text": widgets.text("New prompt from this chunk on. Empty: unchanged.", prompts=True),
                "prompts": widgets.text(f"New prompts to blend, instead of text. {widgets.WEIGHTED_PROMPTS}"),
                "prompt_interpolation_method": widgets.choice(widgets.METHOD, "How the prompts are blended."),
                "transition_target_prompts": widgets.text(
                    f"Prompts to move to gradually, from this chunk on. {widgets.WEIGHTED_PROMPTS}"
                ),
                "transition_num_steps": widgets.integer(
                    -1, -1, 10_000, "Length of the transition in chunks. -1: the default, 4. 0: immediate."
                ),
                "transition_method": widgets.choice(widgets.METHOD, "Interpolation between the prompts."),
                "chunk_seed": widgets.integer(-1, -1, widgets.MAX_SEED, "This chunk's seed. -1: the generation's."),
                "noise_scale": widgets.number(
                    -1,
                    -1,
                    1,
                    0.01,
                    "Share of noise in this chunk, for video-to-video. Below 0: that of the generation.",
                ),
                "noise_controller": widgets.choice(widgets.SWITCH, "Let the motion of the input set the noise scale."),
                "kv_cache_attention_bias": widgets.number(
                    -1, -1, 1, 0.01, "Weight of earlier frames, above 0. Below 0: the generation's."
                ),
                "reset_cache": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Restart at this chunk without history: a cut."},
                ),
                "manage_cache": widgets.choice(widgets.SWITCH, "Changed parameters may reset the cache."),
                "denoising_steps": widgets.DENOISING_STEPS,
                "lora_scales": widgets.LORA_SCALES,
                "vace_context_scale": widgets.number(
                    -1, -1, 2, 0.01, "Strength of the control in this chunk. Below 0: that of the generation."
                ),
                "vace_use_input_video": widgets.choice(
                    widgets.SWITCH, "The input video conditions the frames instead of being their source."
                ),
                "vace_temporally_locked": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "On: VACE frames and masks of another length than the chunk are trimmed, or padded "
                        "with their last frame. Off: resampled.",
                    },
                ),
                "first_frame_image": widgets.socket("IMAGE", "The chunk's first frame."),
                "last_frame_image": widgets.socket("IMAGE", "The chunk's last frame."),
                "vace_ref_images": widgets.socket("IMAGE", f"References, at most {MAX_REFERENCES}."),
                "vace_frames": widgets.socket("IMAGE", "This chunk's control frames, in the generation's size."),
                "vace_masks": widgets.socket(
                    "MASK", "Values above 0.5 are generated, the rest is kept. In the generation's size."
                ),
                "input_video": widgets.socket("IMAGE", "This chunk's own input video."),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(  # noqa: D102 - ComfyUI's interface
        cls,
        prompts: str | None = None,
        transition_target_prompts: str | None = None,
        denoising_steps: str | None = None,
        lora_scales: str | None = None,
    ) -> bool | str:
        return (
            widgets.validation_error(widgets.parse_weighted_prompts, prompts)
            or widgets.validation_error(widgets.parse_weighted_prompts, transition_target_prompts)
            or widgets.validation_error(widgets.parse_denoising_steps, denoising_steps)
            or widgets.validation_error(widgets.parse_lora_scales, lora_scales)
            or True
        )

    def add(
        self,
        *,
        chunk: int,
        chunk_specs: Specs = (),
        text: str = "",
        prompts: str = "",
        prompt_interpolation_method: str = widgets.DEFAULT,
        transition_target_prompts: str = "",
        transition_num_steps: int = -1,
        transition_method: str = widgets.DEFAULT,
        chunk_seed: int = -1,
        noise_scale: float = -1,
        noise_controller: str = widgets.DEFAULT,
        kv_cache_attention_bias: float = -1,
        reset_cache: bool = False,
        manage_cache: str = widgets.DEFAULT,
        denoising_steps: str = "",
        lora_scales: str = "",
        vace_context_scale: float = -1,
        vace_use_input_video: str = widgets.DEFAULT,
        vace_temporally_locked: bool = True,
        **images: Any,
    ) -> tuple[Specs]:
        """Add this chunk's spec.

        Raises:
            FilmstripError: a text or an image is invalid.
        """
        fields = widgets.without_none(
            text=text.strip() or None,
            prompts=widgets.parse_weighted_prompts(prompts) or None,
            prompt_interpolation_method=widgets.method(prompt_interpolation_method),
            transition_target_prompts=widgets.parse_weighted_prompts(transition_target_prompts) or None,
            transition_num_steps=widgets.unless_negative(transition_num_steps),
            transition_method=widgets.method(transition_method),
            seed=widgets.unless_negative(chunk_seed),
            noise_scale=widgets.unless_negative(noise_scale),
            noise_controller=widgets.switch(noise_controller),
            kv_cache_attention_bias=widgets.unless_negative(kv_cache_attention_bias),
            reset_cache=reset_cache or None,
            manage_cache=widgets.switch(manage_cache),
            denoising_steps=widgets.parse_denoising_steps(denoising_steps) or None,
            lora_scales=widgets.parse_lora_scales(lora_scales) or None,
            vace_context_scale=widgets.unless_negative(vace_context_scale),
            vace_use_input_video=widgets.switch(vace_use_input_video),
            vace_temporally_locked=None if vace_temporally_locked else False,
        )
        return ((*chunk_specs, ChunkSpec(chunk, fields, arrays_of(images))),)


class FilmstripPromptSchedule:
    """Prompts for many chunks, in one text."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = "Prompts for many chunks, one per line with its first chunk: '0: a cat', '4: a dog'."
    RETURN_TYPES = ("FILMSTRIP_CHUNK_SPECS",)
    RETURN_NAMES = ("chunk_specs",)
    OUTPUT_TOOLTIPS = ("For a Chunk Spec or a Generate node.",)
    FUNCTION = "add"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        tooltip = (
            "One prompt per line with its first chunk, such as '4: a dog'. Chunks count from 0; # starts a comment."
        )
        return {
            "required": {"schedule": widgets.text(tooltip, default="0: a cat\n4: a dog")},
            "optional": {"chunk_specs": _CHAIN},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, schedule: str | None = None) -> bool | str:  # noqa: D102 - ComfyUI's interface
        return widgets.validation_error(widgets.parse_schedule, schedule) or True

    def add(self, schedule: str, chunk_specs: Specs = ()) -> tuple[Specs]:
        """Add the schedule's specs.

        Raises:
            FilmstripError: a line does not look like `4: a dog`.
        """
        specs = (
            ChunkSpec(chunk, {"text": prompt}) for chunk, prompt in sorted(widgets.parse_schedule(schedule).items())
        )
        return ((*chunk_specs, *specs),)


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "FilmstripChunkSpec": FilmstripChunkSpec,
    "FilmstripPromptSchedule": FilmstripPromptSchedule,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FilmstripChunkSpec": "Filmstrip Chunk Spec",
    "FilmstripPromptSchedule": "Filmstrip Prompt Schedule",
}
