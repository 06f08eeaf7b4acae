"""A checkpoint's folder, whole: its configuration and the networks with their weights.

config.json     export.config
*.pt ...        the transformer; several files are its parts
lora/           adapters that belong to it and are merged (LongLive's lora.pt)
vace/           optional: of these files only what begins with `vace_`
vae/            the VAE, or the tiny autoencoder in its place
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from export.checkpoint import Weights, fill, read_weights, wan_names
from export.config import CheckpointConfig, TaeConfig, VaeConfig, load_config
from export.errors import BadCheckpoint
from export.lora_files import read_adapter
from export.modules.layers import Linear
from export.modules.lora import merge
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.text_kv import TextKv
from export.modules.transformer import CausalTransformer
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.tae_weights import tae_weights
from export.vae_key_names import wan_vae_names

_ENDINGS = (".safetensors", ".pt", ".pth")

Autoencoder = tuple[VaeEncoder, VaeDecoder] | tuple[TaeEncoder, TaeDecoder]
"""What makes latents of pixels and pixels of latents; all are called in the same way."""


@dataclass(frozen=True)
class Networks:
    """All networks of a checkpoint but the text encoder; those of VACE are None where it has no VACE layers."""

    config: CheckpointConfig
    transformer: CausalTransformer
    text_kv: TextKv
    vace: VaceBranch | None
    vace_text_kv: TextKv | None
    vae_encoder: VaeEncoder | TaeEncoder
    vae_decoder: VaeDecoder | TaeDecoder


def load_networks(folder: Path) -> Networks:
    """Read a checkpoint's folder.

    Raises:
        BadConfig: its config.json is missing or wrong.
        BadCheckpoint: weights are missing, unexpected or misshapen.
    """
    config = load_config(folder)
    weights = wan_names(_read_all(folder))
    networks = Networks(
        config,
        CausalTransformer(config).eval(),
        TextKv(config).eval(),
        VaceBranch(config).eval() if config.vace_layers else None,
        TextKv(config, vace=True).eval() if config.vace_layers else None,
        *load_autoencoder(folder / "vae", config.vae),
    )
    parts: list[nn.Module] = [networks.transformer, networks.text_kv]
    if networks.vace is not None and networks.vace_text_kv is not None:
        parts += [networks.vace, networks.vace_text_kv]
        if (folder / "vace").is_dir():
            # A release of VACE carries a transformer of its own; the branch sees this one's embeddings.
            released = wan_names(_read_all(folder / "vace"))
            weights |= {name: value for name, value in released.items() if name.startswith("vace_")}
    fill(weights, *parts)

    layers = [name for part in parts for name, layer in part.named_modules() if isinstance(layer, Linear)]
    for path in _weight_files(folder / "lora"):
        adapter = read_adapter(path.stem, read_weights(path), layers, default_alpha=config.lora_alpha)
        merge(adapter, *parts)
    return networks


def load_autoencoder(folder: Path, config: VaeConfig) -> Autoencoder:
    """Read the autoencoder that `config.type` names from a folder of its own.

    Raises:
        BadCheckpoint: weights are missing, unexpected or misshapen.
    """
    weights = _read_all(folder)
    if isinstance(config, TaeConfig):
        tae = TaeEncoder(config).eval(), TaeDecoder(config).eval()
        fill(tae_weights(weights, tae[1]), *tae)
        return tae
    vae = VaeEncoder(config).eval(), VaeDecoder(config).eval()
    fill(wan_vae_names(weights, config), *vae)
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
