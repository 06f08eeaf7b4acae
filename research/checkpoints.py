"""A training's state on the disk, so that it goes on where it was stopped, and its log."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAVE_EVERY_S = 180.0
_WARM_UP_STEPS = 100
_LAST_FACTOR = 0.02


@dataclass(frozen=True)
class Budget:
    """How long a stage is trained: in minutes of work, or, where these are None, in steps.

    The rate of learning rises over the first steps, stays, and falls over the last 40 % of the budget.
    """

    minutes: float | None = None
    steps: int | None = None

    def share(self, step: int, seconds: float) -> float:
        """How much of it is used up, 0 to 1."""
        if self.minutes is not None:
            return min(1.0, seconds / (60 * self.minutes))
        return min(1.0, step / self.steps) if self.steps else 1.0

    def factor(self, step: int, seconds: float) -> float:
        """Of the rate of learning."""
        left = (1 - self.share(step, seconds)) / 0.4
        return min(1.0, (step + 1) / _WARM_UP_STEPS, max(_LAST_FACTOR, left))


class Training:
    """Modules in training: their averages, optimisers, random numbers, and how far they are.

    Args:
        path: of the state's file; read if it is there.
        modules: by name.
        optimizers: of their parameters.
        seed: of the random numbers.
        budget: for how long.
        ema: share of the average that a step keeps.
        after_step: called after each.
    """

    def __init__(
        self,
        path: Path,
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        seed: int,
        budget: Budget,
        ema: float = 0.999,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self.modules = modules
        self.optimizers = optimizers
        self.budget = budget
        self.random = torch.Generator().manual_seed(seed)
        self.step = 0
        self.seconds = 0.0
        self._after_step = after_step
        self._ema = ema
        self._rates = [[group["lr"] for group in one.param_groups] for one in optimizers]
        self._averages = {name: _copied(module) for name, module in modules.items()}
        self._log = path.with_suffix(".jsonl")
        if path.exists():
            self._read(torch.load(path, weights_only=True))
        self._started = time.monotonic() - self.seconds
        self._saved = time.monotonic()

    def start_clock(self) -> None:
        """Count the minutes from now on: what was got ready so far is no training."""
        self._started = time.monotonic() - self.seconds

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up."""
        return self.budget.share(self.step, self.seconds) >= 1

    def update(self, clip: float = 1.0) -> float:
        """Take a step with the gradients that are there, and forget them; gives their norm."""
        factor = self.budget.factor(self.step, self.seconds)
        parameters = [one for module in self.modules.values() for one in module.parameters()]
        norm = float(nn.utils.clip_grad_norm_(parameters, clip))
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        # Young averages forget faster: the first weights are noise.
        kept = min(self._ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, module in self.modules.items():
                for average, parameter in zip(self._averages[name].values(), module.parameters(), strict=True):
                    average.lerp_(parameter, 1 - kept)
        self.step += 1
        self.seconds = time.monotonic() - self._started
        if self._after_step is not None:
            self._after_step()
        return norm

    def averages(self, name: str) -> dict[str, torch.Tensor]:
        """A module's averaged weights."""
        return self._averages[name]

    def log(self, **values: Any) -> None:
        """Add a line to the log in the folder of the state, and print it."""
        line = json.dumps({"step": self.step, "minutes": round(self.seconds / 60, 2), **values})
        print(line, flush=True)
        with self._log.open("a") as file:
            file.write(line + "\n")

    def save_now_and_then(self) -> None:
        """Save if the last time was a while ago."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the state; what was there is replaced only once it is whole."""
        state = first_state(self.modules, self.random) | {
            "averages": self._averages,
            "optimizers": [one.state_dict() for one in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        write_atomically(self.path, state)
        self._saved = time.monotonic()

    def _read(self, state: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self._averages[name] = state["averages"][name]
        if state["optimizers"]:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self.random.set_state(state["random"])
        self.step, self.seconds = state["step"], state["seconds"]


def first_state(modules: Mapping[str, nn.Module], random: torch.Generator) -> dict[str, Any]:
    """The state of a training that begins with these weights."""
    return {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "averages": {name: _copied(module) for name, module in modules.items()},
        "optimizers": [],
        "random": random.get_state(),
        "step": 0,
        "seconds": 0.0,
    }


def write_atomically(path: Path, state: Any) -> None:
    """`torch.save` to a temporary file, which then replaces the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_averages(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Put the averaged weights of a training's state into modules.

    Raises:
        FileNotFoundError: that training has not begun.
    """
    averages = torch.load(path, weights_only=True)["averages"]
    with torch.no_grad():
        for name, module in modules.items():
            for parameter_name, parameter in module.named_parameters():
                parameter.copy_(averages[name][parameter_name])


def _copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
