"""Less noise where the input moves: the noise scale that follows the motion of a chunk's pixel frames."""

import torch
from torch import Tensor

_FULL_MOTION = 0.2  # RMS difference between successive frames that counts as motion 1
_STILL = 0.8  # noise scale without motion
_FALL = 0.2  # how much lower it is at motion 1
_INERTIA = 0.1  # share of the request's own noise scale


def motion(frames: Tensor, num_last: int, previous: Tensor | None = None) -> float:
    """The strongest motion, 0..1, towards any of a chunk's last pixel frames.

    Args:
        frames: the chunk's input, [1, 3, F, H, W] in -1..1.
        num_last: how many frames are looked at: the latent frames of a chunk.
        previous: the last frame of the chunk before, [1, 3, 1, H, W]; it counts where the chunk is so short that
            no frame of its own comes before those that are looked at.
    """
    seen = frames if previous is None else torch.cat([previous, frames], dim=2)
    seen = seen[:, :, -(num_last + 1) :].float()
    if seen.shape[2] < 2:
        return 0.0
    difference = seen.diff(dim=2).square().mean(dim=(0, 1, 3, 4)).sqrt()  # [F]
    return min(1.0, float(difference.max()) / _FULL_MOTION)


def controlled_noise_scale(motion: float, noise_scale: float) -> float:
    """The noise scale at a motion 0..1, near to the request's own by a tenth."""
    return (1 - _INERTIA) * (_STILL - _FALL * motion) + _INERTIA * noise_scale
