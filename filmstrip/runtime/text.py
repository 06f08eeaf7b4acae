"""From prompts to the keys and values that the networks attend to."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.loras import LoraScales, follows_loras
from filmstrip.runtime.recent import Recent
from filmstrip.runtime.tokenizer import Ids
from filmstrip.runtime.upload import upload

Tokenize: TypeAlias = Callable[[str], tuple[Ids, Ids]]
"""A prompt to its token ids and its mask, see `filmstrip.runtime.tokenizer`."""


class PromptEncoder:
    """Prompts to embeddings, for all sequences of a model; those used last are kept, as they depend on nothing else.

    Args:
        tokenize: see `Tokenize`.
        engine: `text_encoder`, on the CPU or on the device.
        device: where embeddings are wanted.
        max_encoded: embeddings that are kept; one of Wan's takes 8 MiB.
    """

    def __init__(self, tokenize: Tokenize, engine: Engine, device: torch.device, max_encoded: int = 16) -> None:
        self._tokenize = tokenize
        self._engine = engine
        self._device = device
        self._encoded: Recent[str, Tensor] = Recent(max_encoded)

    def __call__(self, prompt: str) -> Tensor:
        """The embedding of a prompt, [1, Lt, C], zeros after its last token."""
        return self._encoded.get(prompt, partial(self._encode, prompt))

    def _encode(self, prompt: str) -> Tensor:
        ids, mask = self._tokenize(prompt)
        own = torch.from_numpy(ids[:, : int(mask.sum())])  # padding would cost as much as the prompt's own tokens
        embedding = self._engine.run({"ids": upload(own, self._engine.device)})["embeddings"]
        padded = pad(embedding, (0, 0, 0, ids.shape[1] - own.shape[1]))
        return upload(padded, self._device) if padded.device.type == "cpu" else padded


class TextKeys:
    """Keys and values of one text for one network, made anew when the text or a scale that they depend on changes.

    Args:
        engine: `text_kv` or `vace_text_kv`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._follows_loras = follows_loras(engine)
        self._made_of: tuple[Tensor, tuple[float, ...]] | None = None
        self._made: dict[str, Tensor] = {}

    def of(self, embedding: Tensor, loras: LoraScales) -> dict[str, Tensor]:
        """The inputs `text_k` and `text_v` of the network, for an embedding [1, Lt, C]."""
        scales = loras.values if self._follows_loras else ()
        if self._made_of is None or self._made_of[0] is not embedding or self._made_of[1] != scales:
            self._made = self._engine.run({"embeddings": embedding, **loras.inputs(self._engine)})
            self._made_of = (embedding, scales)
        return self._made
