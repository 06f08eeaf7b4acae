"""Pipelines and requests that the tests of plans start from."""

from collections.abc import Mapping, Sequence
from typing import Any

from filmstrip.contract import Features, Mode, PipelineSpec
from frontend.array_plan import InputSizes
from frontend.plan import Chain, Plan, make_plan
from frontend.schema import GenerateRequest

LONGLIVE = PipelineSpec(
    "longlive",
    (Mode.TEXT, Mode.VIDEO),
    chunk_size=12,
    first_chunk_size=9,
    granularity=16,
    height=320,
    width=576,
    latent_frames=3,
    features=Features(
        seed=True, prompts=True, noise=True, cache=True, denoising_steps=True, vace=True, loras=("ink", "neon.v2")
    ),
)
PROCESSOR = PipelineSpec("gray", (Mode.VIDEO,), 12, 12, features=Features(frame_processor=True))
NOTHING = InputSizes()


def plan_request(
    chunk_specs: Sequence[Mapping[str, Any]] = (),
    uploads: InputSizes = NOTHING,
    chain: Chain = Chain(LONGLIVE),  # noqa: B008  frozen
    max_chunk_bytes: int = 2**30,
    **fields: Any,
) -> Plan:
    """The plan of a request, which asks for 48 frames unless its fields say otherwise."""
    body = {"pipeline_id": chain.pipeline.id, "prompt": "a cat", "num_frames": 48, "chunk_specs": list(chunk_specs)}
    return make_plan(GenerateRequest.model_validate(body | fields), chain, uploads, max_chunk_bytes)
