"""How the index of records is brought up from the block logs: tables, and one transaction for all.

A chain is indexed by height, from the block behind the last one indexed. Where that block is still
whole at its byte of a segment with the same salt, all before it is taken to be unchanged; otherwise the
chain is indexed from the first block that is there. Blocks that have been pruned since leave the index.
Whatever interrupts this leaves the index as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from edgepool.errors import StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.crypto import sha256
from edgepool.model.ids import ChainId
from edgepool.model.policy import DataPolicy
from edgepool.model.record import (
    Body,
    ChainAnchor,
    Complaint,
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    MembershipChange,
    QualityInspection,
    Statement,
    TransferReceipt,
    TransmissionConfirmation,
    kind_of,
)
from edgepool.model.succession import KeySuccession
from edgepool.model.trust import TrustChange
from edgepool.model.vote import Equivocation
from edgepool.storage.reading import BlockReader, SegmentReader, StoredBlock, UnfinishedBlock, decode_block
from edgepool.storage.store import list_chains

APPLICATION = 0x45504958
VERSION = 2
"""Which tables these are; an index of another version is made again."""
ID_BYTES = 16
"""How much of a record's id is indexed, in bytes: enough to be unique."""
BATCH_RECORDS = 20_000
_ANALYSE_FROM_RECORDS = 1_000

Progress = Callable[[int, int], None]
_Row = tuple[int, bytes, int, int, int, bytes]
"""Of a chain: first height, and of the last block salt of its segment, height, start, end and digest."""

_TABLES = (
    "CREATE TABLE chains (id INTEGER PRIMARY KEY, chain TEXT NOT NULL UNIQUE, "
    "first INTEGER NOT NULL, salt BLOB NOT NULL, height INTEGER NOT NULL, start INTEGER NOT NULL, "
    "end INTEGER NOT NULL, digest BLOB NOT NULL)",
    "CREATE TABLE machines (id INTEGER PRIMARY KEY, peer TEXT NOT NULL UNIQUE)",
    "CREATE TABLE tasks (chain INTEGER NOT NULL, task TEXT NOT NULL, part TEXT NOT NULL, "
    "PRIMARY KEY (chain, task)) WITHOUT ROWID",
    "CREATE TABLE records (chain INTEGER NOT NULL, height INTEGER NOT NULL, "
    "place INTEGER NOT NULL, start INTEGER NOT NULL, record BLOB NOT NULL, kind TEXT NOT NULL, "
    "author INTEGER NOT NULL, time_ms INTEGER NOT NULL, part TEXT, data_kind TEXT, task TEXT)",
)
# Made behind the first records: sorting once is much quicker than a million insertions.
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS records_by_id ON records (record)",
    "CREATE INDEX IF NOT EXISTS records_by_time ON records (time_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_kind ON records (kind, time_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_author ON records (author, time_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_chain ON records (chain, time_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_part ON records (part, time_ms) WHERE part IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS records_by_key ON records (part, data_kind, time_ms) "
    "WHERE data_kind IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS records_by_task ON records (task, time_ms) WHERE task IS NOT NULL",
)
_INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class StaleIndex(Exception):
    """The index says something else than the block logs."""


def no_progress(_done_bytes: int, _all_bytes: int) -> None:
    """Tell nobody."""


def bring_up(db: sqlite3.Connection, folder: Path, progress: Progress) -> tuple[str, ...]:
    """Index what the block logs in `folder` have more, in one transaction.

    Returns a sentence for each chain whose log is damaged. Raises sqlite3.Error.
    """
    with ExitStack() as logs:
        if not _Filling(db, folder, progress, logs).behind():
            return ()
    with ExitStack() as logs:
        db.execute("BEGIN IMMEDIATE")
        try:
            filling = _Filling(db, folder, progress, logs)
            filling.run()
            db.execute("COMMIT")
        except BaseException:
            db.rollback()
            raise
        return tuple(filling.problems)


@dataclass(slots=True)
class _Part:
    """What is still to be done for one chain: to index what stands behind `height`, which ends at `end`.

    `size_bytes` is how much that is. `fresh`: forget what was indexed; `pruned`: only what is pruned.
    """

    chain: ChainId
    reader: BlockReader | None
    height: int = 0
    end: int = 0
    size_bytes: int = 0
    fresh: bool = True
    pruned: bool = False


class _Filling:
    """One pass over all chains of a folder."""

    def __init__(self, db: sqlite3.Connection, folder: Path, progress: Progress, logs: ExitStack) -> None:
        self._db = db
        self._folder = folder
        self._progress = progress
        self._logs = logs
        self._rows: list[tuple[object, ...]] = []
        self._machines: dict[str, int] = {}
        self._done_bytes = 0
        self._all_bytes = 0
        self.problems: list[str] = []

    def run(self) -> None:
        """Index what is behind."""
        if self._empty():
            for statement in _TABLES:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._machines = dict(self._db.execute("SELECT peer, id FROM machines"))
        count = self._count()
        parts = self.behind()
        self._all_bytes = sum(part.size_bytes for part in parts)
        self._progress(0, self._all_bytes)
        for part in parts:
            if part.fresh:
                self._forget(part.chain)
            if part.reader is not None:
                number = self._number(part.chain)
                if part.pruned:
                    self._drop(number, part.reader.first)
                self._fill(part, part.reader, number)
        self._flush()
        for statement in _INDEXES:
            self._db.execute(statement)
        if self._count() - count >= _ANALYSE_FROM_RECORDS:
            self._db.execute("PRAGMA analysis_limit = 1000")
            self._db.execute("ANALYZE")

    def behind(self) -> list[_Part]:
        """Return what is to do; nothing if the index is up to date."""
        known = self._known()
        parts: list[_Part] = []
        for chain in list_chains(self._folder):
            row = known.pop(chain, None)
            try:
                reader = self._logs.enter_context(BlockReader(self._folder / "chains" / chain))
                part = _part(chain, reader, row)
            except StorageError as error:
                self.problems.append(str(error))
                parts.append(_Part(chain, None))
                continue
            if part.fresh or part.pruned or part.size_bytes:
                parts.append(part)
        return parts + [_Part(ChainId(gone), None) for gone in known]

    def _known(self) -> dict[str, _Row]:
        if self._empty():
            return {}
        rows = self._db.execute("SELECT chain, first, salt, height, start, end, digest FROM chains")
        return {row[0]: row[1:] for row in rows}

    def _fill(self, part: _Part, reader: BlockReader, number: int) -> None:
        parts_of: dict[str, str] = dict(
            self._db.execute("SELECT task, part FROM tasks WHERE chain = ?", [number])
        )
        tasks_before = len(parts_of)
        last: StoredBlock | None = None
        for found in reader.scan(part.height, part.end):
            try:
                if isinstance(found, StorageError):
                    raise found
                certified = decode_block(
                    self._folder / "chains" / part.chain, part.chain, found.height, found.payload
                )
            except StorageError as error:
                if not isinstance(error, UnfinishedBlock):
                    self.problems.append(str(error))
                break
            self._enter(number, found, certified, parts_of)
            last = found
        new_tasks = list(parts_of.items())[tasks_before:]
        rows = [(number, task, asset) for task, asset in new_tasks]
        self._db.executemany("INSERT INTO tasks VALUES (?, ?, ?)", rows)
        self._db.execute("UPDATE chains SET first = ? WHERE id = ?", [reader.first, number])
        segment = reader.segment(last.height) if last is not None else None
        if last is not None and segment is not None:
            self._db.execute(
                "UPDATE chains SET salt = ?, height = ?, start = ?, end = ?, digest = ? WHERE id = ?",
                [segment.salt, last.height, last.start, last.end, sha256(last.payload), number],
            )

    def _enter(
        self, chain: int, stored: StoredBlock, certified: CertifiedBlock, parts_of: dict[str, str]
    ) -> None:
        for place, signed in enumerate(certified.block.records):
            record = signed.record
            part, data_kind, task = _subject(record.body, parts_of)
            self._rows.append(
                (
                    chain,
                    stored.height,
                    place,
                    stored.start,
                    signed.id[:ID_BYTES],
                    kind_of(record.body),
                    self._machine(record.author),
                    record.time_ms,
                    part,
                    data_kind,
                    task,
                )
            )
        self._done_bytes += stored.end - stored.start
        if len(self._rows) >= BATCH_RECORDS:
            self._flush()

    def _flush(self) -> None:
        self._db.executemany(_INSERT, self._rows)
        self._rows.clear()
        self._progress(self._done_bytes, self._all_bytes)

    def _drop(self, chain: int, first: int) -> None:
        """Remove the records of blocks before `first`; what was said of tasks there stays."""
        self._db.execute("DELETE FROM records WHERE chain = ? AND height < ?", [chain, first])

    def _forget(self, chain: ChainId) -> None:
        row = self._db.execute("SELECT id FROM chains WHERE chain = ?", [chain]).fetchone()
        if row:
            for statement in (
                "DELETE FROM records WHERE chain = ?",
                "DELETE FROM tasks WHERE chain = ?",
                "DELETE FROM chains WHERE id = ?",
            ):
                self._db.execute(statement, row)

    def _number(self, chain: ChainId) -> int:
        """Return the number that stands for `chain`; a new one has height 0, nothing indexed."""
        insert = (
            "INSERT OR IGNORE INTO chains (chain, first, salt, height, start, end, digest) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        self._db.execute(insert, [chain, 0, b"", 0, 0, 0, b""])
        return int(self._db.execute("SELECT id FROM chains WHERE chain = ?", [chain]).fetchone()[0])

    def _machine(self, peer: str) -> int:
        number = self._machines.get(peer)
        if number is None:
            cursor = self._db.execute("INSERT INTO machines (peer) VALUES (?)", [peer])
            number = self._machines[peer] = int(cursor.lastrowid or 0)
        return number

    def _empty(self) -> bool:
        return not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _count(self) -> int:
        return int(self._db.execute("SELECT coalesce(max(rowid), 0) FROM records").fetchone()[0])


def _part(chain: ChainId, reader: BlockReader, row: _Row | None) -> _Part:
    """Return where to go on in a chain: behind the last block indexed, if it still stands there."""
    all_bytes = reader.bytes_behind(0, SegmentReader.begin)
    whole = _Part(chain, reader, 0, SegmentReader.begin, all_bytes, fresh=False)
    if row is None or row[2] == 0:
        return whole
    first, salt, height, start, end, digest = row
    segment = reader.segment(height)
    last = segment.read(height, start) if segment is not None and segment.salt == salt else None
    if last is None or last.end != end or sha256(last.payload) != digest:
        return replace(whole, fresh=True)
    pruned = first < reader.first
    return _Part(chain, reader, height, end, reader.bytes_behind(height, end), fresh=False, pruned=pruned)


def _subject(body: Body, parts_of: dict[str, str]) -> tuple[str | None, str | None, str | None]:
    """Return the part, the kind of data and the task that a record is about, None where there is none.

    Enters a requirement's part into `parts_of`, by task.
    """
    match body:
        case MachiningRequirement():
            return parts_of.setdefault(body.task, body.part), None, body.task
        case MachiningProcedure() | MachiningCompletion() | QualityInspection():
            return parts_of.get(body.task), None, body.task
        case DataDemand() | DataOffer() | TransmissionConfirmation() | TransferReceipt() | Complaint():
            return body.key.part, body.key.kind, None
        case DataPolicy():
            return body.part, body.kind, None
        case MembershipChange() | TrustChange() | Equivocation() | ChainAnchor() | Statement():
            return None, None, None
        case KeySuccession():
            return None, None, None
        case _:
            assert_never(body)
