"""From prompts to the keys and values that the networks attend to: tokens, embeddings, blends, LoRA scales."""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as TokenizerFile
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import pad

from filmstrip.contract import ChunkParameters, Interpolation, Prompt, Transition
from filmstrip.errors import InvalidField, LoadFailed
from filmstrip.runtime.engines.engine import Engine, to_device
from filmstrip.runtime.recent import Recent

Ids = npt.NDArray[np.int64]

PADDING = "<pad>"
END = "</s>"

_MAX_REFERENCE_DIGITS = 7  # of the largest code point, 1114111
_DECIMAL_REFERENCE = re.compile(r"&#([0-9]+)")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Tokenizer:
    """A `tokenizer.json` in Hugging Face's form, whose prompts all get one length.

    Args:
        folder: the model's, which has the `tokenizer.json`.
        text_len: tokens of a prompt, the end and the padding included.

    Raises:
        LoadFailed: there is none, it can't be read, or it lacks `<pad>` or does not end a prompt with `</s>`.
    """

    def __init__(self, folder: Path, text_len: int) -> None:
        try:
            self._file = TokenizerFile.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise LoadFailed(f"tokenizer.json can't be read: {error}") from error
        padding = self._file.token_to_id(PADDING)
        if padding is None:
            raise LoadFailed(f"tokenizer.json has no token {PADDING}")
        # Both replace what the file says of them.
        self._file.enable_padding(length=text_len, pad_id=padding, pad_token=PADDING)
        self._file.enable_truncation(text_len)
        if self._file.encode("").tokens[:1] != [END]:
            raise LoadFailed(f"tokenizer.json must end each prompt with {END}, by its post-processor")

    def __call__(self, prompt: str) -> tuple[Ids, Ids]:
        """Token ids and mask of a prompt, each [1, text_len]; the mask is 1 at a token, 0 at padding.

        A prompt that is too long loses its last tokens, never its end.
        """
        encoding = self._file.encode(clean(prompt))
        return np.array([encoding.ids], np.int64), np.array([encoding.attention_mask], np.int64)


def clean(prompt: str) -> str:
    """A prompt as Wan cleans it: HTML's entities become characters, twice over, runs of whitespace one space.

    Wan's own code then has ftfy mend text that was decoded wrongly and straighten curly quotes. That is not done here:
    prompts arrive as UTF-8, and their quotes are as the writer wants them.
    """
    text = _SURROGATE.sub("\ufffd", _unescape(_unescape(prompt)))  # half a character can't be encoded
    return " ".join(text.split())


def _unescape(text: str) -> str:
    """`html.unescape` for references of any length: `int` refuses more than 4,300 digits."""
    return html.unescape(_DECIMAL_REFERENCE.sub(_shortened, text))


def _shortened(reference: re.Match[str]) -> str:
    """The same reference without leading zeros; a digit too many keeps it outside Unicode."""
    return "&#" + (reference[1].lstrip("0") or "0")[: _MAX_REFERENCE_DIGITS + 1]


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
        return cls(values, to_device(torch.tensor(values, dtype=torch.float32), device))

    def inputs(self, engine: Engine) -> dict[str, Tensor]:
        """What an engine is given of them: nothing where it has no branches."""
        return {_INPUT: self.tensor} if follows_loras(engine) else {}


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


Tokenize: TypeAlias = Callable[[str], tuple[Ids, Ids]]
"""A prompt to its token ids and its mask, see `filmstrip.runtime.text`."""


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
        embedding = self._engine.run({"ids": to_device(own, self._engine.device)})["embeddings"]
        padded = pad(embedding, (0, 0, 0, ids.shape[1] - own.shape[1]))
        return to_device(padded, self._device) if padded.device.type == "cpu" else padded


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
