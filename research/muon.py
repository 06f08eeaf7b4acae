"""Muon: steps of the momentum's nearest orthogonal matrix for hidden matrices, Adam's steps for all else.

Source: K. Jordan's description of Muon, and the scale of 'Muon is scalable for LLM training', with which a step has the
size of one of Adam's whatever the matrix's shape.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from research.settings import OptimizerSettings

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: fast, not exact
_NUM_ITERATIONS = 5
_RMS_OF_ADAM = 0.2


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices [..., R, C] with all singular values brought near 1 (0.7 to 1.2), in bfloat16."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """For parameters of two axes or more; those of a convolution count as one matrix a filter bank.

    Args:
        parameters: to be trained.
        lr: of the size of Adam's.
        momentum: of the gradient's mean, Nesterov's.
        weight_decay: share of `lr` that weights lose a step.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 - torch's optimisers all take one
        """Take a step; matrices of one shape are made orthogonal together."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            for parameters in by_shape.values():
                updates = torch.stack([self._direction(one, group["momentum"]).flatten(1) for one in parameters])
                scale = _RMS_OF_ADAM * max(updates.shape[-2:]) ** 0.5
                for parameter, update in zip(parameters, orthogonalised(updates).float(), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        assert parameter.grad is not None
        mean.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum)


def optimizers(
    modules: Iterable[nn.Module], settings: OptimizerSettings, not_muon: tuple[str, ...], *, share_of_rates: float = 1
) -> list[torch.optim.Optimizer]:
    """Muon for matrices and filter banks, Adam for the rest and for names that have a part of `not_muon`."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            is_matrix = parameter.ndim in (2, 4) and not any(part in name for part in not_muon)
            (matrices if is_matrix else others).append(parameter)
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(Muon(matrices, settings.muon_lr * share_of_rates, weight_decay=settings.weight_decay))
    return [*made, torch.optim.Adam(others, settings.adam_lr * share_of_rates, betas=(0.9, 0.98), fused=True)]
