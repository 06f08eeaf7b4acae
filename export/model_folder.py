"""A model folder in Triton's model repository, so that a new checkpoint or pipeline id needs no code.

NAME/config.pbtxt         what Triton and the frontend read: tensors, sequence batching, the pipeline's spec
NAME/1/model.py           names a class of filmstrip.runtime
NAME/1/pipeline.json      what the runtime reads: filmstrip.runtime.longlive_config
NAME/1/export.json        what it was exported from: export.record
NAME/1/tokenizer.json     if the checkpoint has a text encoder
NAME/1/engines/           the engines, and a manifest for each
"""

import json
import re
import textwrap
from dataclasses import asdict
from pathlib import Path

from export.config import CheckpointConfig
from export.errors import BadConfig
from export.spec import Size
from filmstrip.contract import INPUTS, OUTPUTS, Features, Mode, PipelineSpec, TensorSpec
from filmstrip.model_folders import EXPORT_FILE
from filmstrip.runtime.longlive_config import MAX_REFERENCES, LongLiveConfig

IDLE_S = 900
"""Triton ends a sequence after this long without a chunk: longer than any chunk takes, warm-up included."""
_CUDA_GRAPHS = """
# A run of an engine with the shapes of its last run is a single launch; set "false" if that causes trouble.
parameters { key: "cuda_graphs" value { string_value: "true" } }"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_pipeline_id(id: str) -> str:
    """Check a pipeline's id, which is also the name of its folder and of its Triton model.

    Raises:
        BadConfig: it has characters other than letters, digits, '.', '_' and '-', or more than 100.
    """
    if not _NAME.fullmatch(id):
        raise BadConfig(f"{id!r} is not a pipeline id: use letters, digits, '.', '_' and '-', at most 100")
    return id


def runtime_config(config: CheckpointConfig, sizes: tuple[Size, ...], loras: tuple[str, ...]) -> LongLiveConfig:
    """What the runtime needs to know about a checkpoint.

    Raises:
        BadConfig: the VACE branch takes another number of channels than the runtime makes.
    """
    mask_channels = config.vae.spatial_factor**2
    vace_channels = 2 * config.vae.z_dim + mask_channels
    if config.vace_layers and config.vace_in_channels != vace_channels:
        raise BadConfig(
            f"vace_in_dim = {config.vace_in_channels} must be 2 * vae.z_dim + {mask_channels} = {vace_channels}"
        )
    return LongLiveConfig(
        latent_frames_per_chunk=config.latent_frames_per_chunk,
        window=config.window,
        sink=config.sink,
        timestep_shift=config.timestep_shift,
        text_steps=config.text_steps,
        video_steps=config.video_steps,
        video_step_offset=config.video_step_offset,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        patch_size=config.patch_size,
        text_len=config.text_len,
        text_dim=config.text_dim,
        latent_channels=config.in_channels,
        num_vace_layers=len(config.vace_layers),
        vace_channels=config.vace_in_channels,
        rope_theta=config.rope_theta,
        rope_positions=config.rope_positions,
        spatial_factor=config.vae.spatial_factor,
        temporal_factor=config.vae.temporal_factor,
        sizes=tuple((size.height, size.width) for size in sizes),
        loras=loras,
        sink_decay=config.sink_decay,
        first_text_steps=config.first_text_steps,
        lone_references=config.lone_references,
        global_sink=config.global_sink,
        context_noise=config.context_noise,
    )


def pipeline_spec(id: str, config: LongLiveConfig) -> PipelineSpec:
    """What the pipeline says about itself; its own size is the first that it was exported for."""
    height, width = config.sizes[0]
    return PipelineSpec(
        id=id,
        modes=(Mode.TEXT, Mode.VIDEO),
        chunk_size=config.chunk_size,
        first_chunk_size=config.first_chunk_size,
        granularity=config.granularity,
        height=height,
        width=width,
        sizes=config.sizes,
        max_references=MAX_REFERENCES if config.num_vace_layers else None,
        latent_frames=config.latent_frames_per_chunk,
        features=Features(
            seed=True,
            prompts=True,
            noise=True,
            cache=True,
            denoising_steps=True,
            vace=config.num_vace_layers > 0,
            loras=config.loras,
        ),
        defaults={
            "denoising_steps": {"text": config.text_steps, "video": config.video_steps},
            "window_latent_frames": config.window,
            "sink_latent_frames": config.sink,
        },
    )


def write_model_folder(folder: Path, config: LongLiveConfig, *, on_gpu: bool) -> None:
    """Write a model's folder except its engines and tokenizer; `folder` has the pipeline's id as its name."""
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / EXPORT_FILE).write_text(config.to_json())
    (version / "model.py").write_text(_model_text(folder.name))
    # Last: without it Triton sees no model here.
    (folder / "config.pbtxt").write_text(config_text(pipeline_spec(folder.name, config), on_gpu=on_gpu))


def config_text(spec: PipelineSpec, *, on_gpu: bool) -> str:
    """A `config.pbtxt`: one sequence at a time, one chunk per request."""
    tensors = [_tensor("input", spec) for spec in INPUTS] + [_tensor("output", spec) for spec in OUTPUTS]
    kind = "KIND_GPU" if on_gpu else "KIND_CPU"
    values = {name: value for name, value in asdict(spec).items() if name != "id"}
    values["features"] = spec.features.to_dict()
    parameters = [
        f"parameters {{ key: {_quoted(name)} value {{ string_value: {_quoted(json.dumps(value))} }} }}"
        for name, value in values.items()
    ]
    return "\n".join(
        [
            f"name: {_quoted(spec.id)}",
            'backend: "python"',
            "max_batch_size: 0",
            "",
            *tensors,
            "",
            "# One sequence: its caches fill the device.",
            "sequence_batching {",
            f"  max_sequence_idle_microseconds: {IDLE_S * 1_000_000}",
            "  direct {}",
            "}",
            "",
            f"instance_group [ {{ kind: {kind} count: 1 }} ]",
            "",
            "# What the pipeline says about itself: filmstrip.contract.PipelineSpec, each value as JSON.",
            *parameters,
            *([_CUDA_GRAPHS] if on_gpu else []),
            "",
        ]
    )


def _tensor(kind: str, spec: TensorSpec) -> str:
    dims = ", ".join(map(str, spec.dims))
    optional = " optional: true" if kind == "input" else ""
    return f"{kind} {{ name: {_quoted(spec.name)} data_type: {spec.config_dtype} dims: [ {dims} ]{optional} }}"


def _quoted(text: str) -> str:
    """A string in protobuf's text format, which understands JSON's escapes."""
    return json.dumps(text)


def _model_text(id: str) -> str:
    return textwrap.dedent(
        f'''\
        """{id}: written by `python -m export longlive`; do not edit, export it again."""

        from filmstrip.runtime.longlive_model import LongLiveModel


        class TritonPythonModel(LongLiveModel):
            """Runs this pipeline's chunks."""
        '''
    )
