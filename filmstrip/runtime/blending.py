"""The text that a chunk is made under: prompts blended by weight, and moves from one blend to another."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.linalg import vector_norm

from filmstrip.contract import ChunkParameters, Interpolation, Prompt, Transition
from filmstrip.runtime.recent import Recent

Encode: TypeAlias = Callable[[str], Tensor]
"""A text encoder: a prompt to its embedding [1, Lt, C], zeros after its last token."""

# Sine of the angle between two tokens, of one direction or opposite ones, below which no plane to turn in is to be
# made out. At 0.03 straight and turned differ by a ten-thousandth; opposite tokens of unlike length grow by 1 / sine.
_NEARLY_PARALLEL = 0.03


# -- Embeddings ---------------------------------------------------------------------------------------------


def blend(embeddings: Sequence[Tensor], weights: Sequence[float], method: Interpolation) -> Tensor:
    """Embeddings of one shape, [..., C], blended in the type of the first; slerp is for two, else it is linear.

    Args:
        embeddings: one or more.
        weights: of each, 0 or more and not all 0; their sum does not matter.
        method: linear keeps the weighted mean of the norms, slerp turns each token from the one to the other.
    """
    shares = [weight / sum(weights) for weight in weights]
    wide = [embedding.float() for embedding in embeddings]
    if method is Interpolation.SLERP and len(wide) == 2:
        return _slerp(wide[0], wide[1], shares[1]).to(embeddings[0].dtype)
    return _linear(wide, shares).to(embeddings[0].dtype)


def _linear(embeddings: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    mixed = _sum(embeddings, shares)
    norm = float(vector_norm(mixed))
    wanted = sum(share * float(vector_norm(part)) for part, share in zip(embeddings, shares, strict=True))
    return mixed * (wanted / norm) if norm else mixed


def _slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Spherical interpolation along the last axis; tokens that are nearly parallel, or zeros, go straight."""
    cosine = torch.cosine_similarity(start, end, dim=-1).clamp(-1, 1).unsqueeze(-1)
    angle = cosine.acos()
    sine = angle.sin()
    turned = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / sine
    has_plane = (sine > _NEARLY_PARALLEL) & start.any(-1, keepdim=True) & end.any(-1, keepdim=True)
    return torch.where(has_plane, turned, _sum([start, end], [1 - share, share]))


def _sum(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = shares[0] * tensors[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total = total + share * tensor
    return total


# -- Chunk by chunk -----------------------------------------------------------------------------------------


class PromptBlend:
    """The embedding in force in one sequence, and what it came from.

    Args:
        max_encoded: encodings of prompts that are kept, those used last; one of Wan's takes 4 MiB in 16 bit.
    """

    _MAX_BLENDS = 4  # those of the prompts in force and of the target, and room for both to change

    def __init__(self, max_encoded: int = 16) -> None:
        self._encoded: Recent[str, Tensor] = Recent(max_encoded)
        self._blends: Recent[tuple[tuple[Prompt, ...], Interpolation], Tensor] = Recent(self._MAX_BLENDS)
        self.reset()

    def reset(self) -> None:
        """Forget the embedding in force; encodings stay, as a prompt has the same one in any chunk."""
        self._last: Tensor | None = None
        self._last_parameters: ChunkParameters | None = None
        self._start: Tensor | None = None

    def embedding(self, parameters: ChunkParameters, encode: Encode) -> tuple[Tensor, bool]:
        """The embedding [1, Lt, C] of the next chunk, and whether it is another than the chunk's before.

        A transition goes from the embedding in force, which is that of the chunk's prompts unless it cuts another
        transition short. After a reset in its midst it goes on from the chunk's prompts.
        """
        transition = parameters.transition
        if transition is None:
            self._start = None
            now = self._blended(parameters.prompts, parameters, encode)
        else:
            now = self._on_the_way(transition, parameters, encode)
        changed = self._last is None or (now is not self._last and not torch.equal(now, self._last))
        self._last, self._last_parameters = now, parameters
        return now, changed

    def _on_the_way(self, transition: Transition, parameters: ChunkParameters, encode: Encode) -> Tensor:
        if transition.step == 0:
            self._start = self._last if self._cuts_short(parameters) else None
        share = transition.step / (transition.num_steps - 1) if transition.num_steps > 1 else 1.0
        if share == 1:
            return self._blended(transition.target, parameters, encode)
        if self._start is None:
            self._start = self._blended(parameters.prompts, parameters, encode)
        if share == 0:
            return self._start
        target = self._blended(transition.target, parameters, encode)
        return blend([self._start, target], [1 - share, share], transition.method)

    def _cuts_short(self, parameters: ChunkParameters) -> bool:
        """Whether the chunk's transition begins in the midst of another, with no prompt set in between."""
        last = self._last_parameters
        return last is not None and last.transition is not None and last.prompts == parameters.prompts

    def _blended(self, prompts: tuple[Prompt, ...], parameters: ChunkParameters, encode: Encode) -> Tensor:
        method = parameters.prompt_interpolation_method
        return self._blends.get((prompts, method), partial(self._encode, prompts, method, encode))

    def _encode(self, prompts: tuple[Prompt, ...], method: Interpolation, encode: Encode) -> Tensor:
        if len(prompts) != 2:
            method = Interpolation.LINEAR  # settled before those without weight go: they do not change the method
        heard = [prompt for prompt in prompts if prompt.weight > 0]
        encoded = [self._encoded.get(prompt.text, partial(encode, prompt.text)) for prompt in heard]
        return encoded[0] if len(heard) == 1 else blend(encoded, [prompt.weight for prompt in heard], method)
