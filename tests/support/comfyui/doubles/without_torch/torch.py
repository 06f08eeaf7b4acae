"""Stands for torch where it isn't installed: tensors on the CPU, with the few methods that the nodes call."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Tensor:
    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    @property
    def dtype(self) -> str:
        return f"torch.{self._array.dtype}"

    def detach(self) -> "Tensor":
        return Tensor(self._array)

    def cpu(self) -> "Tensor":
        return self

    def float(self) -> "Tensor":
        return self if self._array.dtype == np.float32 else Tensor(self._array.astype(np.float32))

    def numpy(self) -> NDArray[Any]:
        return self._array


def from_numpy(array: NDArray[Any]) -> Tensor:
    assert isinstance(array, np.ndarray)
    return Tensor(array)
