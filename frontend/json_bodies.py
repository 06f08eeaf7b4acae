"""JSON bodies: all of them together within a budget of memory, and parsed without holding up the event loop."""

import asyncio
import contextlib
import ctypes
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

import numpy as np
from pydantic import BaseModel

from filmstrip.errors import InvalidField, Overloaded, TooLarge

from .connection import BoundedBody, Pace
from .schema import parse
from .tasks import FairSemaphore, in_thread

ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_VALUES = 500_000  # that many take about half a second to parse
_SMALL_BYTES = 64 * 1024  # bodies up to here find room when large ones have taken theirs
_KEPT_FOR_SMALL = 1 / 16
_PARSED_AT_ONCE = 1  # Python runs one at a time anyway, and the event loop gets its turn in between
_PIECE_BYTES = 2**20
_RETURN_S = 1.0
_RETURN_AGAIN_S = 8.0


class JsonBodies:
    """Reads and parses JSON bodies.

    Args:
        limit_bytes: of one body.
        total_bytes: of all bodies that are received, parsed or checked at the same time.
    """

    def __init__(self, limit_bytes: int, total_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._total_bytes = total_bytes
        self._held: Counter[str] = Counter()
        self._parsing = FairSemaphore(_PARSED_AT_ONCE)
        self._returning: asyncio.TimerHandle | None = None
        self._returning_again: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def read(
        self, model: type[ModelT], body: BoundedBody, *, content_length: int | None, client: str, pace: Pace
    ) -> AsyncIterator[ModelT]:
        """A request's body, parsed; it counts until the context ends, for its strings are still held.

        Raises:
            TooLarge: it has more bytes than the limit.
            InvalidField: it has more than `MAX_VALUES` values, or see `parse`.
            Overloaded: all bodies together, or those of the client, would be over the budget.
            SlowBody: it came slower than `pace`.
            BadJson: see `parse`.
        """
        if (content_length or 0) > self._limit_bytes:
            raise self._too_large()
        with self._reservation(client) as reservation:
            reservation.check(content_length or 0)
            data = bytearray()
            try:
                async for piece in body.pieces(pace):
                    if len(data) + len(piece) > self._limit_bytes:
                        raise self._too_large()
                    reservation.grow(len(data) + len(piece))
                    data += piece
            except BaseException:
                data.clear()  # the traceback would keep it for as long as the refused rest is read
                raise
            async with self._parsing.turn(client, reservation):
                parsed = await in_thread(_parse, model, data)
            data = bytearray()
            yield parsed

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over the limit of {self._limit_bytes} bytes")

    @contextlib.contextmanager
    def _reservation(self, client: str) -> Iterator["_Reservation"]:
        reservation = _Reservation(self, client)
        try:
            yield reservation
        finally:
            self.add(client, -reservation.num_bytes)
            if reservation.num_bytes > _SMALL_BYTES:
                self._return_memory()

    def _return_memory(self) -> None:
        """Give back to the system what large bodies leave in the C library's heap: soon, and when all is quiet again.

        What is still arriving of refused bodies passes through the heap, too.
        """
        loop = asyncio.get_running_loop()
        if self._returning is None:
            self._returning = loop.call_later(_RETURN_S, self._return_now)
        if self._returning_again is not None:
            self._returning_again.cancel()
        self._returning_again = loop.call_later(_RETURN_AGAIN_S, self._return_now)

    def _return_now(self) -> None:
        self._returning = None
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if malloc_trim is not None:
            asyncio.get_running_loop().run_in_executor(None, malloc_trim, 0)

    def check(self, client: str, more_bytes: int, num_bytes: int) -> None:
        """Refuse `more_bytes` that do not fit, for a body that then has `num_bytes`."""
        room = self._total_bytes if num_bytes <= _SMALL_BYTES else int(self._total_bytes * (1 - _KEPT_FOR_SMALL))
        if self._held.total() + more_bytes > room:
            raise Overloaded("the server holds as many JSON bodies as it has memory for; try again in a moment")
        if client and self._held[client] + more_bytes > max(room // 2, self._limit_bytes):
            raise Overloaded("the server holds as many of your JSON bodies as one client may send at once")

    def add(self, client: str, more_bytes: int) -> None:
        """Count bytes as held, or no longer."""
        self._held[client] += more_bytes
        if not self._held[client]:
            del self._held[client]


class _Reservation:
    """What one body takes of the budget."""

    def __init__(self, bodies: JsonBodies, client: str) -> None:
        self._bodies = bodies
        self._client = client
        self.num_bytes = 0

    def check(self, num_bytes: int) -> None:
        self._bodies.check(self._client, num_bytes - self.num_bytes, num_bytes)

    def grow(self, num_bytes: int) -> None:
        self.check(num_bytes)
        self._bodies.add(self._client, num_bytes - self.num_bytes)
        self.num_bytes = num_bytes


def _parse(model: type[ModelT], data: bytearray) -> ModelT:
    if len(data) > MAX_VALUES and count_values(data, MAX_VALUES) > MAX_VALUES:
        raise InvalidField(f"the body holds more than {MAX_VALUES} keys, values and lists; long strings are fine")
    return parse(model, data)


_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_IS_STRUCTURE = np.zeros(256, np.bool_)
_IS_STRUCTURE[list(b",:[{")] = True


def count_values(data: bytes | bytearray, limit: int) -> int:
    """Commas, colons and opening brackets outside of strings, counted until there are more than `limit`.

    The parser holds Python's lock from the start of a body to its end, and what it takes grows with this number.
    NumPy lets go of the lock while it counts.
    """
    num_values = 0
    in_string = np.uint8(0)
    backslashes = 0  # that the piece before ends with
    for start in range(0, len(data), _PIECE_BYTES):
        signs = np.frombuffer(data, np.uint8, min(_PIECE_BYTES, len(data) - start), start)
        quotes = signs == _QUOTE
        is_backslash = signs == _BACKSLASH
        if backslashes or is_backslash.any():
            places = np.arange(len(signs), dtype=np.int32)
            others = np.where(is_backslash, np.int32(-1 - backslashes), places)
            run_lengths = places - np.maximum.accumulate(others)  # of backslashes that end at each place
            quotes[1:] &= run_lengths[:-1] % 2 == 0
            quotes[0] &= backslashes % 2 == 0
            backslashes = int(run_lengths[-1]) if is_backslash[-1] else 0
        strings = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ in_string
        num_values += int(np.count_nonzero(_IS_STRUCTURE[signs] & (strings == 0)))
        in_string = strings[-1]
        if num_values > limit:
            break
    return num_values
