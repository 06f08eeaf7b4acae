"""The loop that turns a chunk's noisy latents into clean ones."""

from collections.abc import Callable, Sequence

from torch import Tensor

from filmstrip.runtime.chunks import Chunk


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
