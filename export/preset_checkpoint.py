"""A preset and the sources of its files make a checkpoint: every file is told by what it holds, or by its name.

Repositories of the hub are listed first, then only the files that are used are downloaded.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.checkpoint_files import Checkpoint, CheckpointFiles, WeightFile, open_weights
from export.config import (
    UMT5_XXL,
    CheckpointConfig,
    TextEncoderConfig,
    parse_config,
    parse_text_encoder_config,
    read_json,
)
from export.errors import BadCheckpoint, BadConfig, abbreviate
from export.presets import VACE_REPOSITORY, WAN_REPOSITORIES, Preset
from export.recognition import Kind
from export.sources import Source, SourceFile, download, open_source
from export.tensor_files import SUFFIXES, Notes, WeightChoice, Weights, WeightSet, weight_names
from export.weight_names import wan_names, wan_vae_names

_VAE_NAMES = re.compile(r"(^|/)vae/|vae[^/]*$|(^|/)(light)?tae[^/]*$", re.IGNORECASE)
_ENCODER_NAMES = re.compile(r"(^|/)text_encoder/|umt5|t5[_-]", re.IGNORECASE)
_VACE_NAMES = re.compile(r"vace", re.IGNORECASE)


@dataclass(frozen=True)
class PresetFiles:
    """The files that a preset needs, by part; those of a hub may not be downloaded yet.

    Attributes:
        parts: by the part's name: transformer, lora, vace, vae, text_encoder, tokenizer, configs.
        missing: parts that no source has, with what to do.
    """

    parts: Mapping[str, tuple[SourceFile, ...]]
    missing: tuple[str, ...] = ()
    sources: tuple[Source, ...] = field(default=(), repr=False)


def sources_of(preset: Preset, names: Sequence[str], *, vace: bool) -> list[Source]:
    """Open the sources that were named, or the preset's own repositories.

    Raises:
        BadCheckpoint: one can't be opened.
    """
    own = [preset.repositories[0], WAN_REPOSITORIES[0], *([VACE_REPOSITORY] if vace else [])]
    return [open_source(name) for name in names or own]


def find_parts(preset: Preset, sources: Sequence[Source], *, vace: bool | None) -> PresetFiles:
    """Find the files of a preset; of several transformers, the preset's own or the first source's.

    Args:
        preset: the model.
        sources: in the order in which they are searched.
        vace: whether to take a VACE branch; None to take one that a folder here has.

    Raises:
        BadCheckpoint: a file can't be read, or a source has several transformers and none has the preset's name.
    """
    found: dict[str, tuple[SourceFile, ...]] = {}
    for source in sources:
        for part, files in _parts_of(preset, source).items():
            own = _own_name(preset, part)
            if own and _has_name(files, own) and not _has_name(found.get(part, ()), own):
                found[part] = files
            elif part == "configs":
                found[part] = (*found.get(part, ()), *files)
            else:
                found.setdefault(part, files)
    if vace is False or (vace is None and not all(file.path for file in found.get("vace", ()))):
        found.pop("vace", None)
    if preset.lora is None:
        found.pop("lora", None)
    missing = [
        f"{what}: {where}"
        for part, what, where in (
            ("transformer", f"the transformer ({preset.transformer})", f"--from {' or '.join(preset.repositories)}"),
            ("lora", f"the LoRA that belongs to it ({preset.lora})", f"--from {' or '.join(preset.repositories)}"),
            ("vae", "the VAE (Wan2.1_VAE.pth)", f"--from {' or '.join(WAN_REPOSITORIES)}"),
            ("text_encoder", "the text encoder (models_t5_umt5-xxl-enc-bf16.pth)", f"--from {WAN_REPOSITORIES[0]}"),
            ("tokenizer", "the tokenizer (google/umt5-xxl/tokenizer.json)", f"--from {' or '.join(WAN_REPOSITORIES)}"),
            ("vace", "the VACE branch", f"--from {VACE_REPOSITORY}"),
        )
        if part not in found and not (part == "lora" and preset.lora is None) and not (part == "vace" and not vace)
    ]
    return PresetFiles(found, tuple(missing), tuple(sources))


def _own_name(preset: Preset, part: str) -> str | None:
    """The file that a part has in the preset's repositories, None if any will do."""
    return {"transformer": preset.transformer, "lora": preset.lora}.get(part)


def _has_name(files: Sequence[SourceFile], name: str) -> bool:
    """Whether one of the files has this name, with or without its folder."""
    return any(f"/{file.name}".endswith((f"/{name}", f"/{name.rpartition('/')[2]}")) for file in files)


def _parts_of(preset: Preset, source: Source) -> dict[str, tuple[SourceFile, ...]]:
    """The files of one source by part."""
    groups: dict[str, dict[str, list[SourceFile]]] = {}  # part, folder
    for file in source.files:
        part = _part_of(preset, file)
        if part is not None:
            folder = file.name.rpartition("/")[0]
            groups.setdefault(part, {}).setdefault(folder, []).append(file)
    return {part: tuple(_pick(preset, source, part, by_folder)) for part, by_folder in groups.items()}


def _pick(
    preset: Preset, source: Source, part: str, by_folder: Mapping[str, Sequence[SourceFile]]
) -> Sequence[SourceFile]:
    if part == "configs":
        return [file for files in by_folder.values() for file in files]
    groups = [group for files in by_folder.values() for group in _variants(files)]
    if part == "tokenizer":
        return groups[0]
    name = _own_name(preset, part)
    for exact in (name, name and name.rpartition("/")[2]):
        own = [group for group in groups if exact and any(f"/{file.name}".endswith(f"/{exact}") for file in group)]
        if len(own) == 1:
            return own[0]
    if len(groups) > 1:
        names = abbreviate(group[0].name for group in groups)
        raise BadCheckpoint(f"{source.name} has several files for the {part}: {names}; name one of them with --from")
    return groups[0]


def _variants(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """Files of a folder in groups: the parts of one set of weights together, other files alone."""
    groups: dict[str, list[SourceFile]] = {}
    for file in files:
        name = re.sub(r"[-_.]\d{5}-of-\d{5}", "", file.name)
        groups.setdefault(name, []).append(file)
    plain = [name for name in groups if not re.search(r"\.(fp16|bf16|fp8|ema|non_ema)\.\w+$", name)]
    for name in plain or groups:
        yield groups[name]


def _part_of(preset: Preset, file: SourceFile) -> str | None:
    """Which part a file is, None for what is not needed."""
    base = file.name.rpartition("/")[2]
    if base == "tokenizer.json":
        return "tokenizer"
    if base == "config.json":
        return "configs"
    if not base.endswith(SUFFIXES):
        return None
    return _part_by_content(file.path) if file.path is not None else _part_by_name(preset, file.name)


def _part_by_name(preset: Preset, name: str) -> str | None:
    if preset.lora is not None and name.endswith(preset.lora):
        return "lora"
    if name.endswith(preset.transformer):
        return "transformer"
    for part, pattern in (("text_encoder", _ENCODER_NAMES), ("vae", _VAE_NAMES), ("vace", _VACE_NAMES)):
        if pattern.search(name):
            return part
    return "transformer"


def _part_by_content(path: Path) -> str | None:
    file = open_weights(path, WeightChoice(WeightSet.EMA, is_default=True), Notes())
    if file.recognition.kind is Kind.TRANSFORMER and any("vace_blocks" in name for name in file.tensors):
        return "vace"
    parts = {
        Kind.TRANSFORMER: "transformer",
        Kind.LORA: "lora",
        Kind.VACE: "vace",
        Kind.VAE: "vae",
        Kind.TAE: "vae",
        Kind.TEXT_ENCODER: "text_encoder",
    }
    return None if file.recognition.kind is None else parts[file.recognition.kind]


# -- From files to a checkpoint -------------------------------------------------------------------------------


def download_parts(files: PresetFiles) -> PresetFiles:
    """Download what is not here yet.

    Raises:
        BadCheckpoint: a part is missing everywhere, or a download fails.
    """
    if files.missing:
        raise BadCheckpoint(f"missing: {'; '.join(files.missing)}")
    here: dict[SourceFile, SourceFile] = {}
    for source in files.sources:
        wanted = [
            file for part in files.parts.values() for file in part if file.source == source.name and not file.path
        ]
        here |= dict(zip(wanted, download(source, wanted).files, strict=False)) if wanted else {}
    parts = {part: tuple(here.get(file, file) for file in group) for part, group in files.parts.items()}
    return replace(files, parts=parts)


def open_preset(preset: Preset, files: PresetFiles, choice: WeightChoice, notes: Notes) -> Checkpoint:
    """Open the files of a preset, all of which are here.

    Raises:
        BadConfig: a config.json describes another kind of network.
        BadCheckpoint: a file can't be read.
    """
    if choice.weights is None:
        choice = WeightChoice(preset.weights, is_default=True)
    opened = {
        part: tuple(open_weights(path, choice, notes) for path in _paths(group) if path.suffix in SUFFIXES)
        for part, group in files.parts.items()
    }
    config = preset_config(preset, files, opened)
    encoder = _encoder_config(files)
    if encoder.dim != config.text_dim:
        raise BadConfig(f"the text encoder's d_model is {encoder.dim}, the transformer's text_dim {config.text_dim}")
    tokenizer = next(iter(_paths(files.parts.get("tokenizer", ()))), None)
    root = _paths(files.parts["transformer"])[0].parent
    return Checkpoint(
        root,
        config,
        encoder,
        CheckpointFiles(
            transformer=opened["transformer"],
            loras=opened.get("lora", ()),
            vace=opened.get("vace", ()),
            vae=opened["vae"],
            text_encoder=opened["text_encoder"],
            configs=(),
            tokenizer=tokenizer,
        ),
        choice,
    )


def _paths(files: Sequence[SourceFile]) -> list[Path]:
    return [file.path for file in files if file.path is not None]


def preset_config(preset: Preset, files: PresetFiles, opened: Mapping[str, Sequence[WeightFile]]) -> CheckpointConfig:
    """The configuration of a preset's checkpoint: dimensions from a config.json or the weights, all else the preset's.

    Raises:
        BadConfig: a config.json describes another kind of network, or the result is not possible.
    """
    values: dict[str, Any] = dict(preset.settings)
    weights = _names_of(opened["transformer"])
    values |= _dims_of_weights(weights, values)
    values |= _dims_of_config(_config_beside(files, "transformer", _is_transformer_config))
    values["vae"] = _vae_values(files, opened["vae"])
    if opened.get("vace"):
        branch = _names_of(opened["vace"])
        count = 1 + max(int(name.split(".")[1]) for name in branch if name.startswith("vace_blocks."))
        every = max(1, values["num_layers"] // count)
        values["vace_layers"] = [index * every for index in range(count)]
        values["vace_in_dim"] = branch["vace_patch_embedding.weight"].shape[1]
    return parse_config(values)


def _names_of(files: Sequence[WeightFile]) -> Weights:
    """The weights of some files by Wan's names, only for their shapes."""
    return wan_names({name: file.tensors[name] for file in files for name in weight_names(file.tensors)})


def _dims_of_weights(weights: Weights, values: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions that shapes show; the number of heads only if each has as many channels as in Wan."""
    shapes = {name: value.shape for name, value in weights.items()}
    needed = ("patch_embedding.weight", "blocks.0.ffn.0.weight", "head.head.weight", "time_embedding.0.weight")
    if any(name not in shapes for name in (*needed, "text_embedding.0.weight")):
        return {}  # the message about missing weights says more
    patch, ffn, head, time, text = (shapes[name] for name in (*needed, "text_embedding.0.weight"))
    dims = {
        "dim": patch[0],
        "in_dim": patch[1],
        "patch_size": list(patch[2:]),
        "ffn_dim": ffn[0],
        "out_dim": head[0] // (patch[3] * patch[4]),
        "freq_dim": time[1],
        "text_dim": text[1],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
    }
    head_dim = values["dim"] // values["num_heads"]
    return {**dims, "num_heads": max(1, patch[0] // head_dim)}


_WAN_KEYS = (
    "dim",
    "ffn_dim",
    "num_heads",
    "num_layers",
    "in_dim",
    "out_dim",
    "freq_dim",
    "text_len",
    "eps",
    "text_dim",
)
_DIFFUSERS_KEYS = {
    "num_attention_heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    **{key: key for key in ("ffn_dim", "num_layers", "freq_dim", "eps", "text_dim", "patch_size")},
}


def _is_transformer_config(values: Mapping[str, Any]) -> bool:
    return (
        "num_layers" in values and ("num_heads" in values or "num_attention_heads" in values) and "d_kv" not in values
    )


def _dims_of_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions in a config.json of Wan or of diffusers.

    Raises:
        BadConfig: it is that of another kind of network.
    """
    kind = values.get("model_type", "t2v")
    if kind not in ("t2v", "vace") or values.get("added_kv_proj_dim") or values.get("image_dim"):
        name = "image-to-video" if kind == "t2v" else kind
        raise BadConfig(f"config.json describes a {name} model; presets are for text-to-video (t2v)")
    if "num_attention_heads" in values:
        dims = {ours: values[theirs] for theirs, ours in _DIFFUSERS_KEYS.items() if theirs in values}
        if "attention_head_dim" in values:
            dims["dim"] = values["attention_head_dim"] * values["num_attention_heads"]
        return dims
    return {key: values[key] for key in _WAN_KEYS if key in values}


def _vae_values(files: PresetFiles, opened: Sequence[WeightFile]) -> dict[str, Any]:
    config = _config_beside(files, "vae", lambda values: "z_dim" in values)
    keys = ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "latents_mean", "latents_std")
    values = {key: config[key] for key in keys if key in config}
    if opened[0].recognition.kind is Kind.TAE:
        kind = "lighttae" if "lighttae" in opened[0].path.name.lower() else "tae"
        first = opened[0].tensors.get("encoder.0.weight")
        return {"type": kind, **({} if first is None else {"base_dim": first.shape[0]}), **values}
    weights = wan_vae_names(
        {name: opened[0].tensors[name] for name in weight_names(opened[0].tensors)},
        parse_config({**_ANY, "vae": values}).vae,
    )
    if "encoder.conv1.weight" in weights:
        values.setdefault("base_dim", weights["encoder.conv1.weight"].shape[0])
    return values


_ANY: dict[str, Any] = {
    "dim": 8,
    "ffn_dim": 8,
    "num_heads": 1,
    "num_layers": 1,
    "in_dim": 4,
    "out_dim": 4,
    "freq_dim": 2,
    "text_len": 4,
    "eps": 1e-6,
    "latent_frames_per_chunk": 1,
    "window": 2,
    "sink": 0,
    "timestep_shift": 1,
    "text_steps": [1000],
    "video_steps": [1000],
}


def _encoder_config(files: PresetFiles) -> TextEncoderConfig:
    values = _config_beside(files, "text_encoder", lambda values: "d_model" in values)
    return parse_text_encoder_config(values or UMT5_XXL)


def _config_beside(files: PresetFiles, part: str, fits: Any) -> Mapping[str, Any]:
    """The config.json of a part: in the folder of its weights, or else at the top of a source; empty without one."""
    folders = {str(Path(file.path).parent) for file in files.parts.get(part, ()) if file.path}
    configs = _paths(files.parts.get("configs", ()))
    ranked = sorted(configs, key=lambda path: (str(path.parent) not in folders, path.parent.name not in _HOMES[part]))
    for path in ranked:
        values = read_json(path)
        if fits(values):
            return values
    return {}


_HOMES = {"transformer": ("transformer",), "vae": ("vae",), "text_encoder": ("text_encoder",)}
