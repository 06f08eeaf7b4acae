"""The blob of a generation's arrays: offsets are computed, bytes are made when they are sent, nothing is joined."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

_ALIGNMENT = 4
"""Of float32, so that the server may use the bytes where they lie."""


class Blob:
    """Collects arrays; iterate over it for the bytes to send, as often as wanted."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Callable[[], Iterator[memoryview]]]] = []
        self._offsets: dict[Hashable, int] = {}
        self.num_bytes = 0

    def add(self, key: Hashable, num_bytes: int, pieces: Callable[[], Iterator[memoryview]]) -> int:
        """Add an array; gives its offset.

        Args:
            key: an array that was added under this key before is not added again: several chunks may share one.
            num_bytes: of the array.
            pieces: makes its bytes, when they are sent.
        """
        if key not in self._offsets:
            offset = -(-self.num_bytes // _ALIGNMENT) * _ALIGNMENT
            self._offsets[key] = offset
            self._parts.append((offset, pieces))
            self.num_bytes = offset + num_bytes
        return self._offsets[key]

    def __iter__(self) -> Iterator[bytes | memoryview]:
        end = 0
        for offset, pieces in self._parts:
            if offset > end:
                yield bytes(offset - end)
            end = offset
            for piece in pieces():
                end += piece.nbytes
                yield piece
        assert end == self.num_bytes, "an array gave more or fewer bytes than it was said to have"
