"""The files of one chain that change: its blocks, its snapshot, and what is kept of pruned blocks.

The order in which they change is what makes a crash at any point harmless:

* A snapshot of one's own is written behind blocks that are durable up to it.
* An adopted one is durable before the segments that end below it are dropped; what a crash has left of
  them is removed on opening.
* Records are kept durably before their blocks are dropped, and blocks are dropped only up to a snapshot
  that is stored. What a crash has left of blocks to be dropped are blocks like any others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgepool.core.machine import KeptRecord, Prune, SavedSnapshot, SaveSnapshot
from edgepool.errors import StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.ids import ChainId
from edgepool.storage.blocks import BlockLog
from edgepool.storage.checked import ASIDE
from edgepool.storage.files import guarded, sync_folder
from edgepool.storage.kept import KeptLog, Place, kept_records
from edgepool.storage.reading import decode_block
from edgepool.storage.snapshots import read_snapshot, save_snapshot


class ChainFiles:
    """The blocks, snapshot and kept records in a chain's `folder`, opened for writing.

    One thread may write while others read. All methods raise StorageError; then nothing half-written is
    left, and the same can be written again. `recovered` tells in sentences what was set aside on opening.
    """

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self._folder = folder
        self.chain = ChainId(folder.name)
        with guarded(folder, "opened"):
            for leftover in list(folder.glob(f"*{ASIDE}")):
                leftover.unlink()
            sync_folder(folder)  # a snapshot may be seen whose name a killed process has not synced
        stored = read_snapshot(folder)
        self._snapshot = stored.height if stored is not None else 0
        self._adopted = stored is not None and stored.adopted
        self._blocks = BlockLog(folder, segment_bytes, self._snapshot, self._adopted)
        try:
            self._kept = KeptLog(folder)
        except BaseException:
            self._blocks.close()
            raise
        self.recovered = tuple(filter(None, (self._blocks.recovered, self._kept.recovered)))

    @property
    def first(self) -> int:
        """The height of the first block that is here, or will be."""
        return self._blocks.first

    @property
    def height(self) -> int:
        """The height of the last block; that of the adopted snapshot, or 0, before the first."""
        return self._blocks.height

    @property
    def size_bytes(self) -> int:
        """How much the blocks take, in bytes."""
        return self._blocks.size_bytes

    def read(self, height: int) -> bytes | None:
        """Return the encoded block at `height`, or None if it is not here (yet, or any more)."""
        return self._blocks.read(height)

    def append(self, certified: CertifiedBlock) -> int:
        """Write a block behind the last one and return its size; 0 if it is here, or pruned, already."""
        height = certified.block.header.height
        if height < self.first:
            return 0
        payload = encode(certified)
        if height <= self.height and self.read(height) == payload:
            return 0
        self._blocks.append(height, payload)
        return len(payload)

    def sync(self) -> None:
        """Make the appended blocks durable; if that fails they are not here any more."""
        self._blocks.sync()

    def save(self, item: SaveSnapshot) -> None:
        """Store a snapshot durably, and what was appended before it."""
        adopted = item.adopted and item.height > self.height
        if not adopted and item.height > self.height:
            raise StorageError(
                f"{self._folder}: a snapshot of height {item.height} cannot be stored, "
                f"the last block is {self.height}"
            )
        adopted = adopted or (item.adopted and self._adopted and item.height == self._snapshot)  # once more
        self._blocks.sync()
        save_snapshot(self._folder, item, adopted)
        self._snapshot, self._adopted = item.height, adopted
        if adopted:
            self._blocks.restart(item.height + 1)

    def prune(self, item: Prune) -> None:
        """Keep what must stay provable, then drop the segments that end at or below the height."""
        if item.height > self._snapshot:
            raise StorageError(
                f"{self._folder}: blocks up to {item.height} cannot be pruned, "
                f"the snapshot is of height {self._snapshot}"
            )
        wanted = frozenset(item.keep)
        last = self._blocks.droppable(item.height)
        self._kept.keep(self._extract(item.keep, last), wanted.__contains__)
        self._blocks.drop(last)

    def snapshot(self) -> SavedSnapshot | None:
        """Return the stored snapshot, or None."""
        stored = read_snapshot(self._folder)
        return stored.saved() if stored is not None else None

    def kept(self, height: int, index: int) -> KeptRecord | None:
        """Return the record that stood at this place if it was kept when its block was dropped."""
        return self._kept.get((height, index))

    def close(self) -> None:
        """Release the files; no data depends on it."""
        self._blocks.close()
        self._kept.close()

    def _extract(self, keep: tuple[Place, ...], last: int) -> Iterator[tuple[Place, KeptRecord]]:
        """Yield the records to keep of the blocks up to `last` that are here, one block after the other."""
        by_height: dict[int, list[int]] = {}
        for height, index in sorted(set(keep)):
            if self.first <= height <= last and (height, index) not in self._kept:
                by_height.setdefault(height, []).append(index)
        for height, indexes in by_height.items():
            payload = self.read(height)
            assert payload is not None, "it is between the first and the last"
            certified = decode_block(self._folder, self.chain, height, payload)
            for record in kept_records(certified, indexes):
                yield (height, record.index), record
