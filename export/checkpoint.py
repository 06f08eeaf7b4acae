"""A checkpoint's networks, with their weights.

`export.checkpoint_files` says which files they come from, and `export.tensor_files` opens them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.checkpoint_files import Checkpoint, WeightFile, open_checkpoint, open_weights
from export.config import CheckpointConfig, TaeConfig, TextEncoderConfig
from export.errors import BadCheckpoint, abbreviate
from export.lora import Adapter, attach, merge, read_adapter
from export.modules.layers import Linear
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.tensor_files import Notes, WeightChoice, Weights, check_finite, unscaled
from export.weight_names import tae_weights, wan_names, wan_text_encoder_names, wan_vae_names


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


def load_networks(folder: Path, choice: WeightChoice | None = None, notes: Notes | None = None) -> Networks:
    """Read a checkpoint's folder.

    Args:
        folder: see the head of this file.
        choice: which weights to use where a file has both trained ones and their average.
        notes: what was chosen and what was left out is added.

    Raises:
        BadConfig: its config.json is missing or wrong, or its text encoder's is wrong.
        BadCheckpoint: weights are missing, unexpected or have the wrong shape.
    """
    notes = notes or Notes()
    return load_checkpoint(open_checkpoint(folder, choice or WeightChoice(), notes), notes)


def load_checkpoint(checkpoint: Checkpoint, notes: Notes) -> Networks:
    """Read the networks of a checkpoint whose files are known.

    Raises:
        BadCheckpoint: weights are missing, unexpected or have the wrong shape.
    """
    config, files = checkpoint.config, checkpoint.files
    weights = wan_names(_weights(files.transformer))
    encoder = None
    if checkpoint.text_encoder is not None:
        encoder = _load_text_encoder(checkpoint.text_encoder, files.text_encoder, config.text_len)
    networks = build_networks(config, encoder)

    vae_weights = _weights(files.vae)
    if isinstance(networks.vae_decoder, TaeDecoder):
        vae_weights = tae_weights(vae_weights, networks.vae_decoder)
    else:
        vae_weights = wan_vae_names(vae_weights, config.vae)
    load_into(vae_weights, networks.vae_encoder, networks.vae_decoder)

    if networks.vace is not None:
        # A release of VACE has a transformer of its own; the branch uses this checkpoint's embeddings.
        released = wan_names(_weights(files.vace))
        weights |= {name: value for name, value in released.items() if name.startswith("vace_")}
    load_into(weights, *networks.denoisers)

    for file in files.loras:
        weights = _weights([file])
        adapter = _adapter(file.path.stem, weights, networks, default_alpha=config.lora_alpha)
        _warn(adapter, notes)
        merge(adapter, *networks.denoisers)
    return networks


def attach_loras(networks: Networks, loras: Mapping[str, Path], notes: Notes | None = None) -> None:
    """Attach LoRA files, by name, as branches to all networks that they change; what is left out is noted.

    Raises:
        BadCheckpoint: a file can't be read or fits no network.
    """
    adapters = [_adapter(name, read_weights(path), networks) for name, path in loras.items()]
    for adapter in adapters:
        _warn(adapter, notes or Notes())
    attach(adapters, *networks.denoisers)


def _adapter(name: str, weights: Weights, networks: Networks, *, default_alpha: float | None = None) -> Adapter:
    parameters = {name for network in networks.denoisers for name, _ in network.named_parameters()}
    return read_adapter(name, weights, networks.linear_layers, parameters=parameters, default_alpha=default_alpha)


def _warn(adapter: Adapter, notes: Notes) -> None:
    if adapter.warning is not None:
        notes.add(adapter.warning)


def read_weights(path: Path) -> Weights:
    """Read a file of weights, with its own names; no code in the file is run.

    Raises:
        BadCheckpoint: the file has another suffix, can't be read, or holds no weights, or several sets of them.
    """
    return _weights([open_weights(path, WeightChoice(), Notes())])


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


def _load_text_encoder(config: TextEncoderConfig, files: Sequence[WeightFile], text_len: int) -> TextEncoder:
    weights = wan_text_encoder_names(_weights(files))
    # UMT5-XXL has 5.7 billion parameters: left in bfloat16 they take 11 GiB, not 21.
    in_bfloat16 = all(value.dtype == torch.bfloat16 for value in weights.values())
    with _default_dtype(torch.bfloat16 if in_bfloat16 else torch.float32):
        encoder = TextEncoder(config, text_len).eval()
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


def _weights(files: Sequence[WeightFile]) -> Weights:
    """The weights of several files, which must not repeat each other."""
    weights: Weights = {}
    for file in files:
        loaded = unscaled(file.path, file.tensors)
        check_finite(file.path, loaded)
        repeated = sorted(weights.keys() & loaded.keys())
        if repeated:
            raise BadCheckpoint(
                f"{file.path.name} repeats weights of another file, starting with {repeated[0]}: "
                "leave only one of the two in the folder"
            )
        weights |= loaded
    return weights
