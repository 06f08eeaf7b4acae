"""Which prompts are in force at each chunk: the last ones set, or a transition between them."""

from dataclasses import dataclass

from filmstrip.contract import Interpolation, Prompt, Transition

from .schema import ChunkSpec, GenerateRequest, WeightedPrompt

DEFAULT_TRANSITION_STEPS = 4


@dataclass(frozen=True)
class ChunkPrompts:
    """The prompts of one chunk.

    Attributes:
        prompts: in force before any transition.
        method: how they are blended.
        transition: under way, or None.
    """

    prompts: tuple[Prompt, ...]
    method: Interpolation
    transition: Transition | None

    @property
    def target(self) -> tuple[Prompt, ...]:
        """What the chunk moves to, or stays at."""
        return self.transition.target if self.transition else self.prompts

    @property
    def in_transition(self) -> bool:
        """The chunk moves from one embedding to another; a transition of 0 steps is a change of prompt instead."""
        return self.transition is not None and self.transition.num_steps > 0


class StickyPrompts:
    """Walks through the chunks of a request in order."""

    def __init__(self, request: GenerateRequest) -> None:
        self._method = request.prompt_interpolation_method
        self._prompts = _as_prompts(request.prompt)
        self._transition: Transition | None = None

    def at(self, spec: ChunkSpec | None) -> ChunkPrompts:
        """The prompts of the next chunk, whose spec may set new ones."""
        self._advance()
        method = self._method
        if spec is not None:
            new = spec.prompts if spec.text is None else spec.text
            if new is not None:
                self._prompts = _as_prompts(new)
                self._transition = None
            if spec.transition_target_prompts is not None:
                steps = spec.transition_num_steps
                self._transition = Transition(
                    target=_as_prompts(spec.transition_target_prompts),
                    num_steps=DEFAULT_TRANSITION_STEPS if steps is None else steps,
                    step=0,
                    method=spec.transition_method or Interpolation.LINEAR,
                )
            method = spec.prompt_interpolation_method or method
        return ChunkPrompts(self._prompts, method, self._transition)

    def _advance(self) -> None:
        """Leave the chunk before: its transition goes one step on, or has arrived."""
        now = self._transition
        if now is None:
            return
        if now.step + 1 >= now.num_steps:
            self._prompts, self._transition = now.target, None
        else:
            self._transition = Transition(now.target, now.num_steps, now.step + 1, now.method)


def _as_prompts(given: str | list[WeightedPrompt]) -> tuple[Prompt, ...]:
    if isinstance(given, str):
        return (Prompt(given),)
    return tuple(Prompt(prompt.text, prompt.weight) for prompt in given)
