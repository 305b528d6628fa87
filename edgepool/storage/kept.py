"""What stays of pruned blocks: `kept.log` in a chain's folder, single records that can still be proved.

It is a log (log.py) whose entries are a place (height u64, index u16; little-endian) and the encoded
KeptRecord. It is rewritten aside as `kept.log.new` and renamed when records in it need not stay any more.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgepool.core.machine import KeptRecord
from edgepool.errors import DecodeError, StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode, encode
from edgepool.model.merkle import merkle_paths
from edgepool.storage.checked import ASIDE
from edgepool.storage.files import close_file, guarded, sync_folder
from edgepool.storage.log import AppendLog, BadEntry, read_preface, scan

KEPT_FILE = "kept.log"
_KIND = b"EPKEEPS1"
_NOUN = "kept record"
_REMEDY = (
    "Restore the folder from a backup, or move the file out of it and start the peer again: the records "
    "in it can then only be proved by the other members."
)
_PLACE = struct.Struct("<QH")

Place = tuple[int, int]
"""Height and index of a record."""


class KeptLog:
    """The kept records of one chain in `folder`; the file is made with the first of them.

    One thread may change it while others read. All methods raise StorageError.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / KEPT_FILE
        self._reading = threading.Lock()
        self._log: AppendLog | None = None
        self._numbers: dict[Place, int] = {}
        with guarded(self._path, "opened"):
            there = self._path.exists()
        if there:
            self._log = self._open(self._path)
            for number in range(1, len(self._log) + 1):
                self._numbers[_place(self._log.read(number))] = number

    @property
    def recovered(self) -> str:
        """What was set aside on opening, in a sentence, or ''."""
        return self._log.recovered if self._log is not None else ""

    @property
    def size_bytes(self) -> int:
        """How many bytes the file has."""
        return self._log.size_bytes if self._log is not None else 0

    def __contains__(self, place: Place) -> bool:
        return place in self._numbers

    def get(self, place: Place) -> KeptRecord | None:
        """Return the record that stood at `place`, or None if it was not kept."""
        with self._reading:
            number = self._numbers.get(place)
            payload = self._log.read(number) if self._log is not None and number is not None else None
        if payload is None:
            return None
        try:
            return decode(KeptRecord, payload[_PLACE.size :])
        except DecodeError as error:
            raise StorageError(f"{self._path}: {_NOUN} {number} is damaged ({error})") from None

    def keep(self, fresh: Iterator[tuple[Place, KeptRecord]], wanted: Callable[[Place], bool]) -> None:
        """Add `fresh`, and drop what was there and is not `wanted`; durable on return.

        If it fails, what was there is there, and it can be called again.
        """
        if all(wanted(place) for place in self._numbers):
            self._append(fresh)
        else:
            self._rewrite(fresh, wanted)

    def close(self) -> None:
        """Release the file; no data depends on it."""
        with self._reading:
            if self._log is not None:
                self._log.close()

    def _append(self, fresh: Iterator[tuple[Place, KeptRecord]]) -> None:
        added: dict[Place, int] = {}
        for place, record in fresh:
            if self._log is None:
                self._log = self._open(self._path)
            self._log.append(_PLACE.pack(*place) + encode(record))
            added[place] = len(self._log)
        if self._log is not None:
            self._log.sync()
            with guarded(self._path, "made"):
                sync_folder(self._path.parent)
        self._numbers.update(added)

    def _rewrite(self, fresh: Iterator[tuple[Place, KeptRecord]], wanted: Callable[[Place], bool]) -> None:
        before = self._log
        assert before is not None, "something is there"
        aside = self._path.with_name(self._path.name + ASIDE)
        with guarded(aside, "removed"):
            aside.unlink(missing_ok=True)
        log = self._open(aside)
        numbers: dict[Place, int] = {}
        try:
            for place, number in self._numbers.items():
                if wanted(place):
                    log.append(before.read(number) or b"")
                    numbers[place] = len(log)
            for place, record in fresh:
                log.append(_PLACE.pack(*place) + encode(record))
                numbers[place] = len(log)
            log.sync()
            with guarded(self._path, "replaced"):
                log.rename(self._path)
        except StorageError:
            log.close()
            raise
        with self._reading:
            self._log, self._numbers = log, numbers
            before.close()
        with guarded(self._path, "replaced"):
            sync_folder(self._path.parent)

    def _open(self, path: Path) -> AppendLog:
        return AppendLog(path, _KIND, _NOUN, _REMEDY)


def scan_kept(folder: Path) -> Iterator[KeptRecord]:
    """Yield the kept records in a chain's folder, without opening it for writing; its peer may run.

    A damaged one ends them. StorageError if the file cannot be read.
    """
    path = folder / KEPT_FILE
    with guarded(path, "read"):
        if not path.exists():
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with guarded(path, "read"):
            salt = read_preface(fd, _KIND)
            for found in scan(fd, os.fstat(fd).st_size, salt) if salt is not None else ():
                if isinstance(found, BadEntry):
                    return
                yield decode(KeptRecord, found.payload[_PLACE.size :])
    except DecodeError as error:
        raise StorageError(f"{path} is damaged ({error})") from None
    finally:
        close_file(fd)


def kept_records(certified: CertifiedBlock, indexes: Sequence[int]) -> list[KeptRecord]:
    """Return what must stay of a block so that the records at `indexes` can be proved.

    StorageError if the block has no such record.
    """
    header, records = certified.block.header, certified.block.records
    for index in indexes:
        if not 0 <= index < len(records):
            raise StorageError(f"block {header.height} of chain {header.chain} has no record {index} to keep")
    paths = merkle_paths([encode(record) for record in records], indexes)
    return [
        KeptRecord(header, certified.certificate, records[index], index, path)
        for index, path in zip(indexes, paths, strict=True)
    ]


def _place(payload: bytes | None) -> Place:
    height, index = _PLACE.unpack_from(payload or bytes(_PLACE.size))
    return height, index
