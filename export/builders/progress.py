"""How far a build is, from the nested phases that TensorRT tells of."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, float], None]
"""Is told the phase that a build is in, and the share of the whole that is done, 0 to 1, which never falls."""


@dataclass
class _Phase:
    begins: float
    per_step: float
    done: int = 0


class BuildProgress:
    """Turns phases and steps into one share of the whole: a phase fills the step of its parent that it is in.

    TensorRT calls from several threads.
    """

    def __init__(self, tell: Progress) -> None:
        self._tell = tell
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """A phase begins; without a parent it is the whole build."""
        with self._lock:
            around = self._phases.get(parent or "")
            begins = around.begins + around.done * around.per_step if around else 0.0
            span = around.per_step if around else 1.0
            self._phases[name] = _Phase(begins, span / max(num_steps, 1))
            self._tell(name, self._share)

    def step(self, name: str, index: int) -> None:
        """Step `index` of a phase is done."""
        with self._lock:
            phase = self._phases[name]
            phase.done = index + 1
            self._share = max(self._share, min(1.0, phase.begins + phase.done * phase.per_step))
            self._tell(name, self._share)

    def finish(self, name: str) -> None:
        """A phase has ended, its steps done or not; its name may come again."""
        with self._lock:
            self._phases.pop(name, None)

    def complete(self) -> None:
        """The build has succeeded: phases may end before all their steps are told of."""
        self._tell("done", 1.0)
