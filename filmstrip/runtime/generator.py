"""The causal transformer of one sequence at one size, and what it remembers of earlier chunks."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.frame_window import FrameWindow, PassPlan
from filmstrip.runtime.kv_cache import CleanLatents, KvCache
from filmstrip.runtime.pipeline_config import PipelineConfig
from filmstrip.runtime.rope_tables import RopeTables

_CLEAN = 0.0  # the timestep of latents without noise


class Generator:
    """Passes of the transformer that see the KV cache, and those that write it.

    Its methods take the text as `inputs`: text_k, text_v and, where there are LoRAs, their scales.

    Args:
        engine: `transformer`.
        config: of the pipeline.
        tables: of the size.
        rows: of tokens in a latent frame.
        cols: tokens in a row.
    """

    def __init__(self, engine: Engine, config: PipelineConfig, tables: RopeTables, rows: int, cols: int) -> None:
        window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk)
        self._engine = engine
        self._tables = tables
        self._is_windowed = config.rope_positions == "window"
        self._clean = CleanLatents(window)
        self._kv = KvCache(
            window,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            tokens_per_frame=rows * cols,
            dtype=engine.dtype("past_k"),
            device=engine.device,
        )
        self._no_hints: _NoHints | None = None
        if config.num_vace_layers:
            grid = (rows, cols, config.num_heads * config.head_dim)
            self._no_hints = _NoHints(config.num_vace_layers, grid, engine.dtype("hints"), engine.device)

    def plan(self, num_frames: int) -> PassPlan:
        """The passes of the next chunk, of so many latent frames."""
        return self._kv.plan_chunk(num_frames)

    def velocity(
        self,
        plan: PassPlan,
        latents: Tensor,
        timestep: float,
        inputs: Mapping[str, Tensor],
        *,
        hints: Tensor | None = None,
        attention_bias: float | None = None,
    ) -> Tensor:
        """What the latents of the chunk, [1, C, T, H, W], are made of at a timestep; the cache stays as it is.

        Args:
            plan: of the chunk.
            latents: with the noise of the timestep.
            timestep: 0 to 1000.
            inputs: the text.
            hints: of the VACE branch, None for an unconditioned chunk.
            attention_bias: see `KvCache.bias`.
        """
        return self._run(plan, latents, timestep, inputs, hints=hints, attention_bias=attention_bias)["velocity"]

    def write(self, plan: PassPlan, latents: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """Cache the clean latents of a chunk, by a pass at timestep 0 without hints and without a bias."""
        made = self._run(plan, latents, _CLEAN, inputs)
        self._kv.write(plan, made["new_k"], made["new_v"])
        self._clean.append(latents)

    def recache(self, inputs: Mapping[str, Tensor]) -> None:
        """Make the cache anew under another text: see `FrameWindow.recache`."""
        plan = self._kv.plan_recache()
        if plan is not None:
            made = self._run(plan, self._clean.latest(plan.num_frames), _CLEAN, inputs)
            self._kv.write(plan, made["new_k"], made["new_v"])

    def reset(self) -> None:
        """Forget all frames."""
        self._kv.reset()
        self._clean.reset()

    def _run(
        self,
        plan: PassPlan,
        latents: Tensor,
        timestep: float,
        inputs: Mapping[str, Tensor],
        *,
        hints: Tensor | None = None,
        attention_bias: float | None = None,
    ) -> dict[str, Tensor]:
        positions = plan.window_positions if self._is_windowed else plan.absolute_positions
        cos, sin = self._tables.at(positions)
        given = {
            "latents": latents,
            "timesteps": latents.new_full((1, plan.num_frames), timestep, dtype=torch.float32),
            **inputs,
            "rope_cos": cos,
            "rope_sin": sin,
            "past_k": self._kv.k,
            "past_v": self._kv.v,
            "past_bias": self._kv.bias(plan, attention_bias),
        }
        if self._is_windowed:
            tables = self._tables.at(self._kv.window.past_positions(plan))
            given["past_cos"], given["past_sin"] = (table.flatten(0, 2) for table in tables)
        if self._no_hints is not None:
            given["hints"] = self._no_hints.of(plan.num_frames) if hints is None else hints
        return self._engine.run(given)


class _NoHints:
    """Hints of an unconditioned pass: zeros, in one piece of memory for all lengths, as nobody writes to them."""

    def __init__(self, num_layers: int, grid: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._num_layers = num_layers
        self._grid = grid
        self._zeros = torch.zeros(0, dtype=dtype, device=device)

    def of(self, num_frames: int) -> Tensor:
        """[vace_layers, 1, T, rows, cols, C]."""
        shape = (self._num_layers, 1, num_frames, *self._grid)
        if self._zeros.numel() < math.prod(shape):
            self._zeros = self._zeros.new_zeros(math.prod(shape))
        return self._zeros[: math.prod(shape)].reshape(shape)
