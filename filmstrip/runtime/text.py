"""From prompts to the keys and values that the networks attend to: tokens, embeddings, blends, LoRA scales."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import pad

from filmstrip.contract import ChunkParameters, Interpolation, Prompt, Transition
from filmstrip.errors import InvalidField, LoadFailed
from filmstrip.runtime.engines.engine import Engine, to_device

# -- Tokens -------------------------------------------------------------------------------------------------

TokenIds: TypeAlias = npt.NDArray[np.int64]
Tokenize: TypeAlias = Callable[[str], tuple[TokenIds, TokenIds]]
"""From a prompt to its token ids and mask: see `Tokenizer.__call__`."""

PADDING = "<pad>"
END = "</s>"

_MAX_REFERENCE_DIGITS = 7  # of the largest code point, 1114111
_DECIMAL_REFERENCE = re.compile(r"&#([0-9]+)")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Tokenizer:
    """A `tokenizer.json` in Hugging Face's format; all prompts get the same length.

    Args:
        folder: the model's, which holds the `tokenizer.json`.
        text_len: tokens of a prompt, including the end and the padding.

    Raises:
        LoadFailed: the file is missing or unreadable, has no `<pad>`, or does not end a prompt with `</s>`.
    """

    def __init__(self, folder: Path, text_len: int) -> None:
        path = folder / "tokenizer.json"
        try:
            self._file = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise LoadFailed(f"{path} can't be read: {error}") from error
        padding = self._file.token_to_id(PADDING)
        if padding is None:
            raise LoadFailed(f"{path} has no token {PADDING}")
        # Both replace the file's own settings.
        self._file.enable_padding(length=text_len, pad_id=padding, pad_token=PADDING)
        self._file.enable_truncation(text_len)
        if self._file.encode("").tokens[:1] != [END]:
            raise LoadFailed(f"{path} must end each prompt with {END}, by its post-processor")

    def __call__(self, prompt: str) -> tuple[TokenIds, TokenIds]:
        """Token ids and mask of a prompt, each [1, text_len]; the mask is 1 at a token, 0 at padding.

        A prompt that is too long loses its last tokens, but never the end token.
        """
        encoding = self._file.encode(clean(prompt))
        return np.array([encoding.ids], np.int64), np.array([encoding.attention_mask], np.int64)


def clean(prompt: str) -> str:
    """A prompt as Wan cleans it: HTML entities are decoded twice, and runs of whitespace become one space.

    Wan's code also applies ftfy, which repairs wrongly decoded text and straightens curly quotes. We do not: prompts
    arrive as UTF-8, with the quotes that their writers chose.
    """
    text = _SURROGATE.sub("\ufffd", _unescape(_unescape(prompt)))  # half a character can't be encoded
    return " ".join(text.split())


def _unescape(text: str) -> str:
    """`html.unescape` for references of any length: `int` refuses more than 4,300 digits."""
    return html.unescape(_DECIMAL_REFERENCE.sub(_shortened, text))


def _shortened(reference: re.Match[str]) -> str:
    """The same reference without leading zeros, cut to one digit too many, which stays outside Unicode."""
    return "&#" + (reference[1].lstrip("0") or "0")[: _MAX_REFERENCE_DIGITS + 1]


# -- Embeddings ---------------------------------------------------------------------------------------------

EncodePrompt: TypeAlias = Callable[[str], Tensor]
"""From a prompt to its embedding, [1, Lt, C], zero after its last token."""


def prompt_encoder(tokenize: Tokenize, engine: Engine, device: torch.device, max_encoded: int = 16) -> EncodePrompt:
    """The text encoder of all sequences of a model, with a cache: embeddings only depend on their prompts.

    Args:
        tokenize: see `Tokenize`.
        engine: `text_encoder`, on the CPU or on the device.
        device: of the embeddings.
        max_encoded: embeddings that are cached; one of Wan's takes 8 MiB.
    """
    return lru_cache(max_encoded)(partial(_encode, tokenize, engine, device))


def _encode(tokenize: Tokenize, engine: Engine, device: torch.device, prompt: str) -> Tensor:
    ids, mask = tokenize(prompt)  # [1, Lt]
    own = torch.from_numpy(ids[:, : int(mask.sum())])  # without padding, which would cost as much per token
    embedding = engine.run({"ids": to_device(own, engine.device)})["embeddings"]  # [1, tokens, C]
    padded = pad(embedding, (0, 0, 0, ids.shape[1] - own.shape[1]))  # [1, Lt, C]
    return to_device(padded, device) if padded.device.type == "cpu" else padded


# Sine of the angle between two tokens below which they count as parallel or opposite: the plane of rotation is lost in
# rounding then. At 0.03, linear and spherical interpolation of parallel tokens differ by a ten-thousandth; spherical
# interpolation of opposite tokens of different length grows with 1 / sine.
_NEARLY_PARALLEL = 0.03


def blend(embeddings: Sequence[Tensor], weights: Sequence[float], method: Interpolation) -> Tensor:
    """Blend embeddings of one shape, [..., C], in the type of the first; slerp of more than two is linear.

    Args:
        embeddings: one or more.
        weights: of each, 0 or more and not all 0; their sum does not matter.
        method: linear keeps the weighted mean of the norms, slerp rotates each token from one to the other.
    """
    shares = [weight / sum(weights) for weight in weights]
    wide = [embedding.float() for embedding in embeddings]
    if method is Interpolation.SLERP and len(wide) == 2:
        return _slerp(wide[0], wide[1], shares[1]).to(embeddings[0].dtype)
    return _linear(wide, shares).to(embeddings[0].dtype)


def _linear(embeddings: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    mixed = _weighted_sum(embeddings, shares)
    norm = float(vector_norm(mixed))
    target = sum(share * float(vector_norm(part)) for part, share in zip(embeddings, shares, strict=True))
    return mixed * (target / norm) if norm else mixed


def _slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Spherical interpolation along the last axis; linear for tokens that are nearly parallel, or zero."""
    cosine = torch.cosine_similarity(start, end, dim=-1).clamp(-1, 1).unsqueeze(-1)
    angle = cosine.acos()
    sine = angle.sin()
    turned = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / sine
    has_plane = (sine > _NEARLY_PARALLEL) & start.any(-1, keepdim=True) & end.any(-1, keepdim=True)
    return torch.where(has_plane, turned, _weighted_sum([start, end], [1 - share, share]))


def _weighted_sum(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = shares[0] * tensors[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total = total + share * tensor
    return total


# -- Blends and transitions, chunk by chunk -----------------------------------------------------------------


class PromptBlend:
    """The embedding in force in one sequence, and where it came from.

    Args:
        encode: the text encoder.
    """

    _MAX_BLENDS = 4  # of the prompts in force and of the target, before and after a change

    def __init__(self, encode: EncodePrompt) -> None:
        # Without a reference to this object, so that the memory of an ended sequence is freed at once.
        self._blended = lru_cache(self._MAX_BLENDS)(partial(_blend_prompts, encode))
        self.clear()

    def clear(self) -> None:
        """Forget the embedding in force; cached blends stay valid."""
        self._last: Tensor | None = None
        self._last_params: ChunkParameters | None = None
        self._start: Tensor | None = None

    def embedding(self, params: ChunkParameters) -> tuple[Tensor, bool]:
        """The embedding [1, Lt, C] of the next chunk, and whether it differs from the previous chunk's.

        A transition starts from the embedding in force: that of the chunk's prompts, unless it interrupts another
        transition. After a reset in the middle of a transition, it continues from the chunk's prompts.
        """
        transition = params.transition
        if transition is None:
            self._start = None
            now = self._blended(params.prompts, params.prompt_interpolation_method)
        else:
            now = self._in_transition(transition, params)
        changed = self._last is None or (now is not self._last and not torch.equal(now, self._last))
        self._last, self._last_params = now, params
        return now, changed

    def _in_transition(self, transition: Transition, params: ChunkParameters) -> Tensor:
        method = params.prompt_interpolation_method
        if transition.step == 0:
            self._start = self._last if self._interrupts(params) else None
        share = transition.step / (transition.num_steps - 1) if transition.num_steps > 1 else 1.0
        if share == 1:
            return self._blended(transition.target, method)
        if self._start is None:
            self._start = self._blended(params.prompts, method)
        if share == 0:
            return self._start
        target = self._blended(transition.target, method)
        return blend([self._start, target], [1 - share, share], transition.method)

    def _interrupts(self, params: ChunkParameters) -> bool:
        """Whether the chunk's transition begins in the middle of another, with no prompts set in between."""
        last = self._last_params
        return last is not None and last.transition is not None and last.prompts == params.prompts


def _blend_prompts(encode: EncodePrompt, prompts: tuple[Prompt, ...], method: Interpolation) -> Tensor:
    """The embedding of weighted prompts; those of weight 0 are not encoded, but count in the choice of the method."""
    if len(prompts) != 2:
        method = Interpolation.LINEAR
    weighted = [prompt for prompt in prompts if prompt.weight > 0]
    encoded = [encode(prompt.text) for prompt in weighted]
    return encoded[0] if len(encoded) == 1 else blend(encoded, [prompt.weight for prompt in weighted], method)


# -- LoRA scales, keys and values ---------------------------------------------------------------------------

_SCALES = "lora_scales"


def _takes_loras(engine: Engine) -> bool:
    try:
        engine.dtype(_SCALES)
    except KeyError:
        return False
    return True


@dataclass(frozen=True)
class LoraScales:
    """One scale for each LoRA, in the order of the engines.

    Attributes:
        values: as numbers.
        tensor: on the device, float32 [A].
    """

    values: tuple[float, ...]
    tensor: Tensor

    @classmethod
    def of(cls, params: ChunkParameters, names: tuple[str, ...], device: torch.device) -> Self:
        """The scales of a chunk; a LoRA that it doesn't name has scale 0, which switches it off.

        Raises:
            InvalidField: it names a LoRA that the pipeline doesn't have.
        """
        for name in params.lora_scales:
            if name not in names:
                known = ", ".join(names) or "none"
                raise InvalidField(
                    f"chunk {params.index}: lora_scales: {name!r} is not a LoRA of this pipeline; it has: {known}",
                    "lora_scales",
                )
        values = tuple(float(params.lora_scales.get(name, 0.0)) for name in names)
        return cls(values, to_device(torch.tensor(values, dtype=torch.float32), device))

    def inputs(self, engine: Engine) -> dict[str, Tensor]:
        """The input `lora_scales`, if the engine has it."""
        return {_SCALES: self.tensor} if _takes_loras(engine) else {}


class TextKeys:
    """Keys and values of one text for one network, recomputed when the text or a scale that affects them changes.

    Args:
        engine: `text_kv` or `vace_text_kv`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._takes_loras = _takes_loras(engine)
        self._computed_for: tuple[Tensor, tuple[float, ...]] | None = None
        self._inputs: dict[str, Tensor] = {}

    def inputs(self, embedding: Tensor, loras: LoraScales) -> dict[str, Tensor]:
        """The inputs `text_k` and `text_v` of the network, for an embedding [1, Lt, C]."""
        scales = loras.values if self._takes_loras else ()
        last = self._computed_for
        if last is None or last[0] is not embedding or last[1] != scales:
            self._inputs = self._engine.run({"embeddings": embedding, **loras.inputs(self._engine)})
            self._computed_for = (embedding, scales)
        return self._inputs


# -- The text of a sequence ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChunkText:
    """The text that a chunk is generated from.

    Attributes:
        embedding: of the prompts, [1, Lt, C].
        loras: the chunk's scales.
        inputs: both, as the transformer takes them: text_k, text_v and, if there are LoRAs, lora_scales.
        is_new: whether the KV cache was computed for another text, or the chunk is within a transition.
    """

    embedding: Tensor
    loras: LoraScales
    inputs: dict[str, Tensor]
    is_new: bool


class SequenceText:
    """The text of one sequence, chunk by chunk.

    Args:
        encode: the text encoder.
        engines: by the name of the graph.
        loras: names, in the order of the engines.
    """

    def __init__(self, encode: EncodePrompt, engines: Mapping[str, Engine], loras: tuple[str, ...]) -> None:
        self._prompts = PromptBlend(encode)
        self._keys = TextKeys(engines["text_kv"])
        self._transformer = engines["transformer"]
        self._loras = loras

    def chunk(self, params: ChunkParameters) -> ChunkText:
        """The text of the next chunk.

        Raises:
            InvalidField: it names a LoRA that the pipeline doesn't have.
        """
        embedding, changed = self._prompts.embedding(params)
        loras = LoraScales.of(params, self._loras, self._transformer.device)
        inputs = self._keys.inputs(embedding, loras) | loras.inputs(self._transformer)
        in_transition = params.transition is not None and params.transition.num_steps > 0
        return ChunkText(embedding, loras, inputs, changed or in_transition)

    def clear(self) -> None:
        """Forget the text in force."""
        self._prompts.clear()
