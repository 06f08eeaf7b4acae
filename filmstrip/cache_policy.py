"""When a chunk starts with empty caches: the plan decides by this rule, and the model obeys the chunk's `reset`.

A reset clears the KV cache, the VAE feature caches, the blend of prompts and the frame index, and turns its
chunk into a first chunk again (for longlive: 9 pixel frames in text mode instead of 12).
"""

from dataclasses import dataclass

from filmstrip.contract import Mode, Prompt

MAX_LATENTS_SINCE_RESET = 1024
"""A chunk that would bring the latent frames since the last reset to this many is reset.

Wan 2.1's RoPE tables, `rope_params(1024, ...)`, have this many positions. The runtime computes RoPE for any position;
the limit keeps it to those that the original code can generate.
"""


@dataclass(frozen=True)
class CacheInputs:
    """What the policy needs to know about one chunk.

    Attributes:
        mode: whether the chunk's latents start from noise (text) or from an input video.
        uses_vace: the chunk has VACE frames, masks, references or key images.
        prompts: the prompts in force; within a transition, its target.
        in_transition: the chunk lies within a transition of prompts.
        denoising_steps: the requested timesteps, None for the pipeline's own.
        manage_cache: a change of parameters may cause a reset.
        reset_cache: the request asks for a reset.
    """

    mode: Mode
    uses_vace: bool
    prompts: tuple[Prompt, ...]
    in_transition: bool
    denoising_steps: tuple[int, ...] | None
    manage_cache: bool
    reset_cache: bool


def reset_reason(
    previous: CacheInputs | None, current: CacheInputs, latents_since_reset: int, latent_frames: int
) -> str | None:
    """Why a chunk is reset, or None if it continues the chunk before.

    A change of the noise scale is no reason: a ramp over several chunks is smooth.

    Args:
        previous: the chunk before, None for the first chunk of a generation.
        current: the chunk in question.
        latents_since_reset: latent frames generated since the last reset.
        latent_frames: latent frames of a chunk that is not a first one.
    """
    if previous is None:
        return "first chunk"
    managed = current.manage_cache
    in_video = current.mode is Mode.VIDEO
    new_prompt = current.prompts != previous.prompts and not current.in_transition
    causes = {
        "reset_cache": current.reset_cache,
        "mode": current.mode is not previous.mode,
        "frame index limit": latents_since_reset >= MAX_LATENTS_SINCE_RESET - latent_frames,
        "denoising_steps": managed and current.denoising_steps != previous.denoising_steps,
        "prompt": managed and new_prompt and (in_video or current.uses_vace),
    }
    return next((cause for cause, holds in causes.items() if holds), None)
