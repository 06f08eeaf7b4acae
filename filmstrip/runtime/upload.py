"""From the host's memory to the device, without waiting for the work that the device has to do before."""

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the host on the device; the very same one where it lies there already in that type.

    Args:
        tensor: on the host.
        device: where it is wanted.
        dtype: as what, None for its own type.
    """
    if torch.device(device).type == "cuda":
        # From pageable memory the copy would wait for all that is queued. PyTorch keeps pinned memory until it is read.
        return tensor.pin_memory().to(device, non_blocking=True).to(dtype or tensor.dtype)
    return tensor.to(device, dtype)
