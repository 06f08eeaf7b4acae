"""Manifests for the tests."""

from pathlib import Path
from typing import Any

from filmstrip.runtime.engines.manifest import (
    SPEC_VERSION,
    Builder,
    EngineFile,
    EngineTensor,
    Manifest,
    ShapeRange,
    write_manifest,
)

MANIFEST = Manifest(
    graph="transformer",
    spec_version=SPEC_VERSION,
    builder=Builder.TENSORRT_RTX,
    builder_version="1.7.1.116",
    precision="bf16",
    target="sm89",
    profiles={
        "320x576": {"latents": ShapeRange((1, 16, 1, 40, 72), (1, 16, 3, 40, 72), (1, 16, 12, 40, 72))},
        "480x832": {"latents": ShapeRange((1, 16, 1, 60, 104), (1, 16, 3, 60, 104), (1, 16, 12, 60, 104))},
    },
    inputs=(EngineTensor("latents", "float32", (1, 16, -1, -1, -1)), EngineTensor("lora_scales", "float32", (2,))),
    outputs=(EngineTensor("velocity", "float32", (1, 16, -1, -1, -1)),),
    checkpoint={"longlive_base.pt": "ab" * 32},
    loras=("ink", "anime"),
    files={},
)


def manifest(**changed: Any) -> Manifest:
    """One for an engine of LongLive's transformer."""
    return Manifest(**{**vars(MANIFEST), **changed})


def put(engine: Path, content: bytes = b"plan", **changed: Any) -> Manifest:
    """An engine's file with such content, and its manifest."""
    engine.parent.mkdir(parents=True, exist_ok=True)
    engine.write_bytes(content)
    one = manifest(**{"files": {engine.name: EngineFile.of(engine)}, **changed})
    write_manifest(engine, one)
    return one
