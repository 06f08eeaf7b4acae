"""The causal transformer: its passes, the window of latent frames that each sees, the KV cache, rotary positions.

`FrameWindow` is pure arithmetic on the numbers of latent frames, counted from the last reset; `KvCache` holds the
tensors. The number of a frame determines its slot, and the number of frames so far determines what is cached.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from filmstrip.runtime.engines.engine import Engine, to_device
from filmstrip.runtime.longlive_config import LongLiveConfig

# -- Rotary positions ---------------------------------------------------------------------------------------


class RopeTables:
    """The tables of latent frames of one size, on the device; the latest tables are kept.

    Args:
        head_dim: channels of one head.
        theta: the base of the wavelengths.
        rows: of tokens in a latent frame.
        cols: tokens in a row.
        device: of the tables.
    """

    _MAX_TABLES = 8  # for a chunk, its cached frames, VACE and a recache, and as many for the next chunk

    def __init__(self, head_dim: int, theta: float, rows: int, cols: int, device: torch.device) -> None:
        self._tables = lru_cache(self._MAX_TABLES)(
            partial(_device_tables, head_dim=head_dim, theta=theta, rows=rows, cols=cols, device=device)
        )

    def at(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of latent frames at these positions, each [T, rows, cols, D / 2] in float32."""
        return self._tables(tuple(positions))


def _device_tables(
    positions: tuple[int, ...], *, head_dim: int, theta: float, rows: int, cols: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    tables = rope_tables(head_dim, torch.tensor(positions), rows, cols, theta)
    cos, sin = (to_device(table, device) for table in tables)
    shape = (len(positions), rows, cols, -1)
    return cos.reshape(shape), sin.reshape(shape)


def rope_tables(
    head_dim: int, frame_positions: Tensor, height: int, width: int, theta: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T * height * width, D / 2] in float32: a head is split over time, height and width.

    Computed in float64: float32 loses the low digits of an angle of a late frame.

    Args:
        head_dim: channels of one head, D; time takes D - 4 * (D // 6) of them, height and width 2 * (D // 6) each.
        frame_positions: the latent frames' positions, [T].
        height: rows of tokens in a latent frame.
        width: tokens in a row.
        theta: the base of the wavelengths.
    """
    side = 2 * (head_dim // 6)
    grid = (frame_positions.numel(), height, width)
    time = _angles(frame_positions, head_dim - 2 * side, theta)[:, None, None, :].expand(*grid, -1)
    rows = _angles(torch.arange(height), side, theta)[None, :, None, :].expand(*grid, -1)
    columns = _angles(torch.arange(width), side, theta)[None, None, :, :].expand(*grid, -1)
    angles = torch.cat([time, rows, columns], dim=-1).flatten(0, 2)  # [T * height * width, D / 2]
    return angles.cos().float(), angles.sin().float()


def _angles(positions: Tensor, dim: int, theta: float) -> Tensor:
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return positions.double()[:, None] * frequencies


# -- The window ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PassSpan:
    """The latent frames of one pass of the transformer, and the cached ones that they see.

    Attributes:
        first_frame: number of the first frame that goes through.
        num_frames: how many go through, consecutive.
        seen: the cached frames that they see, rising.
    """

    first_frame: int
    num_frames: int
    seen: tuple[int, ...]

    @property
    def end(self) -> int:
        """The frame after the last one."""
        return self.first_frame + self.num_frames

    @property
    def absolute_positions(self) -> range:
        """RoPE positions of the pass's frames, counted from the reset."""
        return range(self.first_frame, self.end)

    @property
    def window_positions(self) -> range:
        """RoPE positions of the pass's frames, counted within the window: after the cached ones."""
        return range(len(self.seen), len(self.seen) + self.num_frames)


@dataclass(frozen=True)
class FrameWindow:
    """The window of a causal transformer: a sink that is never evicted, and a ring of slots for the latest frames.

    Attributes:
        size: latent frames that a chunk may see, the sink and the chunk itself included.
        sink: latent frames from the start that are never evicted.
        latent_frames_per_chunk: of any chunk but the first.
        global_sink: the sink keeps the video's first frames; otherwise a recache replaces them with the window's first.

    Raises:
        ValueError: sink and chunk don't fit in the window.
    """

    size: int
    sink: int
    latent_frames_per_chunk: int
    global_sink: bool = True

    def __post_init__(self) -> None:
        if self.ring < 0:
            raise ValueError(
                f"a sink of {self.sink} and chunks of {self.latent_frames_per_chunk} latent frames "
                f"don't fit in a window of {self.size}"
            )

    @property
    def capacity(self) -> int:
        """Number of slots: cached frames that fit into the window next to a chunk."""
        return self.size - self.latent_frames_per_chunk

    @property
    def ring(self) -> int:
        """Number of slots outside the sink."""
        return self.capacity - self.sink

    def slot(self, frame: int) -> int:
        """The slot of a cached frame: the sink's come first; in the others a new frame replaces the oldest."""
        return frame if frame < self.sink else self.sink + (frame - self.sink) % self.ring

    def held(self, num_frames: int) -> tuple[int, ...]:
        """The frames that are cached after `num_frames` frames, rising."""
        latest = max(self.sink, num_frames - self.ring)
        return (*range(min(self.sink, num_frames)), *range(latest, num_frames))

    def chunk(self, first_frame: int, num_frames: int) -> PassSpan:
        """The span of a chunk, which sees the sink and as many of the latest frames as fit next to sink and chunk.

        A shorter chunk sees no more than others, because no more is cached.
        """
        latest = first_frame + num_frames - (self.size - self.sink)
        seen = (frame for frame in self.held(first_frame) if frame < self.sink or frame >= latest)
        return PassSpan(first_frame, num_frames, tuple(seen))

    def recache(self, num_frames: int) -> PassSpan | None:
        """The span of the pass that rebuilds the cache after `num_frames`, for another prompt; None if it is empty.

        While the window holds all frames, all of them go through and see only each other. Later the sink stays as it
        is, and the latest frames that fit next to it go through: they see the sink and each other. Earlier frames would
        be neither seen nor cached. Without a global sink, the latest frames of a whole window go through.
        """
        if num_frames == 0:
            return None
        if num_frames <= self.size:
            return PassSpan(0, num_frames, ())
        if not self.global_sink:
            return PassSpan(num_frames - self.size, self.size, ())
        room = self.size - self.sink
        return PassSpan(num_frames - room, room, tuple(range(self.sink)))

    def sources(self, span: PassSpan, num_frames: int) -> dict[int, int]:
        """The frames whose slots a write of a span fills, and the places in the span that fill them.

        Args:
            span: of the next chunk, or of a recache.
            num_frames: frames so far: before the chunk, or all of the recache.
        """
        held = self.held(span.end)
        filled = {frame: frame - span.first_frame for frame in held if frame >= span.first_frame}
        if not self.global_sink and 0 < span.first_frame < num_frames:
            filled |= {frame: frame for frame in held[: self.sink]}  # the window's first frames are the new sink
        return filled

    def leaving(self, span: PassSpan, num_frames: int) -> tuple[int, ...]:
        """The frames outside the sink that a write of a span makes leave the window, rising.

        Args:
            span: of the next chunk, or of a recache.
            num_frames: frames so far: before the chunk, or all of the recache.
        """
        if 0 < span.first_frame < num_frames:
            return ()  # a recache beside the sink, which stays as it is
        frames = sorted({*self.held(num_frames), *range(span.first_frame, span.end)})
        kept = frozenset(self.held(span.end))
        return tuple(frame for frame in frames if frame >= self.sink and frame not in kept)

    def past_positions(self, span: PassSpan) -> tuple[int, ...]:
        """RoPE positions of the slots, [capacity], counted within the window.

        The sink comes first, then the seen frames from the oldest to the newest; the pass's own follow them. A slot
        that is not seen has position 0.
        """
        positions = [0] * self.capacity
        for position, frame in enumerate(span.seen):
            positions[self.slot(frame)] = position
        return tuple(positions)


# -- The KV cache -------------------------------------------------------------------------------------------


class KvCache:
    """Keys and values of the latent frames that the next chunk may see, in buffers that never move.

    The transformer always gets all of `k` and `v`, and a bias that says which slots it sees. The order of the slots
    does not matter: keys carry their position, or get one from tables in the order of the slots. Nothing here waits for
    the device.

    With a `sink_decay` the sink is a moving average: what leaves the window is folded into it (Reward-Forcing). Keys
    must then be without positions.

    Attributes:
        k: keys, [layers, 1, N, P, D] with P = capacity * tokens_per_frame.
        v: values, the same.
        num_frames: latent frames since the reset, which is the number of the next one.
        window: which of them are seen, and in which slots they lie.
    """

    def __init__(
        self,
        window: FrameWindow,
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        tokens_per_frame: int,
        dtype: torch.dtype,
        device: torch.device | str,
        sink_decay: float | None = None,
    ) -> None:
        shape = (num_layers, 1, num_heads, window.capacity * tokens_per_frame, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)  # [layers, 1, N, P, D]
        self.v = torch.zeros_like(self.k)
        self.num_frames = 0
        self.window = window
        self._tokens_per_frame = tokens_per_frame
        self._sink_decay = sink_decay
        self._bias: Tensor | None = None
        self._bias_key: tuple[tuple[int, ...], float] | None = None

    def chunk_span(self, num_frames: int) -> PassSpan:
        """The span of the next chunk, of `num_frames` latent frames: see `FrameWindow.chunk`."""
        return self.window.chunk(self.num_frames, num_frames)

    def recache_span(self) -> PassSpan | None:
        """The span of a recache, None if nothing is cached: see `FrameWindow.recache`."""
        return self.window.recache(self.num_frames)

    def bias(self, span: PassSpan, attention_bias: float | None = None) -> Tensor:
        """What a pass adds to the attention scores of the cached tokens, float32 [P]; read-only.

        Equal arguments in succession give the same tensor.

        Args:
            span: of the pass.
            attention_bias: factor above 0 on the attention to tokens outside the sink, None is 1.

        Returns:
            0 in the sink, the logarithm of the factor in other slots that are seen, -inf in all others.
        """
        outside_sink = 0.0 if attention_bias is None else math.log(attention_bias)
        key = (span.seen, outside_sink)
        if self._bias is None or self._bias_key != key:
            # Filled on the device, frame by frame: a copy from the host would have to be waited for.
            self._bias = torch.full(self.k.shape[3:4], -math.inf, dtype=torch.float32, device=self.k.device)
            for frame in span.seen:
                seen = self._bias[self._tokens(self.window.slot(frame))]
                seen.fill_(0.0 if frame < self.window.sink else outside_sink)
            self._bias_key = key
        return self._bias

    def write(self, span: PassSpan, k: Tensor, v: Tensor) -> None:
        """Copy the keys and values of those frames of a pass that are kept to their slots.

        Args:
            span: of the next chunk, or of a recache.
            k: keys, [layers, 1, N, L, D], of all frames of the pass.
            v: values, the same.

        Raises:
            ValueError: the span is of an earlier state of the cache, or the tensors don't fit. Nothing is written.
        """
        if self.num_frames not in (span.first_frame, span.end):
            raise ValueError(
                f"frames {span.first_frame} to {span.end - 1} don't follow {self.num_frames} cached ones: stale span"
            )
        shape = (*self.k.shape[:3], span.num_frames * self._tokens_per_frame, self.k.shape[4])
        for new in (k, v):
            if new.shape != shape or new.device != self.k.device:
                raise ValueError(
                    f"keys and values must be {list(shape)} on {self.k.device}, got {list(new.shape)} on {new.device}"
                )
        leaving = None if self._sink_decay is None else self._leaving(span, k, v)
        for frame, place in self.window.sources(span, self.num_frames).items():
            slot, source = self._tokens(self.window.slot(frame)), self._tokens(place)
            self.k[:, :, :, slot] = k[:, :, :, source]
            self.v[:, :, :, slot] = v[:, :, :, source]
        if leaving is not None and self._sink_decay is not None:
            self._fold(leaving, self._sink_decay)
        self.num_frames = span.end

    def _leaving(self, span: PassSpan, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the frames that leave the window with a write, [layers, 1, N, L, D]; None if none do.

        Of more frames than the sink has, the latest.
        """
        frames = self.window.leaving(span, self.num_frames)[-self.window.sink :]
        if not frames or not self.window.sink:
            return None

        def of(cached: Tensor, new: Tensor) -> Tensor:
            parts = [
                new[:, :, :, self._tokens(frame - span.first_frame)]
                if frame >= span.first_frame
                else cached[:, :, :, self._tokens(self.window.slot(frame))]
                for frame in frames
            ]
            return torch.cat(parts, dim=3)

        return of(self.k, k), of(self.v, v)

    def _fold(self, leaving: tuple[Tensor, Tensor], decay: float) -> None:
        """Fold what leaves the window into the sink; fewer frames than the sink has go into its last ones."""
        end = self.window.sink * self._tokens_per_frame
        for cached, left in zip((self.k, self.v), leaving, strict=True):
            sink = cached[:, :, :, end - left.shape[3] : end]
            sink.copy_(decay * sink + (1 - decay) * left)

    def clear(self) -> None:
        """Forget all frames."""
        # A bias of -inf hides numbers, but not NaN or infinity: none may survive.
        self.k.zero_()
        self.v.zero_()
        self.num_frames = 0

    def _tokens(self, index: int) -> slice:
        return slice(index * self._tokens_per_frame, (index + 1) * self._tokens_per_frame)


class CleanLatents:
    """The latest clean latent frames since the reset, as many as fit into the window."""

    def __init__(self, window: FrameWindow) -> None:
        self._size = window.size
        self._latents: Tensor | None = None

    def append(self, latents: Tensor) -> None:
        """Keep a copy of the latents of a chunk, [1, C, T, H, W]."""
        known = [latents] if self._latents is None else [self._latents, latents]
        self._latents = torch.cat(known, dim=2)[:, :, -self._size :]

    def latest(self, num_frames: int) -> Tensor:
        """The last ones, [1, C, num_frames, H, W].

        Raises:
            ValueError: fewer are kept.
        """
        if self._latents is None or not 0 < num_frames <= self._latents.shape[2]:
            kept = 0 if self._latents is None else self._latents.shape[2]
            raise ValueError(f"{num_frames} latent frames requested, {kept} kept")
        return self._latents[:, :, -num_frames:]

    def clear(self) -> None:
        """Forget them."""
        self._latents = None


# -- Passes -------------------------------------------------------------------------------------------------


class CachedTransformer:
    """The transformer of one sequence at one size: passes that read the KV cache, and passes that write it.

    `text` in its methods stands for the inputs text_k, text_v and, if there are LoRAs, lora_scales.

    Args:
        engine: `transformer`.
        config: of the pipeline.
        tables: of the size.
        rows: of tokens in a latent frame.
        cols: tokens in a row.
    """

    def __init__(self, engine: Engine, config: LongLiveConfig, tables: RopeTables, rows: int, cols: int) -> None:
        window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk, config.global_sink)
        self._context_timestep = config.context_noise
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
            sink_decay=config.sink_decay,
        )
        self._hint_shape = (config.num_vace_layers, rows, cols, config.num_heads * config.head_dim)
        self._zeros: Tensor | None = None
        if config.num_vace_layers:
            self._zeros = torch.zeros(0, dtype=engine.dtype("hints"), device=engine.device)

    def chunk_span(self, num_frames: int) -> PassSpan:
        """The span of the next chunk, of `num_frames` latent frames."""
        return self._kv.chunk_span(num_frames)

    def velocity(
        self,
        span: PassSpan,
        latents: Tensor,
        timestep: float,
        text: Mapping[str, Tensor],
        *,
        hints: Tensor | None = None,
        attention_bias: float | None = None,
    ) -> Tensor:
        """The velocity of a chunk's latents at a timestep, [1, C, T, H, W]; the cache stays as it is.

        Args:
            span: of the chunk.
            latents: with the noise of the timestep, [1, C, T, H, W].
            timestep: 0 to 1000.
            text: see the class.
            hints: of the VACE branch, None for an unconditioned chunk.
            attention_bias: see `KvCache.bias`.
        """
        return self._run(span, latents, timestep, text, hints=hints, attention_bias=attention_bias)["velocity"]

    def write(self, span: PassSpan, latents: Tensor, text: Mapping[str, Tensor]) -> None:
        """Cache the clean latents of a chunk, by a pass at the context's timestep without hints and bias."""
        outputs = self._run(span, latents, self._context_timestep, text)
        self._kv.write(span, outputs["new_k"], outputs["new_v"])
        self._clean.append(latents)

    def recache(self, text: Mapping[str, Tensor]) -> None:
        """Rebuild the cache for another text: see `FrameWindow.recache`."""
        span = self._kv.recache_span()
        if span is not None:
            outputs = self._run(span, self._clean.latest(span.num_frames), self._context_timestep, text)
            self._kv.write(span, outputs["new_k"], outputs["new_v"])

    def clear(self) -> None:
        """Forget all frames."""
        self._kv.clear()
        self._clean.clear()

    def _run(
        self,
        span: PassSpan,
        latents: Tensor,
        timestep: float,
        text: Mapping[str, Tensor],
        *,
        hints: Tensor | None = None,
        attention_bias: float | None = None,
    ) -> dict[str, Tensor]:
        positions = span.window_positions if self._is_windowed else span.absolute_positions
        cos, sin = self._tables.at(positions)  # [T, rows, cols, D / 2]
        inputs = {
            "latents": latents,
            "timesteps": latents.new_full((1, span.num_frames), timestep, dtype=torch.float32),
            **text,
            "rope_cos": cos,
            "rope_sin": sin,
            "past_k": self._kv.k,
            "past_v": self._kv.v,
            "past_bias": self._kv.bias(span, attention_bias),
        }
        if self._is_windowed:
            tables = self._tables.at(self._kv.window.past_positions(span))
            inputs["past_cos"], inputs["past_sin"] = (table.flatten(0, 2) for table in tables)  # [P, D / 2]
        if self._zeros is not None:
            inputs["hints"] = self._no_hints(self._zeros, span.num_frames) if hints is None else hints
        return self._engine.run(inputs)

    def _no_hints(self, zeros: Tensor, num_frames: int) -> Tensor:
        """The hints of a pass without conditioning, [vace_layers, 1, T, rows, cols, C]: zeros."""
        # One piece of memory for all lengths, as nobody writes to it.
        num_layers, *grid = self._hint_shape
        shape = (num_layers, 1, num_frames, *grid)
        if zeros.numel() < math.prod(shape):
            self._zeros = zeros = zeros.new_zeros(math.prod(shape))
        return zeros[: math.prod(shape)].reshape(shape)
