"""The durable records of generations and their event logs: one SQLite file in the data directory.

One thread uses the file, so that a slow disk never blocks the event loop and what is read includes what was written
before it.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filmstrip.errors import DiskFull

from .events import NumberedEvent
from .images import without_data_urls
from .jobs import Record
from .schema import RANDOM_SEED, GenerateRequest

log = logging.getLogger(__name__)

FILE_NAME = "generations.db"
_VERSION = 2
_NUM_RANDOM_SEEDS = 2**32
_WRITE_RECORD_S = 1.0
_TABLES = """
CREATE TABLE generations (seq INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE requests (seq INTEGER PRIMARY KEY, request TEXT NOT NULL);
CREATE TABLE events (
    seq INTEGER, number INTEGER, name TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (seq, number)
) WITHOUT ROWID;
"""

T = TypeVar("T")


class Records:
    """The records of all generations, in a file.

    Writes are queued at once and done in order. One that fails is logged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._thread = ThreadPoolExecutor(1, "records")
        self._db: sqlite3.Connection | None = None
        self._has_failed = False

    def open(self) -> list[tuple[Record, int]]:
        """Open the file and return all records, in order, each with the number of its last event.

        A file that cannot be read is put aside, and a new one begins.
        """
        return self._thread.submit(self._open).result()

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        if self._db is not None:
            await self._call(self._db.close)
            self._db = None
        await asyncio.to_thread(self._thread.shutdown)

    def insert(self, record: Record, request: str) -> Future[None]:
        """Add a record; `written` waits for it."""
        return self._submit(self._insert, record, request)

    async def written(self, writing: Future[None]) -> None:
        """Wait until a crash of the server can no longer undo what was written.

        Raises:
            DiskFull: it could not be written.
        """
        try:
            await asyncio.shield(asyncio.wrap_future(writing))
        except sqlite3.Error as error:
            raise DiskFull(f"the server cannot write down the generation: {error}") from None

    def update(self, record: Record) -> None:
        """Replace a record."""
        self._submit(self._execute, _UPDATE, (record.model_dump_json(), record.seq))

    def add_event(self, seq: int, event: NumberedEvent, record: Record | None, done: Callable[[bool], None]) -> None:
        """Add an event of a generation and, in the same transaction, replace its record.

        Args:
            seq: the generation's.
            event: the event.
            record: the new record, or None if it stays.
            done: called in the event loop, with whether it was written.
        """
        loop = asyncio.get_running_loop()
        future = self._submit(self._add_event, seq, event, record)

        def report(future: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done, future.exception() is None)

        future.add_done_callback(report)

    def delete(self, seqs: Iterable[int]) -> None:
        """Remove records with their requests and events."""
        self._submit(self._delete, list(seqs))

    async def get(self, seqs: Sequence[int]) -> dict[int, Record]:
        """Records by their seq, as far as they exist."""
        return await self._call(self._get, list(seqs))

    async def request(self, seq: int) -> str | None:
        """The JSON of a generation's request; None if there is no record."""
        rows = await self._call(self._query, "SELECT request FROM requests WHERE seq = ?", (seq,))
        return str(rows[0][0]) if rows else None

    async def events(self, seq: int, after: int, limit: int) -> list[NumberedEvent]:
        """The next events of a generation, at most `limit`."""
        rows = await self._call(self._query, _EVENTS, (seq, after, limit))
        return [NumberedEvent(*row) for row in rows]

    # -- In the thread ------------------------------------------------------------------------------------------

    def _submit(self, call: Callable[..., T], *args: Any) -> Future[T]:
        try:
            future = self._thread.submit(call, *args)
        except RuntimeError as error:  # closed: a generation took longer to end than the server waits
            future = Future()
            future.set_exception(error)
        future.add_done_callback(self._note_failure)
        return future

    async def _call(self, call: Callable[..., T], *args: Any) -> T:
        # Shielded: a cancelled caller would otherwise take a write that has not begun out of the queue.
        return await asyncio.shield(asyncio.wrap_future(self._thread.submit(call, *args)))

    def _note_failure(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None and not self._has_failed:
            log.error("records of generations cannot be written: %s", error)
        self._has_failed = error is not None

    def _open(self) -> list[tuple[Record, int]]:
        try:
            return self._connect()
        except (sqlite3.DatabaseError, ValueError) as error:
            self._close()
            aside = self._path.with_suffix(".bad")
            log.error("the records of generations cannot be read (%s); they are now in %s", error, aside.name)
            os.replace(self._path, aside)
            for suffix in ("-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> list[tuple[Record, int]]:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # then the WAL's index is in memory, not in a mapped file
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA journal_size_limit = 4194304")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise ValueError(f"format {version}")
        numbers = dict(self._query("SELECT seq, max(number) FROM events GROUP BY seq", ()))
        rows = self._query("SELECT seq, record FROM generations ORDER BY seq", ())
        return [(Record.model_validate_json(text), numbers.get(seq, 0)) for seq, text in rows]

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise sqlite3.ProgrammingError("the records are closed")
        return self._db

    def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        self._connection().execute(statement, values)

    def _query(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self._connection().execute(statement, values).fetchall()

    def _insert(self, record: Record, request: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO generations VALUES (?, ?)", (record.seq, record.model_dump_json()))
            db.execute("INSERT INTO requests VALUES (?, ?)", (record.seq, request))

    def _add_event(self, seq: int, event: NumberedEvent, record: Record | None) -> None:
        if record is None:
            self._execute(_ADD_EVENT, (seq, *event))
            return
        with self._transaction() as db:
            db.execute(_ADD_EVENT, (seq, *event))
            db.execute(_UPDATE, (record.model_dump_json(), seq))

    def _delete(self, seqs: list[int]) -> None:
        with self._transaction() as db:
            for seq in seqs:
                db.execute("DELETE FROM events WHERE seq = ?", (seq,))
                db.execute("DELETE FROM requests WHERE seq = ?", (seq,))
                db.execute("DELETE FROM generations WHERE seq = ?", (seq,))

    def _get(self, seqs: list[int]) -> dict[int, Record]:
        marks = ",".join("?" * len(seqs))
        rows = self._query(f"SELECT seq, record FROM generations WHERE seq IN ({marks})", seqs)  # noqa: S608  only marks
        return {seq: Record.model_validate_json(text) for seq, text in rows}

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        db = self._connection()
        db.execute("BEGIN")
        try:
            yield db
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled it back already
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


_ADD_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?)"
_UPDATE = "UPDATE generations SET record = ? WHERE seq = ?"
_EVENTS = "SELECT number, name, data FROM events WHERE seq = ? AND number > ? ORDER BY number LIMIT ?"


class LiveArchive:
    """The archive of a generation that waits or runs, and its record.

    The record is written along with the last event, and with others from time to time.

    Attributes:
        record: as of now.
    """

    def __init__(self, records: Records, record: Record) -> None:
        self.record = record
        self._records = records
        self._written_at = 0.0

    def change(self, **changes: Any) -> None:
        """Change the record; it is written later."""
        self.record = self.record.model_copy(update=changes)

    def write(self) -> None:
        """Write the record now."""
        self._records.update(self.record)

    def add(self, event: NumberedEvent, done: Callable[[bool], None]) -> None:
        """Write an event; see `EventArchive`."""
        now = asyncio.get_running_loop().time()
        writes_record = not self.record.state.is_live or now > self._written_at + _WRITE_RECORD_S
        if writes_record:
            self._written_at = now
        self._records.add_event(self.record.seq, event, self.record if writes_record else None, done)

    async def read(self, after: int, limit: int) -> list[NumberedEvent]:
        """Read events back."""
        return await self._records.events(self.record.seq, after, limit)


class EndedArchive:
    """The archive of a generation that has ended."""

    def __init__(self, records: Records, seq: int) -> None:
        self._records, self._seq = records, seq

    def add(self, event: NumberedEvent, done: Callable[[bool], None]) -> None:  # noqa: ARG002
        """Never called."""
        raise AssertionError("nothing follows a last event")

    async def read(self, after: int, limit: int) -> list[NumberedEvent]:
        """Read events back."""
        return await self._records.events(self._seq, after, limit)


# -- Requests as they are compared and kept ---------------------------------------------------------------------------


def digest_and_text(request: GenerateRequest) -> tuple[str, str]:
    """A hash by which a repeated request is recognised, whatever the order of its keys, and the JSON to keep."""
    text = json.dumps(request.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), stored_request(request, request)


def with_seed(request: GenerateRequest) -> GenerateRequest:
    """The request with a number for a random seed."""
    if request.seed != RANDOM_SEED:
        return request
    return _rebuilt(request, request.model_fields_set, seed=secrets.randbelow(_NUM_RANDOM_SEEDS))


def defaulted_fields(request: GenerateRequest) -> frozenset[str]:
    """Fields whose value comes from the client's load parameters, not from the request."""
    fields = GenerateRequest.model_fields
    return frozenset(
        name for name, value in request if name not in request.model_fields_set and value != fields[name].default
    )


def stored_request(sent: GenerateRequest, checked: GenerateRequest) -> str:
    """The JSON to keep: what was sent with the client's defaults, and no data URLs."""
    specs = without_data_urls(checked).chunk_specs
    names = sent.model_fields_set | defaulted_fields(sent)
    return _rebuilt(sent, names, chunk_specs=specs).model_dump_json(exclude_unset=True)


def restored_request(record: Record, text: str) -> GenerateRequest:
    """The request that a record was made for."""
    request = GenerateRequest.model_validate_json(text)
    return _rebuilt(request, request.model_fields_set - set(record.defaulted), seed=record.seed)


def _rebuilt(request: GenerateRequest, fields_set: Collection[str], **changes: Any) -> GenerateRequest:
    return GenerateRequest.model_construct(_fields_set=set(fields_set), **(dict(request) | changes))
