"""Which latent frames a training step runs in one pass, clean ones and noisy ones, and which of them see which.

A layout is put together as the sampler goes through a video: a noisy chunk sees the clean frames that would be cached
for it, and a clean one is what a cache-writing pass makes. Which these are `FrameWindow` says, here as at inference.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from filmstrip.runtime.transformer import FrameWindow, PassSpan

Spans = tuple[tuple[int, int], ...]
"""Places of frames in a layout, as ranges from .. to."""


@dataclass(frozen=True)
class Pass:
    """Frames that run together.

    Attributes:
        first: place of the first one in the layout.
        num_frames: how many, one after the other.
        sees: places of what they attend to: cached frames and themselves.
    """

    first: int
    num_frames: int
    sees: Spans

    @property
    def end(self) -> int:
        """The place after the last one."""
        return self.first + self.num_frames


@dataclass(frozen=True)
class Layout:
    """All frames of a step, clean ones first.

    Attributes:
        frames: of the clip, at each place.
        positions: RoPE positions.
        captions: 0 for the clip's first, 1 for the one after the switch.
        num_clean: so many of the places are clean frames, at timestep 0.
        passes: all of them; those behind the clean ones are noisy chunks.
    """

    frames: tuple[int, ...]
    positions: tuple[int, ...]
    captions: tuple[int, ...]
    num_clean: int
    passes: tuple[Pass, ...]

    @property
    def noisy(self) -> tuple[Pass, ...]:
        """The passes of the noisy chunks."""
        return tuple(one for one in self.passes if one.first >= self.num_clean)

    @property
    def caption_runs(self) -> tuple[tuple[int, int, int], ...]:
        """Places that follow each other under one caption: from, to, caption."""
        runs: list[tuple[int, int, int]] = []
        for place, caption in enumerate(self.captions):
            if runs and runs[-1][2] == caption:
                runs[-1] = (runs[-1][0], place + 1, caption)
            else:
                runs.append((place, place + 1, caption))
        return tuple(runs)


@dataclass(frozen=True)
class _Frame:
    number: int
    caption: int


@dataclass
class LayoutBuilder:
    """Puts a layout together, in the order of the sampler.

    Frames have the numbers that they have at inference, which are their RoPE positions. Those from `gap_from` on are
    frames of the clip `gap` earlier: so a short clip stands for a long video, whose sink is far away.
    """

    window: FrameWindow
    gap: int = 0
    _clean: list[_Frame] = field(default_factory=list)
    _noisy: list[_Frame] = field(default_factory=list)
    _clean_passes: list[Pass] = field(default_factory=list)
    _noisy_passes: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)
    _cached: dict[int, int] = field(default_factory=dict)

    def clean(self, first: int, num_frames: int, caption: int = 0) -> None:
        """A chunk's cache-writing pass."""
        self._add_clean(self.window.chunk(first, num_frames), caption)

    def recache(self, num_frames: int, caption: int) -> None:
        """The cache after `num_frames` is computed again, under another caption."""
        span = self.window.recache(num_frames)
        if span is not None:
            self._add_clean(span, caption)

    def noisy(self, first: int, num_frames: int, caption: int = 0) -> None:
        """A chunk to be denoised, which nobody else sees."""
        seen = self._seen(self.window.chunk(first, num_frames))
        self._noisy_passes.append((len(self._noisy), num_frames, seen))
        self._noisy += [_Frame(number, caption) for number in range(first, first + num_frames)]

    def build(self) -> Layout:
        """The layout."""
        num_clean = len(self._clean)
        noisy = [
            Pass(num_clean + first, length, _spans([*seen, *range(num_clean + first, num_clean + first + length)]))
            for first, length, seen in self._noisy_passes
        ]
        frames = [*self._clean, *self._noisy]
        return Layout(
            tuple(frame.number if frame.number < self.window.sink else frame.number - self.gap for frame in frames),
            tuple(frame.number for frame in frames),
            tuple(frame.caption for frame in frames),
            num_clean,
            (*self._clean_passes, *noisy),
        )

    def _add_clean(self, span: PassSpan, caption: int) -> None:
        first = len(self._clean)
        own = range(first, first + span.num_frames)
        self._clean_passes.append(Pass(first, span.num_frames, _spans([*self._seen(span), *own])))
        numbers = range(span.first_frame, span.end)
        self._clean += [_Frame(number, caption) for number in numbers]
        self._cached |= dict(zip(numbers, own, strict=True))

    def _seen(self, span: PassSpan) -> tuple[int, ...]:
        """Places of the cached frames; after a gap some are not there."""
        return tuple(self._cached[frame] for frame in span.seen if frame in self._cached)


def from_start(window: FrameWindow, lengths: Sequence[int]) -> Layout:
    """A video's first chunks, of these lengths in latent frames: each of them noisy, all but the last clean, too."""
    builder, first = LayoutBuilder(window), 0
    for index, length in enumerate(lengths):
        builder.noisy(first, length)
        if index + 1 < len(lengths):
            builder.clean(first, length)
        first += length
    return builder.build()


def from_afar(window: FrameWindow, first: int, gap: int, num_clean: int, num_noisy: int) -> Layout:
    """The sink and, `gap` frames further away than in the clip, chunks from the clip's frame `first` on.

    The first two of the `num_clean` chunks have no noisy twin: what they would see is not there.
    """
    builder, chunk = LayoutBuilder(window, gap), window.latent_frames_per_chunk
    builder.clean(0, chunk)
    for index in range(max(num_clean, 2 + num_noisy)):
        start = first + gap + index * chunk
        if 2 <= index < 2 + num_noisy:
            builder.noisy(start, chunk)
        if index < num_clean:
            builder.clean(start, chunk)
    return builder.build()


def after_switch(window: FrameWindow, num_chunks: int, gap: int, repeats: Iterable[int]) -> Layout:
    """Chunks after a change of the prompt, which comes when `num_chunks` chunks of the clip have gone by.

    Args:
        window: of the model.
        num_chunks: before the change.
        gap: how much further away the sink is than in the clip; 0 while the window holds all frames.
        repeats: how often each chunk from the change on is a noisy one, with noise of its own each time.
    """
    builder, chunk = LayoutBuilder(window, gap), window.latent_frames_per_chunk
    first = num_chunks * chunk + gap
    if first > window.size:
        builder.clean(0, chunk)  # the sink keeps the caption before
    builder.recache(first, caption=1)
    counts = list(repeats)
    for index, count in enumerate(counts):
        for _ in range(count):
            builder.noisy(first + index * chunk, chunk, caption=1)
        if index + 1 < len(counts):
            builder.clean(first + index * chunk, chunk, caption=1)
    return builder.build()


def _spans(places: Iterable[int]) -> Spans:
    spans: list[tuple[int, int]] = []
    for place in places:
        if spans and spans[-1][1] == place:
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
    return tuple(spans)
