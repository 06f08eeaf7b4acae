"""A checkpoint's folder, whole: its configuration and the networks with their weights.

config.json     export.config
*.pt ...        the transformer; several files are its parts
lora/           adapters that belong to it and are merged (LongLive's lora.pt)
vace/           optional: of these files only what begins with `vace_`
vae/            the VAE
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from export.checkpoint import Weights, fill, read_weights, wan_names
from export.config import CheckpointConfig, load_config
from export.errors import BadCheckpoint
from export.lora_files import read_adapter
from export.modules.layers import Linear
from export.modules.lora import merge
from export.modules.text_kv import TextKv
from export.modules.transformer import CausalTransformer
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.vae_key_names import wan_vae_names

_ENDINGS = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Networks:
    """All networks of a checkpoint but the text encoder; those of VACE are None where it has no VACE layers."""

    config: CheckpointConfig
    transformer: CausalTransformer
    text_kv: TextKv
    vace: VaceBranch | None
    vace_text_kv: TextKv | None
    vae_encoder: VaeEncoder
    vae_decoder: VaeDecoder


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
        VaeEncoder(config.vae).eval(),
        VaeDecoder(config.vae).eval(),
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

    fill(wan_vae_names(_read_all(folder / "vae"), config.vae), networks.vae_encoder, networks.vae_decoder)
    return networks


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
