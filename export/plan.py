"""What an export would read, from where, and what is missing: nothing is downloaded or built."""

from dataclasses import dataclass

from export.checkpoint_files import Checkpoint, open_checkpoint
from export.config import UMT5_XXL, CheckpointConfig, TextEncoderConfig, parse_config, parse_text_encoder_config
from export.longlive import ExportConfig
from export.memory import estimate_memory, mib
from export.preset_checkpoint import PresetFiles, find_parts, open_preset, sources_of
from export.spec import Component, Precision, Size
from export.tensor_files import Notes


@dataclass(frozen=True)
class PlannedFile:
    """A file that would be read.

    Attributes:
        part: of the checkpoint.
        name: of the file, in its source.
        source: a folder or a hub id.
        size: in bytes, None if unknown.
        is_here: whether it is on this machine.
    """

    part: str
    name: str
    source: str
    size: int | None
    is_here: bool


@dataclass(frozen=True)
class ExportPlan:
    """What an export would do.

    Attributes:
        files: that would be read.
        missing: parts that no source has, with what to do.
        memory: on the device by video size, bytes by component.
        notes: what was chosen in the files.
    """

    files: tuple[PlannedFile, ...]
    missing: tuple[str, ...]
    memory: dict[Size, dict[str, int]]
    notes: tuple[str, ...]


def plan_export(config: ExportConfig, precision: Precision) -> ExportPlan:
    """Plan an export.

    Raises:
        ExportError: a source can't be opened, a file can't be read, or a configuration is wrong.
    """
    notes = Notes()
    if config.checkpoint is not None:
        checkpoint = open_checkpoint(config.checkpoint, config.weights, notes)
        files = _files_of(checkpoint)
        return ExportPlan(
            files, (), _memory(checkpoint.config, checkpoint.text_encoder, config, precision), tuple(notes.lines)
        )
    assert config.preset is not None
    sources = sources_of(config.preset, config.sources, vace=bool(config.vace))
    found = find_parts(config.preset, sources, vace=config.vace)
    planned = tuple(
        PlannedFile(part, file.name, file.source, file.size, file.path is not None)
        for part, group in found.parts.items()
        for file in group
        if part != "configs"
    )
    network, encoder = _networks_of(config, found, notes)
    return ExportPlan(planned, found.missing, _memory(network, encoder, config, precision), tuple(notes.lines))


def _networks_of(
    config: ExportConfig, found: PresetFiles, notes: Notes
) -> tuple[CheckpointConfig, TextEncoderConfig | None]:
    """The networks: from the files if they are here, else those of the release."""
    assert config.preset is not None
    if not found.missing and all(file.path for group in found.parts.values() for file in group):
        checkpoint = open_preset(config.preset, found, config.weights, notes)
        return checkpoint.config, checkpoint.text_encoder
    values = dict(config.preset.settings)
    if config.vace:
        values["vace_layers"] = list(range(0, values["num_layers"], 2))
    return parse_config(values), parse_text_encoder_config(UMT5_XXL)


def _memory(
    network: CheckpointConfig, encoder: TextEncoderConfig | None, config: ExportConfig, precision: Precision
) -> dict[Size, dict[str, int]]:
    on_device = None if config.text_encoder_on_cpu else encoder
    return {size: estimate_memory(network, size, precision, text_encoder=on_device) for size in config.sizes}


def _files_of(checkpoint: Checkpoint) -> tuple[PlannedFile, ...]:
    return tuple(
        PlannedFile(component.value, checkpoint.name_of(path), str(checkpoint.root), path.stat().st_size, is_here=True)
        for component in Component
        for path in checkpoint.files.of_component(component)
        if path not in checkpoint.files.configs
    )


def describe_plan(plan: ExportPlan) -> str:
    """The plan for people, several lines."""
    lines = ["would read:"]
    lines += [
        f"  {file.part:<13} {_bytes(file.size):>10}  {file.name}  from {file.source}"
        + ("" if file.is_here else " (to be downloaded)")
        for file in plan.files
    ]
    total = sum(file.size or 0 for file in plan.files)
    later = sum(file.size or 0 for file in plan.files if not file.is_here)
    lines.append(
        f"  {'total':<13} {_bytes(total):>10}" + (f", of which to be downloaded: {_bytes(later)}" if later else "")
    )
    lines += [f"missing: {one}" for one in plan.missing] or ["missing: nothing"]
    for size, parts in plan.memory.items():
        lines.append(f"memory on the device at {size}: {mib(sum(parts.values()))} MiB")
        lines += [f"  {mib(count):>8}  {name}" for name, count in parts.items()]
    return "\n".join([*lines, *plan.notes])


def _bytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**20:,.1f} MiB"
