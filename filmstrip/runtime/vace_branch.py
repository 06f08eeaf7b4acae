"""The VACE branch of one sequence at one size: what a chunk is conditioned with, and the hints for each step."""

from collections.abc import Mapping

import torch
from torch import Tensor

from filmstrip.contract import VACE_REF_IMAGES
from filmstrip.runtime.autoencoder import StreamingEncoder
from filmstrip.runtime.chunks import Chunk, invalid
from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.loras import LoraScales
from filmstrip.runtime.pipeline_config import MAX_REFERENCES, PipelineConfig
from filmstrip.runtime.rope_tables import RopeTables
from filmstrip.runtime.text import TextKeys
from filmstrip.runtime.vace_context import VaceContext, VaceEncoders, vace_context
from filmstrip.runtime.vace_inputs import conditioning_of, references_of

GRAPHS = ("vace_text_kv", "vace", "vae_encoder_image")
"""What a checkpoint with a VACE branch has beside the other graphs."""


class VaceBranch:
    """Conditioning and hints, chunk by chunk.

    Args:
        engines: by the name of the graph.
        config: of the pipeline.
        tables: of the size.
        inactive: encodes what is kept; with feature caches of its own.
        reactive: encodes what is made; likewise.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        config: PipelineConfig,
        tables: RopeTables,
        *,
        inactive: StreamingEncoder,
        reactive: StreamingEncoder,
    ) -> None:
        self._engine = engines["vace"]
        self._image_encoder = engines["vae_encoder_image"]
        self._keys = TextKeys(engines["vace_text_kv"])
        self._config = config
        self._tables = tables
        self._streams = (inactive, reactive)
        self._encoders = VaceEncoders(inactive, reactive, self._encode_image)

    def context(self, chunk: Chunk, num_latent_frames: int) -> VaceContext | None:
        """The context of the next chunk; None where nothing conditions it.

        Frames that do not follow on those of the chunk before begin anew: see `StreamingEncoder`.

        Raises:
            InvalidField: it has more references than the engines take, or is to use an input video that isn't there.
        """
        device = self._engine.device
        conditioning, references = conditioning_of(chunk, device), references_of(chunk, device)
        if len(references) > MAX_REFERENCES:
            problem = f"has {len(references)} images, the engines take {MAX_REFERENCES} at most"
            raise invalid(chunk.parameters.index, VACE_REF_IMAGES, problem)
        if conditioning is None:
            self.reset()
            if not references:
                return None
        factor = self._config.spatial_factor
        return vace_context(conditioning, references, self._encoders, num_latent_frames, factor)

    def hints(
        self,
        context: VaceContext,
        latents: Tensor,
        timestep: float,
        *,
        embedding: Tensor,
        loras: LoraScales,
        scale: float,
    ) -> Tensor:
        """The hints of one step, as the transformer takes them.

        Args:
            context: of the chunk.
            latents: its noisy ones, [1, C, T, H, W].
            timestep: 0 to 1000.
            embedding: of the text in force, [1, Lt, C].
            loras: of the chunk.
            scale: `vace_context_scale`.
        """
        num_frames = context.latents.shape[2]
        cos, sin = self._tables.at(range(num_frames))
        given = {
            "latents": latents,
            "timesteps": latents.new_full((1, num_frames), timestep, dtype=torch.float32),
            "context": context.latents,
            **self._keys.of(embedding, loras),
            "rope_cos": cos,
            "rope_sin": sin,
            "scale": latents.new_full((1,), scale, dtype=torch.float32),
            **loras.inputs(self._engine),
        }
        return self._engine.run(given)["hints"]

    def reset(self) -> None:
        """Forget the conditioning frames so far."""
        for stream in self._streams:
            stream.reset()

    def _encode_image(self, pixels: Tensor) -> Tensor:
        return self._image_encoder.run({"pixels": pixels})["latents"]
