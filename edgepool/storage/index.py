"""A derived index over the records of all chains in a peer's folder, in SQLite.

The block logs are the truth, `index.sqlite` is a way to find things in them:

* It may be deleted at any time. Opening brings it up from the logs, from where it left off.
* An index that is damaged, of another version, or contradicts the logs is made again, silently. Where
  the folder cannot be written, a temporary one serves.
* What a search returns is read from the block log, with its checksum; the index only says where.
* Logs are opened for reading only, so the peer may run. What was indexed of a log that has been cut
  or replaced since is noticed (by its segment's salt and the last block indexed) and indexed again.
  Records of blocks that are pruned are not found any more.

A record is found by part, data key, author, time, kind, task and id. Procedures, completions and
inspections name a task only; they get the part of the task's requirement on the same chain.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgepool.core.machine import RecordRef
from edgepool.errors import LocalError, StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import SignedRecord
from edgepool.model.twin import DataKey
from edgepool.storage.indexing import (
    APPLICATION,
    ID_BYTES,
    VERSION,
    Progress,
    StaleIndex,
    bring_up,
    no_progress,
)
from edgepool.storage.reading import BlockReader, decode_block
from edgepool.storage.store import list_chains

INDEX_FILE = "index.sqlite"
BUSY_TIMEOUT_S = 120.0
_ATTEMPTS = 3
_T = TypeVar("_T")

_REFUSED = (
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_FULL,
)


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """Which records to find; what is left at its default does not limit them.

    Times are those that authors gave, in ms since 1970 UTC: from `since_ms` to before `until_ms`.
    """

    part: str = ""
    key: DataKey | None = None
    authors: tuple[PeerId, ...] = ()
    kind: str = ""
    task: str = ""
    chain: ChainId | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as the block log has it: its place, and the byte `start` of its block in its segment."""

    ref: RecordRef
    signed: SignedRecord
    start: int


@dataclass(frozen=True, slots=True)
class FoundRecords:
    """The newest of the `total` records that a query meets, newest first."""

    total: int
    records: tuple[StoredRecord, ...]


class RecordIndex:
    """The index of `folder`, up to date with its block logs as they were on opening.

    `progress` is called with (bytes indexed, bytes to index) now and then. `problems` says in
    sentences which chains could be indexed in part only, as their logs are damaged. LocalError if
    there is no such folder or others keep the index busy, StorageError if the disk fails.
    """

    def __init__(self, folder: Path, progress: Progress = no_progress) -> None:
        self._folder = folder
        self._progress = progress
        self._path = str(folder / INDEX_FILE)
        self._db: sqlite3.Connection | None = None
        self.problems: tuple[str, ...] = ()
        list_chains(folder)
        self._trying(lambda _: None)

    def __enter__(self) -> RecordIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def temporary(self) -> bool:
        """Whether the folder took no index, so that this one is lost on closing."""
        return not self._path

    def find(self, query: RecordQuery) -> FoundRecords:
        """Return the newest records that meet every condition of `query`."""
        return self._trying(lambda db: self._find(db, query))

    def find_id(self, prefix: str, limit: int = 8) -> tuple[StoredRecord, ...]:
        """Return at most `limit` records whose id begins with `prefix`, lower-case hex digits."""
        lowest = bytes.fromhex(prefix[: 2 * ID_BYTES].ljust(2 * ID_BYTES, "0"))
        highest = bytes.fromhex(prefix[: 2 * ID_BYTES].ljust(2 * ID_BYTES, "f"))
        where = "record BETWEEN ? AND ? ORDER BY record LIMIT ?"
        found = self._trying(lambda db: self._read(db, where, [lowest, highest, limit]))
        return tuple(one for one in found if one.signed.id.hex().startswith(prefix))

    def block(self, record: StoredRecord) -> CertifiedBlock:
        """Return the block that a found record is in."""
        with self._open_log(record.ref.chain) as reader:
            return self._block(reader, record.ref.chain, record.ref.height, record.start)

    def explain(self, query: RecordQuery) -> list[str]:
        """Return how SQLite looks `query` up, one line for each step."""

        def plan(db: sqlite3.Connection) -> list[str]:
            where, values = _conditions(db, query)
            sql = f"EXPLAIN QUERY PLAN {_SELECT} {where} {_NEWEST}"
            return [str(row[3]) for row in db.execute(sql, [*values, query.limit])]

        return self._trying(plan)

    def close(self) -> None:
        """Release the file; a temporary index is gone then."""
        if self._db is not None:
            self._db.close()
            self._db = None

    # --- searching ------------------------------------------------------------------------------

    def _find(self, db: sqlite3.Connection, query: RecordQuery) -> FoundRecords:
        where, values = _conditions(db, query)
        total = db.execute(f"SELECT count(*) FROM records WHERE {where}", values).fetchone()[0]
        return FoundRecords(total, self._read(db, f"{where} {_NEWEST}", [*values, query.limit]))

    def _read(self, db: sqlite3.Connection, where: str, values: list[object]) -> tuple[StoredRecord, ...]:
        """Read the records whose rows are `where` says from the block logs."""
        readers: dict[str, BlockReader] = {}
        last: tuple[str, int, CertifiedBlock] | None = None
        found = []
        try:
            for chain, height, place, start, record in db.execute(f"{_SELECT} {where}", values):
                if chain not in readers:
                    readers[chain] = self._open_log(chain)
                if last is None or last[:2] != (chain, height):
                    last = (chain, height, self._block(readers[chain], chain, height, start))
                records = last[2].block.records
                if place >= len(records) or records[place].id[:ID_BYTES] != record:
                    raise StaleIndex(f"record {place} of block {height} of chain {chain} is another")
                found.append(StoredRecord(RecordRef(chain, height, place), records[place], start))
        finally:
            for reader in readers.values():
                reader.close()
        return tuple(found)

    def _block(self, reader: BlockReader, chain: ChainId, height: int, start: int) -> CertifiedBlock:
        stored = reader.read(height, start)
        if stored is None:
            raise StaleIndex(f"block {height} of chain {chain} is not where it was")
        return decode_block(self._folder / "chains" / chain, chain, height, stored.payload)

    def _open_log(self, chain: str) -> BlockReader:
        return BlockReader(self._folder / "chains" / chain)

    # --- opening, and starting over --------------------------------------------------------------

    def _trying(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do `work` on the open index; if the index proves useless, make it again and retry."""
        for _ in range(_ATTEMPTS):
            try:
                if self._db is None:
                    self._open()
                assert self._db is not None
                return work(self._db)
            except (sqlite3.Error, StaleIndex) as error:
                failure = error
                self.close()
                self._give_up_on(error)
            except BaseException:
                self.close()
                raise
        raise StorageError(f"{self._path or 'a temporary index'} cannot be used: {failure}")

    def _open(self) -> None:
        db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        self._db = db
        db.execute("PRAGMA cache_size = -65536")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cell_size_check = ON")
        kind = (db.execute("PRAGMA application_id").fetchone()[0], _version(db))
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and kind != (APPLICATION, VERSION):
            raise StaleIndex("it is of another version")
        self.problems = bring_up(db, self._folder, self._progress)

    def _give_up_on(self, error: Exception) -> None:
        """Remove the index, or stop using the folder; raise if neither would help."""
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LocalError(
                f"{self._path} is busy: another command is indexing; try again when it has ended"
            )
        if code in _REFUSED and self._path:
            self._path = ""
            return
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL):
            raise StorageError(f"{self._path or 'a temporary index'} cannot be used: {error}; check the disk")
        if not self._path:
            return
        try:
            for suffix in ("", "-journal", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(self._path + suffix).unlink()
        except OSError:
            self._path = ""


_SELECT = (
    "SELECT (SELECT chain FROM chains WHERE id = records.chain), height, place, start, record "
    "FROM records WHERE"
)
_NEWEST = "ORDER BY time_ms DESC, rowid DESC LIMIT ?"


def _conditions(db: sqlite3.Connection, query: RecordQuery) -> tuple[str, list[object]]:
    """Return what the query asks for as SQL, and its values."""
    wanted: list[tuple[str, object]] = []
    if query.part:
        wanted.append(("part = ?", query.part))
    if query.key is not None:
        wanted += [("part = ?", query.key.part), ("data_kind = ?", query.key.kind)]
    if query.kind:
        wanted.append(("kind = ?", query.kind))
    if query.task:
        wanted.append(("task = ?", query.task))
    if query.chain is not None:
        wanted.append(("chain = ?", _number(db, "chains", "chain", query.chain)))
    if query.since_ms is not None:
        wanted.append(("time_ms >= ?", query.since_ms))
    if query.until_ms is not None:
        wanted.append(("time_ms < ?", query.until_ms))
    clauses = [clause for clause, _ in wanted]
    values = [value for _, value in wanted]
    if query.authors:
        numbers = [_number(db, "machines", "peer", author) for author in query.authors]
        clauses.append("author = ?" if len(numbers) == 1 else f"author IN ({', '.join('?' * len(numbers))})")
        values += numbers
    return " AND ".join(clauses) or "TRUE", values


def _number(db: sqlite3.Connection, table: str, column: str, text: str) -> int:
    row = db.execute(f"SELECT id FROM {table} WHERE {column} = ?", [text]).fetchone()
    return row[0] if row else -1


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
