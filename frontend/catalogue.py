"""The names of all generations: by client and id, by idempotency key, and by age."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from filmstrip.errors import NotFound
from filmstrip.models import State

from .generation import LiveGeneration
from .jobs import Record
from .records import Records
from .store import Store

_MAX_WITHOUT_OUTPUT = 10_000  # ended generations without an output; others count as files of the store
_MAX_WITHOUT_OUTPUT_BYTES = 256 * 2**20  # of their requests


@dataclass(eq=False, slots=True)
class Entry:
    """What memory holds of every generation, also of those that have ended.

    Attributes:
        num_events: events in the log when it ended.
        live: the rest, while it is live.
    """

    seq: int
    client: str
    id: str
    digest: str
    idempotency_key: str | None
    state: State
    request_bytes: int
    expires_at: float | None = None
    output_path: str | None = None
    preview_bytes: int = 0
    num_events: int = 0
    live: "LiveGeneration | None" = None

    @property
    def current_state(self) -> State:
        """Its state, also while it is live."""
        return self.state if self.live is None else self.live.record.state

    @classmethod
    def of(cls, record: Record, num_events: int = 0) -> "Entry":
        """The entry of a record."""
        return cls(
            record.seq,
            record.client,
            record.id,
            record.digest,
            record.idempotency_key,
            record.state,
            record.request_bytes,
            record.expires_at,
            record.output_path,
            record.preview_bytes,
            num_events,
        )


class Catalogue:
    """All generations, until they expire.

    Args:
        records: where they are remembered.
        store: where their outputs are.
    """

    def __init__(self, records: Records, store: Store) -> None:
        self._records = records
        self._store = store
        self._clients: dict[str, dict[str, Entry]] = {}  # each client's in the order in which they were accepted
        self._keys: dict[tuple[str, str], str] = {}
        self._without_output: dict[int, Entry] = {}  # those that have ended, oldest first
        self._without_output_bytes = 0

    def get(self, client: str, id: str) -> Entry | None:
        """A client's generation; None if there is none, or it has expired."""
        entry = self._clients.get(client, {}).get(id)
        return None if entry is None or self._remove_if_gone(entry) else entry

    def find(self, client: str, id: str) -> Entry:
        """A client's generation.

        Raises:
            NotFound: there is none, or it has expired.
        """
        entry = self.get(client, id)
        if entry is None:
            shown = id if len(id) <= 80 else id[:80] + "..."
            raise NotFound(f"there is no generation {shown!r}; it may have expired")
        return entry

    def id_of_key(self, client: str, key: str) -> str | None:
        """The id of the generation that a client gave this idempotency key."""
        return self._keys.get((client, key))

    def in_order(self, client: str, *, oldest_first: bool) -> Iterator[Entry]:
        """A client's generations, newest first or oldest first."""
        entries = list(self._clients.get(client, {}).values())
        return (entry for entry in (entries if oldest_first else reversed(entries)) if not self._remove_if_gone(entry))

    def live(self, client: str) -> list[LiveGeneration]:
        """A client's generations that wait or run."""
        return [entry.live for entry in self._clients.get(client, {}).values() if entry.live is not None]

    def keep_key(self, client: str, key: str, id: str) -> None:
        """Reserve an idempotency key for a generation that is not accepted yet."""
        self._keys[client, key] = id

    def drop_key(self, client: str, key: str) -> None:
        """Forget an idempotency key."""
        self._keys.pop((client, key), None)

    def add(self, record: Record, num_events: int = 0, live: LiveGeneration | None = None) -> Entry:
        """Add a generation."""
        entry = Entry.of(record, num_events)
        entry.live = live
        self._store.count(record.preview_bytes, record.client, is_new=False)
        self._clients.setdefault(entry.client, {})[entry.id] = entry
        if entry.idempotency_key is not None:
            self.keep_key(entry.client, entry.idempotency_key, entry.id)
        if not record.state.is_live:
            self._limit_without_output(entry)
        return entry

    def note_end(self, live: LiveGeneration) -> None:
        """Note that a generation has ended and its last event is written."""
        record = live.record
        entry = self._clients[record.client][record.id]
        entry.state, entry.output_path, entry.expires_at = record.state, record.output_path, record.expires_at
        entry.num_events, entry.preview_bytes, entry.live = live.events.num_events, record.preview_bytes, None
        self._limit_without_output(entry)

    def remove(self, entry: Entry) -> None:
        """Forget a generation and remove its record and its output."""
        own = self._clients.get(entry.client, {})
        if own.get(entry.id) is not entry:
            return
        del own[entry.id]
        if not own:
            del self._clients[entry.client]
        if entry.idempotency_key is not None:
            self.drop_key(entry.client, entry.idempotency_key)
        if self._without_output.pop(entry.seq, None) is not None:
            self._without_output_bytes -= entry.request_bytes
        if entry.output_path is not None:
            self._store.remove(entry.output_path)
        self._store.count(-entry.preview_bytes, entry.client, is_new=False)
        self._records.delete([entry.seq])

    def _limit_without_output(self, entry: Entry) -> None:
        """Count an ended generation that the limits of the store do not bound, and remove the oldest ones."""
        if entry.output_path is not None:
            return
        self._without_output[entry.seq] = entry
        self._without_output_bytes += entry.request_bytes
        while len(self._without_output) > _MAX_WITHOUT_OUTPUT or self._without_output_bytes > _MAX_WITHOUT_OUTPUT_BYTES:
            self.remove(next(iter(self._without_output.values())))

    def expire(self) -> None:
        """Remove what has expired."""
        for own in list(self._clients.values()):
            for entry in list(own.values()):
                self._remove_if_gone(entry)

    def _remove_if_gone(self, entry: Entry) -> bool:
        """Whether it has expired, or its output has been removed: both go together. It is removed then."""
        if entry.live is not None or entry.expires_at is None:
            return False
        is_gone = entry.expires_at <= time.time()
        is_gone = is_gone or (entry.output_path is not None and not self._store.has(entry.output_path))
        if is_gone:
            self.remove(entry)
        return is_gone
