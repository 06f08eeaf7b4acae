"""The nodes Chunk Spec, Prompt Schedule and LoRA: what changes during a video."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import widgets
from .chunk_specs import UNITS, ChunkSpec, Lora, Loras, ScheduledPrompt, Specs
from .errors import FilmstripError
from .host import MAX_REFERENCES, arrays_of
from .pipeline_names import NO_LORAS, PIPELINE_NAMES

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
    SEARCH_ALIASES = ["keyframe", "first frame", "last frame", "transition", "cut", "per chunk"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        types: dict[str, Any] = {
            "required": {"chunk": widgets.integer(0, 0, MAX_CHUNK, "Index of the chunk, from 0.")},
            "optional": {
                "chunk_specs": _CHAIN,
                "text": widgets.text(
                    f"New prompt from this chunk on. Empty: unchanged. {widgets.BLENDS}", prompts=True
                ),
                "first_frame_image": widgets.socket("IMAGE", "The chunk's first frame."),
                "last_frame_image": widgets.socket("IMAGE", "The chunk's last frame."),
                "vace_ref_images": widgets.socket("IMAGE", f"References, at most {MAX_REFERENCES}."),
                "vace_frames": widgets.socket("IMAGE", "This chunk's control frames."),
                "vace_masks": widgets.socket("MASK", "White (above 0.5) is generated, the rest is kept."),
                "input_video": widgets.socket("IMAGE", "This chunk's own input video."),
                "prompts": widgets.linked_text(
                    f"New prompts to blend as a text from another node. {widgets.WEIGHTED_PROMPTS}"
                ),
                "lora_scales": widgets.lora_scales(),
                "reset_cache": widgets.boolean(False, "On: restart at this chunk without history, as a cut does."),
                "chunk_seed": widgets.integer(
                    -1, -1, widgets.MAX_SEED, "This chunk's seed. -1: the generation's.", advanced=True
                ),
                "transition_target_prompts": widgets.text(
                    f"Prompts to move to gradually, from this chunk on. {widgets.WEIGHTED_PROMPTS}", advanced=True
                ),
                "transition_num_steps": widgets.integer(
                    -1, -1, 10_000, "Length of the transition in chunks. -1: the default, 4. 0: at once.", advanced=True
                ),
                "transition_method": widgets.choice(
                    widgets.METHOD, "How the transition goes from one prompt to the other.", advanced=True
                ),
                "prompt_interpolation_method": widgets.choice(
                    widgets.METHOD, "How prompts with weights are blended.", advanced=True
                ),
                "noise_scale": widgets.number(
                    -1,
                    -1,
                    1,
                    0.01,
                    "Noise in this chunk, video to video only. Below 0: the generation's.",
                    advanced=True,
                ),
                "noise_controller": widgets.choice(
                    widgets.SWITCH, "On: the input's motion sets the noise.", advanced=True
                ),
                "kv_cache_attention_bias": widgets.number(
                    -1, -1, 1, 0.01, "How much earlier frames count, above 0. Below 0: the generation's.", advanced=True
                ),
                "manage_cache": widgets.choice(
                    widgets.SWITCH,
                    "On: what the model remembers is dropped where parameters change, if it must be.",
                    advanced=True,
                ),
                "denoising_steps": widgets.denoising_steps(),
                "vace_context_scale": widgets.number(
                    -1,
                    -1,
                    2,
                    0.01,
                    "How closely this chunk follows control frames. Below 0: the generation's.",
                    advanced=True,
                ),
                "vace_use_input_video": widgets.choice(
                    widgets.SWITCH,
                    "On: the input video guides the new frames, instead of being changed into them.",
                    advanced=True,
                ),
                "vace_temporally_locked": widgets.boolean(
                    True,
                    "On: control frames and masks of another length than the chunk are trimmed, or padded with their"
                    " last frame. Off: they are stretched.",
                    advanced=True,
                ),
            },
        }
        return widgets.labelled(types)

    @classmethod
    def VALIDATE_INPUTS(  # noqa: D102 - ComfyUI's interface
        cls,
        text: str | None = None,
        prompts: str | None = None,
        transition_target_prompts: str | None = None,
        denoising_steps: str | None = None,
        lora_scales: str | None = None,
    ) -> bool | str:
        return (
            widgets.validation_error(widgets.parse_prompt, text)
            or widgets.validation_error(widgets.parse_weighted_prompts, prompts)
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
        prompt = widgets.parse_prompt(text.strip())
        fields = widgets.without_none(
            text=prompt or None if isinstance(prompt, str) else None,
            prompts=widgets.parse_weighted_prompts(prompts) or (prompt if isinstance(prompt, list) else None),
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
    """Prompts for different times of the video, in one text."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = (
        "Prompts for different times of the video, one per line: '0: a cat', '4: a dog'. The numbers are chunks, "
        "frames or seconds."
    )
    RETURN_TYPES = ("FILMSTRIP_CHUNK_SPECS",)
    RETURN_NAMES = ("chunk_specs",)
    OUTPUT_TOOLTIPS = ("For a Chunk Spec or a Generate node.",)
    FUNCTION = "add"
    SEARCH_ALIASES = ["prompt travel", "batch prompt schedule", "prompt timeline", "fizz"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        tooltip = (
            "One prompt per line, such as '4: a dog' or '\"4\": \"a dog\",'. Counting starts at 0; # starts a comment. "
            "A prompt changes at the start of a chunk."
        )
        types: dict[str, Any] = {
            "required": {"schedule": widgets.text(tooltip, default="0: a cat\n4: a dog")},
            "optional": {
                "chunk_specs": _CHAIN,
                "unit": widgets.choice(list(UNITS), "What the numbers count."),
                "fps": widgets.number(
                    16, 0.01, 120, 0.01, "Frames per second, if the numbers are seconds.", advanced=True
                ),
            },
        }
        return widgets.labelled(types)

    @classmethod
    def VALIDATE_INPUTS(cls, schedule: str | None = None, unit: str | None = None) -> bool | str:  # noqa: D102
        if unit not in (None, *UNITS):
            return f"unit must be one of {', '.join(UNITS)}, got {unit!r}"
        return widgets.validation_error(partial(widgets.parse_schedule, whole=unit != "second"), schedule) or True

    def add(self, schedule: str, chunk_specs: Specs = (), unit: str = "chunk", fps: float = 16.0) -> tuple[Specs]:
        """Add the schedule's prompts.

        Raises:
            FilmstripError: a line does not look like `4: a dog`.
        """
        prompts = widgets.parse_schedule(schedule, whole=unit != "second")
        return ((*chunk_specs, *(ScheduledPrompt(start, unit, fps, text) for start, text in sorted(prompts.items()))),)


class FilmstripLora:
    """A LoRA of the pipeline."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = "A LoRA of the pipeline and its strength, which may change during the video. Chain several nodes."
    RETURN_TYPES = ("FILMSTRIP_LORAS",)
    RETURN_NAMES = ("loras",)
    OUTPUT_TOOLTIPS = ("For another LoRA node or a Generate node.",)
    FUNCTION = "add"
    SEARCH_ALIASES = ["lora loader", "lora strength", "lora schedule"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        types: dict[str, Any] = {
            "required": {
                "lora": (PIPELINE_NAMES.loras(), {"tooltip": "LoRAs of the server's pipelines. Press R to refresh."}),
                "strength": widgets.number(1, -2, 2, 0.01, "1: as it was trained. 0: off.", slider=True),
            },
            "optional": {
                "loras": widgets.socket("FILMSTRIP_LORAS", "Other LoRAs."),
                "ramp": widgets.text(
                    "The strength over time, such as '0: 0, 4: 1': it grows evenly from 0 in chunk 0 to the whole "
                    "strength in chunk 4. Empty: the same in all chunks.",
                    lines=False,
                ),
            },
        }
        return widgets.labelled(types)

    @classmethod
    def VALIDATE_INPUTS(cls, lora: str | None = None, ramp: str | None = None) -> bool | str:  # noqa: ARG003, D102
        # Takes lora, so that ComfyUI does not check it against the current list: the server decides.
        return widgets.validation_error(widgets.parse_ramp, ramp) or True

    def add(self, lora: str, strength: float, loras: Loras = (), ramp: str = "") -> tuple[Loras]:
        """Add the LoRA; one that is in the chain already is replaced.

        Raises:
            FilmstripError: the ramp does not look like `0: 0, 4: 1`.
        """
        if not lora or lora == NO_LORAS:
            raise FilmstripError("LoRA: choose one; the pipeline may have none")
        others = tuple(other for other in loras if other.name != lora)
        return ((*others, Lora(lora, strength, widgets.parse_ramp(ramp))),)


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "FilmstripChunkSpec": FilmstripChunkSpec,
    "FilmstripPromptSchedule": FilmstripPromptSchedule,
    "FilmstripLora": FilmstripLora,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FilmstripChunkSpec": "Filmstrip Chunk Spec",
    "FilmstripPromptSchedule": "Filmstrip Prompt Schedule",
    "FilmstripLora": "Filmstrip LoRA",
}
