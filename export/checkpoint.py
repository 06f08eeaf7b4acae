"""A checkpoint's folder, whole: its configuration and the networks with their weights.

config.json     export.config
*.pt ...        the transformer; several files are its parts
lora/           adapters that belong to it and are merged (LongLive's lora.pt)
vace/           optional: of these files only what begins with `vace_`
vae/            the VAE, or the tiny autoencoder in its place
text_encoder/   optional: UMT5's encoder, its config.json and tokenizer.json
tokenizer/      optional: tokenizer.json, where it does not lie in text_encoder/
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.config import CheckpointConfig, TaeConfig, VaeConfig, load_config, load_text_encoder_config
from export.errors import BadCheckpoint, abbreviate
from export.lora import merge, read_adapter
from export.modules.layers import Linear
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.spec import Component
from export.weight_names import Weights, tae_weights, wan_names, wan_text_encoder_names, wan_vae_names

_NESTS = ("generator", "generator_lora", "state_dict")


def read_weights(path: Path) -> Weights:
    """Read a `.safetensors`, `.pt` or `.pth` file, names as they are in it; no code of the file's is run.

    Raises:
        BadCheckpoint: the file has another ending, can't be read, or holds something else than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415 - needed for this form alone

            return dict(load_file(path))
        if path.suffix not in (".pt", ".pth"):
            raise BadCheckpoint(f"{path.name}: weights must be .safetensors, .pt or .pth")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except BadCheckpoint:
        raise
    except Exception as error:  # the two loaders raise what they like on a broken file
        raise BadCheckpoint(f"{path.name} can't be read: {error}") from error
    for nest in _NESTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nest), Mapping):
            loaded = loaded[nest]
    if not isinstance(loaded, Mapping):
        raise BadCheckpoint(f"{path.name} must hold named tensors, not {type(loaded).__name__}")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise BadCheckpoint(f"{path.name} holds what is no tensor: {abbreviate(others)}")
    return dict(loaded)


def load_into(weights: Mapping[str, Tensor], *modules: nn.Module) -> None:
    """Copy weights into modules that share them out: each name must be wanted by one module or more.

    Raises:
        BadCheckpoint: names are missing or unexpected, or shapes differ. Nothing was copied then.
    """
    linear = [
        {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Linear)} for module in modules
    ]
    wanted = [dict(module.named_parameters()) for module in modules]
    missing = sorted({name for parameters in wanted for name in parameters if name not in weights})
    unexpected = sorted(set(weights).difference(*wanted))
    misshapen = []
    for transposed, parameters in zip(linear, wanted, strict=True):
        for name in parameters.keys() & weights.keys():
            shape = list(parameters[name].shape)
            expected = shape[::-1] if name in transposed else shape
            if list(weights[name].shape) != expected:
                misshapen.append(f"{name} is {list(weights[name].shape)}, not {expected}")
    problems = [
        f"{what}: {abbreviate(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", sorted(set(misshapen))),
        )
        if names
    ]
    if problems:
        raise BadCheckpoint(f"the weights don't fit: {'; '.join(problems)}")
    with torch.no_grad():
        for transposed, parameters in zip(linear, wanted, strict=True):
            for name, parameter in parameters.items():
                value = weights[name]
                parameter.copy_(value.T if name in transposed else value)


_ENDINGS = (".safetensors", ".pt", ".pth")

Autoencoder = tuple[VaeEncoder, VaeDecoder] | tuple[TaeEncoder, TaeDecoder]
"""What makes latents of pixels and pixels of latents; all are called in the same way."""


@dataclass(frozen=True)
class Networks:
    """All networks of a checkpoint.

    Those of VACE are None where it has no VACE layers, the text encoder where it has no folder for it. All are in
    float32, but for a text encoder whose file is in bfloat16.
    """

    config: CheckpointConfig
    transformer: CausalTransformer
    text_kv: TextKv
    vace: VaceBranch | None
    vace_text_kv: TextKv | None
    vae_encoder: VaeEncoder | TaeEncoder
    vae_decoder: VaeDecoder | TaeDecoder
    text_encoder: TextEncoder | None


def load_networks(folder: Path) -> Networks:
    """Read a checkpoint's folder.

    Raises:
        BadConfig: its config.json is missing or wrong, or that of its text encoder is wrong.
        BadCheckpoint: weights are missing, unexpected or misshapen.
    """
    config = load_config(folder)
    weights = wan_names(_read_all(folder))
    vae_encoder, vae_decoder = load_autoencoder(folder / "vae", config.vae)
    networks = Networks(
        config,
        CausalTransformer(config).eval(),
        TextKv(config).eval(),
        VaceBranch(config).eval() if config.vace_layers else None,
        TextKv(config, vace=True).eval() if config.vace_layers else None,
        vae_encoder,
        vae_decoder,
        _load_text_encoder(folder / "text_encoder", config) if (folder / "text_encoder").is_dir() else None,
    )
    parts: list[nn.Module] = [networks.transformer, networks.text_kv]
    if networks.vace is not None and networks.vace_text_kv is not None:
        parts += [networks.vace, networks.vace_text_kv]
        if (folder / "vace").is_dir():
            # A release of VACE carries a transformer of its own; the branch sees this one's embeddings.
            released = wan_names(_read_all(folder / "vace"))
            weights |= {name: value for name, value in released.items() if name.startswith("vace_")}
    load_into(weights, *parts)

    layers = [name for part in parts for name, layer in part.named_modules() if isinstance(layer, Linear)]
    for path in _weight_files(folder / "lora"):
        adapter = read_adapter(path.stem, read_weights(path), layers, default_alpha=config.lora_alpha)
        merge(adapter, *parts)
    return networks


def weight_files(folder: Path) -> dict[Component, list[Path]]:
    """The files of a checkpoint's folder that each part of its networks is made of, `config.json` among them."""
    folders = {
        Component.TRANSFORMER: (folder, folder / "lora", folder / "vace"),
        Component.VAE: (folder / "vae",),
        Component.TEXT_ENCODER: (folder / "text_encoder",),
    }
    configs = [folder / "config.json", folder / "text_encoder" / "config.json"]
    return {
        part: [path for path in configs if path.is_file()] + [file for one in places for file in _weight_files(one)]
        for part, places in folders.items()
    }


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer.json of a checkpoint's folder, from `text_encoder/` or `tokenizer/`.

    Raises:
        BadCheckpoint: there is none; the message says where one comes from.
    """
    for path in (folder / "text_encoder" / "tokenizer.json", folder / "tokenizer" / "tokenizer.json"):
        if path.is_file():
            return path
    raise BadCheckpoint(
        f"{folder} has no tokenizer.json in text_encoder or tokenizer: copy that of the encoder's release, Wan's from "
        "google/umt5-xxl, or have transformers make it of a spiece.model: "
        "T5Tokenizer.from_pretrained(folder).save_pretrained(folder), with sentencepiece installed"
    )


def _load_text_encoder(folder: Path, config: CheckpointConfig) -> TextEncoder:
    encoder_config = load_text_encoder_config(folder, text_dim=config.text_dim)
    weights = wan_text_encoder_names(_read_all(folder))
    # UMT5-XXL has 5.7 billion parameters: left in bfloat16 they take 11 GiB, not 21.
    in_bfloat16 = all(value.dtype == torch.bfloat16 for value in weights.values())
    with _default_type(torch.bfloat16 if in_bfloat16 else torch.float32):
        encoder = TextEncoder(encoder_config, config.text_len).eval()
    load_into(weights, encoder)
    return encoder


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    """Parameters that a `with` block makes are of this type from the start, never in memory as another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def load_autoencoder(folder: Path, config: VaeConfig) -> Autoencoder:
    """Read the autoencoder that `config.type` names from a folder of its own.

    Raises:
        BadCheckpoint: weights are missing, unexpected or misshapen.
    """
    weights = _read_all(folder)
    if isinstance(config, TaeConfig):
        tae = TaeEncoder(config).eval(), TaeDecoder(config).eval()
        load_into(tae_weights(weights, tae[1]), *tae)
        return tae
    vae = VaeEncoder(config).eval(), VaeDecoder(config).eval()
    load_into(wan_vae_names(weights, config), *vae)
    return vae


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in _ENDINGS)


def _read_all(folder: Path) -> Weights:
    """The weights of all files of a folder, which must not repeat each other."""
    files = _weight_files(folder)
    if not files:
        raise BadCheckpoint(f"{folder} has no weights: no file ends in {', '.join(_ENDINGS)}")
    weights: Weights = {}
    for path in files:
        read = read_weights(path)
        twice = sorted(weights.keys() & read.keys())
        if twice:
            raise BadCheckpoint(f"{path.name} repeats weights of another file, {twice[0]} first")
        weights |= read
    return weights
