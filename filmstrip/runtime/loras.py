"""The scales of a chunk's LoRAs, as the engines take them."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from filmstrip.contract import ChunkParameters
from filmstrip.errors import InvalidField
from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.upload import upload

_INPUT = "lora_scales"


def follows_loras(engine: Engine) -> bool:
    """Whether an engine has branches of LoRAs, and so takes their scales."""
    try:
        engine.dtype(_INPUT)
    except KeyError:
        return False
    return True


@dataclass(frozen=True)
class LoraScales:
    """One scale a LoRA, in the order of the engines.

    Attributes:
        values: as numbers.
        tensor: on the device, float32 [A].
    """

    values: tuple[float, ...]
    tensor: Tensor

    @classmethod
    def of(cls, told: ChunkParameters, names: tuple[str, ...], device: torch.device) -> Self:
        """The scales of a chunk; a LoRA that is not named has scale 0, which is none.

        Raises:
            InvalidField: the pipeline has no LoRA of a name.
        """
        for name in told.lora_scales:
            if name not in names:
                known = ", ".join(names) or "none"
                raise InvalidField(
                    f"chunk {told.index}: lora_scales: {name!r} is not a LoRA of this pipeline; it has: {known}",
                    "lora_scales",
                )
        values = tuple(float(told.lora_scales.get(name, 0.0)) for name in names)
        return cls(values, upload(torch.tensor(values, dtype=torch.float32), device))

    def inputs(self, engine: Engine) -> dict[str, Tensor]:
        """What an engine is given of them: nothing where it has no branches."""
        return {_INPUT: self.tensor} if follows_loras(engine) else {}
