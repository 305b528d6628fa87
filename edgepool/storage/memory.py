"""A store in memory for the simulator and for tests, which knows what a power cut would take.

What was synced and what was written are kept apart, as two sets of chains that the same items change;
`crash` goes back to the first, so that a core that speaks before it has stored is found out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from edgepool.core.machine import (
    CommitBlock,
    Item,
    KeptRecord,
    NewChain,
    Prune,
    SavedSnapshot,
    SaveSnapshot,
    VoteState,
)
from edgepool.errors import StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis
from edgepool.runtime.ports import SavedChain
from edgepool.storage.kept import Place, kept_records


@dataclass(slots=True)
class _Chain:
    """A chain with its blocks from height `first` on."""

    genesis: Genesis
    first: int = 1
    blocks: list[CertifiedBlock] = field(default_factory=list)
    sizes_bytes: list[int] = field(default_factory=list)
    snapshot: SavedSnapshot | None = None
    kept: dict[Place, KeptRecord] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return self.first + len(self.blocks) - 1

    def block(self, height: int) -> CertifiedBlock | None:
        return self.blocks[height - self.first] if self.first <= height <= self.height else None

    def size_bytes(self) -> int:
        self.sizes_bytes += [len(encode(block)) for block in self.blocks[len(self.sizes_bytes) :]]
        return sum(self.sizes_bytes)

    def append(self, certified: CertifiedBlock) -> bool:
        """Append a block; False if it is here, or pruned, already."""
        height = certified.block.header.height
        if height < self.first or self.block(height) == certified:
            return False
        if height != self.height + 1:
            raise StorageError(f"block {height} cannot be appended, the next one is {self.height + 1}")
        self.blocks.append(certified)
        return True

    def save(self, item: SaveSnapshot) -> None:
        if item.height > self.height:
            if not item.adopted:
                raise StorageError(
                    f"a snapshot of height {item.height} cannot be stored, the last block is {self.height}"
                )
            self.first = item.height + 1
            self.blocks.clear()
            self.sizes_bytes.clear()
        self.snapshot = SavedSnapshot(item.height, item.handovers, item.state)

    def prune(self, item: Prune) -> None:
        known = self.snapshot.height if self.snapshot is not None else 0
        if item.height > known:
            raise StorageError(
                f"blocks up to {item.height} cannot be pruned, the snapshot is of height {known}"
            )
        wanted = dict.fromkeys(item.keep)
        kept = {place: record for place, record in self.kept.items() if place in wanted}
        for height, index in wanted:
            certified = self.block(height) if height <= item.height else None
            if certified is not None:
                kept[height, index] = kept_records(certified, [index])[0]
        self.kept = kept
        gone = max(0, min(item.height, self.height) - self.first + 1)
        self.first += gone
        del self.blocks[:gone], self.sizes_bytes[:gone]

    def copy(self) -> _Chain:
        return replace(
            self, blocks=list(self.blocks), sizes_bytes=list(self.sizes_bytes), kept=dict(self.kept)
        )


class MemoryStore:
    """Chains and votes in memory; implements Store. Opened again after `crash`, it has what was synced.

    Pruning drops single blocks, not segments of them.
    """

    def __init__(self) -> None:
        self._chains: dict[ChainId, _Chain] = {}
        self._durable: dict[ChainId, _Chain] = {}
        self._votes: dict[ChainId, bytes] = {}
        self._unsynced: list[Item] = []

    @property
    def unsynced(self) -> tuple[Item, ...]:
        """What was written since the last sync, in order."""
        return tuple(self._unsynced)

    def open(self) -> list[SavedChain]:
        """Return the chains, oldest first, with their heights and last vote states."""
        saved = [
            SavedChain(chain.genesis, chain.height, self._vote_state(name))
            for name, chain in self._chains.items()
        ]
        return sorted(saved, key=lambda one: (one.genesis.invitation.created_ms, one.genesis.chain))

    def quick(self, items: Sequence[Item]) -> bool:
        """Say False: who rehearses wants a disk that takes its time."""
        return False

    def write(self, items: Iterable[Item]) -> None:
        """Take `items` in order; a crash before `sync` loses them. StorageError as FolderStore."""
        for item in items:
            if _enter(self._chains, item):
                self._unsynced.append(item)

    def sync(self) -> None:
        """Make everything written survive a crash."""
        for item in self._unsynced:
            if isinstance(item, VoteState):
                self._votes[item.chain] = item.state
            else:
                _enter(self._durable, item)
        self._unsynced.clear()

    def crash(self, kept: int = 0) -> None:
        """Cut the power: of what was not synced, only the first `kept` items have reached the disk."""
        del self._unsynced[kept:]
        self.sync()
        self._chains = {name: chain.copy() for name, chain in self._durable.items()}

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        """Return the block at `height` of `chain`, or None."""
        found = self._chains.get(chain)
        return found.block(height) if found is not None else None

    def record_ids(self, chain: ChainId, height: int) -> tuple[bytes, ...] | None:
        """Return the ids of the records of the block at `height`, or None."""
        found = self.block(chain, height)
        return tuple(signed.id for signed in found.block.records) if found is not None else None

    def snapshot(self, chain: ChainId) -> SavedSnapshot | None:
        """Return the stored snapshot of the chain, or None."""
        found = self._chains.get(chain)
        return found.snapshot if found is not None else None

    def kept(self, chain: ChainId, height: int, index: int) -> KeptRecord | None:
        """Return a record whose block is pruned, if it was to be kept."""
        found = self._chains.get(chain)
        return found.kept.get((height, index)) if found is not None else None

    def size_bytes(self, chain: ChainId) -> int:
        """Return how much the stored blocks of the chain take, in bytes; 0 for an unknown chain."""
        found = self._chains.get(chain)
        return found.size_bytes() if found is not None else 0

    def close(self) -> None:
        """Do nothing; what was written stays until `crash`."""

    def _vote_state(self, chain: ChainId) -> bytes:
        for item in reversed(self._unsynced):
            if isinstance(item, VoteState) and item.chain == chain:
                return item.state
        return self._votes.get(chain, b"")


def _enter(chains: dict[ChainId, _Chain], item: Item) -> bool:
    """Enter an item into `chains`; False if it is there already."""
    match item:
        case VoteState():
            return True
        case NewChain(genesis):
            return chains.setdefault(genesis.chain, fresh := _Chain(genesis)) is fresh
        case CommitBlock(certified):
            header = certified.block.header
            return _chain(chains, header.chain, f"block {header.height}").append(certified)
        case SaveSnapshot():
            _chain(chains, item.chain, f"snapshot {item.height}").save(item)
            return True
        case Prune():
            _chain(chains, item.chain, f"pruning up to {item.height}").prune(item)
            return True
        case _:
            assert_never(item)


def _chain(chains: dict[ChainId, _Chain], name: ChainId, what: str) -> _Chain:
    chain = chains.get(name)
    if chain is None:
        raise StorageError(f"there is no chain {name}: {what} is not stored")
    return chain
