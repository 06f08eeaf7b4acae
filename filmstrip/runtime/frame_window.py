"""Which latent frames a pass of the transformer makes, which cached ones it sees, and in which slots these lie.

Pure arithmetic on frames counted from the last reset: `filmstrip.runtime.kv_cache` holds the tensors. A frame's slot
follows from its number alone, so that what is cached after so many frames does too.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PassPlan:
    """One pass: the latent frames that go through it and the cached ones that they see.

    Attributes:
        first_frame: the first frame that goes through.
        num_frames: how many do, one after the other.
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
        """RoPE positions of the pass's frames, where these are places in the video since the reset."""
        return range(self.first_frame, self.end)

    @property
    def window_positions(self) -> range:
        """RoPE positions of the pass's frames, where these are places in the window: after the cached ones."""
        return range(len(self.seen), len(self.seen) + self.num_frames)


@dataclass(frozen=True)
class FrameWindow:
    """The window of a causal generator: a sink that stays, and a ring of slots for the latest frames beside it.

    Attributes:
        size: latent frames that a chunk may see, the sink and the chunk itself included.
        sink: latent frames from the start that are never evicted.
        latent_frames_per_chunk: those of a chunk that is not a first one.

    Raises:
        ValueError: sink and chunk don't fit in the window.
    """

    size: int
    sink: int
    latent_frames_per_chunk: int

    def __post_init__(self) -> None:
        if self.ring < 0:
            raise ValueError(
                f"a sink of {self.sink} and chunks of {self.latent_frames_per_chunk} latent frames "
                f"don't fit in a window of {self.size}"
            )

    @property
    def capacity(self) -> int:
        """Slots: the cached frames that a chunk has room for beside itself."""
        return self.size - self.latent_frames_per_chunk

    @property
    def ring(self) -> int:
        """Slots outside the sink."""
        return self.capacity - self.sink

    def slot(self, frame: int) -> int:
        """Where a cached frame lies: the sink's slots come first, and a new frame takes that of the oldest."""
        return frame if frame < self.sink else self.sink + (frame - self.sink) % self.ring

    def held(self, num_frames: int) -> tuple[int, ...]:
        """The frames that are cached once `num_frames` were, rising."""
        latest = max(self.sink, num_frames - self.ring)
        return (*range(min(self.sink, num_frames)), *range(latest, num_frames))

    def chunk(self, first_frame: int, num_frames: int) -> PassPlan:
        """The next chunk: it sees the sink and as many of the latest frames as have room beside sink and chunk.

        One that is shorter than others sees no more than they do, as no more is cached.
        """
        latest = first_frame + num_frames - (self.size - self.sink)
        seen = (frame for frame in self.held(first_frame) if frame < self.sink or frame >= latest)
        return PassPlan(first_frame, num_frames, tuple(seen))

    def recache(self, num_frames: int) -> PassPlan | None:
        """The pass that makes the cache anew after `num_frames`, under another prompt; None where there are none yet.

        While the window holds all frames, all go through it and see only each other. Later the sink stays as it is,
        and those that have room beside it go through: they see the sink and each other. Earlier ones would be
        neither seen nor cached.
        """
        if num_frames == 0:
            return None
        if num_frames <= self.size:
            return PassPlan(0, num_frames, ())
        room = self.size - self.sink
        return PassPlan(num_frames - room, room, tuple(range(self.sink)))

    def past_positions(self, plan: PassPlan) -> tuple[int, ...]:
        """RoPE positions of the slots, [capacity], where these are places in the window.

        The sink comes first, then the seen frames from the oldest to the newest; the pass's own follow them. A slot
        that is not seen has position 0.
        """
        positions = [0] * self.capacity
        for place, frame in enumerate(plan.seen):
            positions[self.slot(frame)] = place
        return tuple(positions)
