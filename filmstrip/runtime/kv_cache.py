"""The KV cache of a sequence, and the clean latents that it is made anew from when the prompt changes."""

import math

import torch
from torch import Tensor

from filmstrip.runtime.frame_window import FrameWindow, PassPlan


class KvCache:
    """Keys and values of the latent frames that the next chunk may see, in buffers that never move.

    The transformer is always given the whole of `k` and `v`, and a bias that says which slots it sees. The order of
    the slots does not matter: keys carry their position, or are given one by tables in the order of the slots.
    Nothing here waits for the device.

    Attributes:
        k: keys, [layers, B, N, P, D] with P = capacity * tokens_per_frame.
        v: values, the same.
        num_frames: latent frames since the reset, which is the number of the next one.
        window: which of them are seen, and where they lie.
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
        batch: int = 1,
    ) -> None:
        shape = (num_layers, batch, num_heads, window.capacity * tokens_per_frame, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.num_frames = 0
        self.window = window
        self._tokens_per_frame = tokens_per_frame
        self._bias: Tensor | None = None
        self._bias_is_for: tuple[tuple[int, ...], float] | None = None

    def plan_chunk(self, num_frames: int) -> PassPlan:
        """The passes of the next chunk, of so many latent frames: see `FrameWindow.chunk`."""
        return self.window.chunk(self.num_frames, num_frames)

    def plan_recache(self) -> PassPlan | None:
        """The pass after a change of the prompt, None where nothing is cached: see `FrameWindow.recache`."""
        return self.window.recache(self.num_frames)

    def bias(self, plan: PassPlan, attention_bias: float | None = None) -> Tensor:
        """What a pass adds to the attention scores of the cached tokens, float32 [P]; not to be written to.

        The same tensor comes again until another one is asked for.

        Args:
            plan: of the pass.
            attention_bias: factor above 0 on the attention to tokens outside the sink, None is 1.

        Returns:
            0 in the sink, the factor's logarithm in other slots that are seen, -inf in the rest.
        """
        outside_sink = 0.0 if attention_bias is None else math.log(attention_bias)
        wanted = (plan.seen, outside_sink)
        if self._bias is None or self._bias_is_for != wanted:
            # Filled frame by frame: a table from the host would be a copy to wait for.
            self._bias = torch.full(self.k.shape[3:4], -math.inf, dtype=torch.float32, device=self.k.device)
            for frame in plan.seen:
                seen = self._bias[self._tokens(self.window.slot(frame))]
                seen.fill_(0.0 if frame < self.window.sink else outside_sink)
            self._bias_is_for = wanted
        return self._bias

    def write(self, plan: PassPlan, k: Tensor, v: Tensor) -> None:
        """Put the keys and values of a pass into the slots of those of its frames that are kept.

        Args:
            plan: of the next chunk, or of a recache.
            k: keys, [layers, B, N, L, D], of all frames of the pass.
            v: values, the same.

        Raises:
            ValueError: the plan was made before frames came or went, or the tensors don't fit. Nothing is written.
        """
        if self.num_frames not in (plan.first_frame, plan.end):
            raise ValueError(
                f"frames {plan.first_frame} to {plan.end - 1} don't follow on {self.num_frames} cached ones: plan anew"
            )
        shape = (*self.k.shape[:3], plan.num_frames * self._tokens_per_frame, self.k.shape[4])
        for new in (k, v):
            if new.shape != shape or new.device != self.k.device:
                raise ValueError(
                    f"keys and values must be {list(shape)} on {self.k.device}, got {list(new.shape)} on {new.device}"
                )
        for frame in self.window.held(plan.end):
            if frame >= plan.first_frame:
                slot, source = self._tokens(self.window.slot(frame)), self._tokens(frame - plan.first_frame)
                self.k[:, :, :, slot] = k[:, :, :, source]
                self.v[:, :, :, slot] = v[:, :, :, source]
        self.num_frames = plan.end

    def reset(self) -> None:
        """Forget all frames."""
        # A bias of -inf hides numbers, but not NaN or infinity: none may outlive the reset.
        self.k.zero_()
        self.v.zero_()
        self.num_frames = 0

    def _tokens(self, place: int) -> slice:
        return slice(place * self._tokens_per_frame, (place + 1) * self._tokens_per_frame)


class CleanLatents:
    """The latest clean latent frames since the reset, as many as the window has room for."""

    def __init__(self, window: FrameWindow) -> None:
        self._size = window.size
        self._latents: Tensor | None = None

    def append(self, latents: Tensor) -> None:
        """Keep a copy of the latents of a chunk, [B, C, T, H, W]."""
        known = [latents] if self._latents is None else [self._latents, latents]
        self._latents = torch.cat(known, dim=2)[:, :, -self._size :]

    def latest(self, num_frames: int) -> Tensor:
        """The last ones, [B, C, num_frames, H, W].

        Raises:
            ValueError: fewer are kept.
        """
        if self._latents is None or not 0 < num_frames <= self._latents.shape[2]:
            kept = 0 if self._latents is None else self._latents.shape[2]
            raise ValueError(f"{num_frames} latent frames asked for, {kept} kept")
        return self._latents[:, :, -num_frames:]

    def reset(self) -> None:
        """Forget them."""
        self._latents = None
