"""A checkpoint's folder: its configuration, its networks and their weights.

config.json     see export.config
*.pt ...        the transformer, in one file or several
lora/           adapters that belong to the checkpoint and are merged (LongLive's lora.pt)
vace/           optional: only weights that begin with `vace_` are read
vae/            the VAE, or the tiny autoencoder in its place
text_encoder/   optional: UMT5's encoder, its config.json and tokenizer.json
tokenizer/      optional: tokenizer.json, if it is not in text_encoder/
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.config import CheckpointConfig, TaeConfig, TextEncoderConfig, load_config, load_text_encoder_config
from export.errors import BadCheckpoint, abbreviate
from export.lora import attach, merge, read_adapter
from export.modules.layers import Linear
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.spec import Component
from export.weight_names import Weights, tae_weights, wan_names, wan_text_encoder_names, wan_vae_names

_SUFFIXES = (".safetensors", ".pt", ".pth")
_NESTING_KEYS = ("generator", "generator_lora", "state_dict")


@dataclass(frozen=True)
class Networks:
    """All networks of a checkpoint.

    Those of VACE are None if the configuration has no VACE layers, the text encoder if the checkpoint has no folder for
    it. All are in float32, except a text encoder whose file is in bfloat16.
    """

    config: CheckpointConfig
    transformer: CausalTransformer
    text_kv: TextKv
    vace: VaceBranch | None
    vace_text_kv: TextKv | None
    vae_encoder: VaeEncoder | TaeEncoder
    vae_decoder: VaeDecoder | TaeDecoder
    text_encoder: TextEncoder | None

    @property
    def denoisers(self) -> list[nn.Module]:
        """The networks that share the transformer's weight files, and that a LoRA can change."""
        networks = (self.transformer, self.text_kv, self.vace, self.vace_text_kv)
        return [network for network in networks if network is not None]

    @property
    def linear_layers(self) -> list[str]:
        """Names of the linear layers that a LoRA can change."""
        return [
            name for network in self.denoisers for name, layer in network.named_modules() if isinstance(layer, Linear)
        ]


def build_networks(config: CheckpointConfig, text_encoder: TextEncoder | None = None) -> Networks:
    """All networks of a configuration, their weights not yet loaded."""
    tae = config.vae if isinstance(config.vae, TaeConfig) else None
    return Networks(
        config,
        CausalTransformer(config).eval(),
        TextKv(config).eval(),
        VaceBranch(config).eval() if config.vace_layers else None,
        TextKv(config, vace=True).eval() if config.vace_layers else None,
        (VaeEncoder(config.vae) if tae is None else TaeEncoder(tae)).eval(),
        (VaeDecoder(config.vae) if tae is None else TaeDecoder(tae)).eval(),
        text_encoder,
    )


def meta_networks(config: CheckpointConfig, text_encoder: TextEncoderConfig | None = None) -> Networks:
    """All networks of a configuration on the meta device: their weights have shapes but take no memory."""
    with torch.device("meta"):
        return build_networks(
            config, None if text_encoder is None else TextEncoder(text_encoder, config.text_len).eval()
        )


def load_networks(folder: Path) -> Networks:
    """Read a checkpoint's folder.

    Raises:
        BadConfig: its config.json is missing or wrong, or its text encoder's is wrong.
        BadCheckpoint: weights are missing, unexpected or have the wrong shape.
    """
    config = load_config(folder)
    weights = wan_names(_read_folder(folder))
    has_text_encoder = (folder / "text_encoder").is_dir()
    networks = build_networks(config, _load_text_encoder(folder / "text_encoder", config) if has_text_encoder else None)

    vae_weights = _read_folder(folder / "vae")
    if isinstance(networks.vae_decoder, TaeDecoder):
        vae_weights = tae_weights(vae_weights, networks.vae_decoder)
    else:
        vae_weights = wan_vae_names(vae_weights, config.vae)
    load_into(vae_weights, networks.vae_encoder, networks.vae_decoder)

    if networks.vace is not None and (folder / "vace").is_dir():
        # A release of VACE has a transformer of its own; the branch uses this checkpoint's embeddings.
        released = wan_names(_read_folder(folder / "vace"))
        weights |= {name: value for name, value in released.items() if name.startswith("vace_")}
    load_into(weights, *networks.denoisers)

    layers = networks.linear_layers
    for path in _weight_files(folder / "lora"):
        adapter = read_adapter(path.stem, read_weights(path), layers, default_alpha=config.lora_alpha)
        merge(adapter, *networks.denoisers)
    return networks


def attach_loras(networks: Networks, loras: Mapping[str, Path]) -> None:
    """Attach LoRA files, by name, as branches to all networks that they change.

    Raises:
        BadCheckpoint: a file can't be read or fits no network.
    """
    layers = networks.linear_layers
    attach([read_adapter(name, read_weights(path), layers) for name, path in loras.items()], *networks.denoisers)


def read_weights(path: Path) -> Weights:
    """Read a `.safetensors`, `.pt` or `.pth` file, with its own names; no code in the file is run.

    Raises:
        BadCheckpoint: the file has another suffix, can't be read, or holds something other than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415 - needed for this format only

            return dict(load_file(path))
        if path.suffix not in (".pt", ".pth"):
            raise BadCheckpoint(f"{path.name}: weights must be .safetensors, .pt or .pth")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except BadCheckpoint:
        raise
    except Exception as error:  # the two loaders raise anything on a broken file
        raise BadCheckpoint(f"{path.name} can't be read: {error}") from error
    for key in _NESTING_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise BadCheckpoint(f"{path.name} must hold named tensors, not {type(loaded).__name__}")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise BadCheckpoint(f"{path.name} holds values that are not tensors: {abbreviate(others)}")
    return dict(loaded)


def load_into(weights: Mapping[str, Tensor], *modules: nn.Module) -> None:
    """Copy weights into modules that may share them: at least one module must have each name.

    Raises:
        BadCheckpoint: names are missing or unexpected, or shapes differ. Nothing is copied then.
    """
    transposed = [
        {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, Linear)} for module in modules
    ]
    expected = [dict(module.named_parameters()) for module in modules]
    missing = sorted({name for parameters in expected for name in parameters if name not in weights})
    unexpected = sorted(set(weights).difference(*expected))
    wrong_shapes = set()
    for linear_weights, parameters in zip(transposed, expected, strict=True):
        for name in parameters.keys() & weights.keys():
            shape = list(parameters[name].shape)
            shape = shape[::-1] if name in linear_weights else shape
            if list(weights[name].shape) != shape:
                wrong_shapes.add(f"{name} is {list(weights[name].shape)}, not {shape}")
    problems = [
        f"{what}: {abbreviate(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(wrong_shapes)))
        if names
    ]
    if problems:
        raise BadCheckpoint(f"the weights don't fit: {'; '.join(problems)}")
    with torch.no_grad():
        for linear_weights, parameters in zip(transposed, expected, strict=True):
            for name, parameter in parameters.items():
                value = weights[name]
                parameter.copy_(value.T if name in linear_weights else value)


def weight_files(folder: Path) -> dict[Component, list[Path]]:
    """The files of a checkpoint's folder that each component is built from, including each `config.json`."""
    folders = {
        Component.TRANSFORMER: (folder, folder / "lora", folder / "vace"),
        Component.VAE: (folder / "vae",),
        Component.TEXT_ENCODER: (folder / "text_encoder",),
    }
    configs = [path for path in (folder / "config.json", folder / "text_encoder" / "config.json") if path.is_file()]
    return {
        component: configs + [path for one in sources for path in _weight_files(one)]
        for component, sources in folders.items()
    }


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer.json of a checkpoint's folder, from `text_encoder/` or `tokenizer/`.

    Raises:
        BadCheckpoint: there is none; the message says where to get one.
    """
    for path in (folder / "text_encoder" / "tokenizer.json", folder / "tokenizer" / "tokenizer.json"):
        if path.is_file():
            return path
    raise BadCheckpoint(
        f"{folder} has no tokenizer.json in text_encoder or tokenizer: copy the one of the encoder's release "
        "(Wan's is google/umt5-xxl), or have transformers make it from a spiece.model: "
        "T5Tokenizer.from_pretrained(folder).save_pretrained(folder), with sentencepiece installed"
    )


def _load_text_encoder(folder: Path, config: CheckpointConfig) -> TextEncoder:
    encoder_config = load_text_encoder_config(folder, text_dim=config.text_dim)
    weights = wan_text_encoder_names(_read_folder(folder))
    # UMT5-XXL has 5.7 billion parameters: left in bfloat16 they take 11 GiB, not 21.
    in_bfloat16 = all(value.dtype == torch.bfloat16 for value in weights.values())
    with _default_dtype(torch.bfloat16 if in_bfloat16 else torch.float32):
        encoder = TextEncoder(encoder_config, config.text_len).eval()
    load_into(weights, encoder)
    return encoder


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters created inside have this type from the start, and never take memory as another type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES)


def _read_folder(folder: Path) -> Weights:
    """The weights of all files in a folder, which must not repeat each other."""
    paths = _weight_files(folder)
    if not paths:
        raise BadCheckpoint(f"{folder} has no weights: no file ends in {', '.join(_SUFFIXES)}")
    weights: Weights = {}
    for path in paths:
        loaded = read_weights(path)
        repeated = sorted(weights.keys() & loaded.keys())
        if repeated:
            raise BadCheckpoint(f"{path.name} repeats weights of another file, starting with {repeated[0]}")
        weights |= loaded
    return weights
