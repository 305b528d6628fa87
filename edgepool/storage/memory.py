"""A store in memory for the simulator and for tests, which knows what a power cut would take.

It keeps apart what was synced and what was only written; `crash` forgets the second, so that a core
that speaks before it has stored is found out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgepool.core.machine import CommitBlock, NewChain, VoteState
from edgepool.errors import StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis
from edgepool.runtime.ports import SavedChain


@dataclass(slots=True)
class _Chain:
    genesis: Genesis
    blocks: list[CertifiedBlock] = field(default_factory=list)
    durable_height: int = 0


class MemoryStore:
    """Chains and votes in memory; implements Store. Opened again after `crash`, it has what was synced."""

    def __init__(self) -> None:
        self._chains: dict[ChainId, _Chain] = {}
        self._votes: dict[ChainId, bytes] = {}
        self._unsynced: list[VoteState | NewChain | CommitBlock] = []

    @property
    def unsynced(self) -> tuple[VoteState | NewChain | CommitBlock, ...]:
        """What was written since the last sync, in order."""
        return tuple(self._unsynced)

    def open(self) -> list[SavedChain]:
        """Return the chains, oldest first, with their heights and last vote states."""
        saved = [
            SavedChain(chain.genesis, len(chain.blocks), self._vote_state(name))
            for name, chain in self._chains.items()
        ]
        return sorted(saved, key=lambda one: (one.genesis.invitation.created_ms, one.genesis.chain))

    def write(self, items: Iterable[VoteState | NewChain | CommitBlock]) -> None:
        """Take `items` in order; a crash before `sync` loses them. StorageError as FolderStore."""
        for item in items:
            if isinstance(item, NewChain):
                if item.genesis.chain in self._chains:
                    continue
                self._chains[item.genesis.chain] = _Chain(item.genesis)
            elif isinstance(item, CommitBlock) and not self._append(item.certified):
                continue
            self._unsynced.append(item)

    def sync(self) -> None:
        """Make everything written survive a crash."""
        for item in self._unsynced:
            if isinstance(item, VoteState):
                self._votes[item.chain] = item.state
            elif isinstance(item, CommitBlock):
                header = item.certified.block.header
                self._chains[header.chain].durable_height = header.height
        self._unsynced.clear()

    def crash(self, kept: int = 0) -> None:
        """Cut the power: of what was not synced, only the first `kept` items have reached the disk."""
        reached, lost = self._unsynced[:kept], self._unsynced[kept:]
        self._unsynced = reached
        self.sync()
        for item in lost:
            if isinstance(item, CommitBlock):
                chain = self._chains[item.certified.block.header.chain]
                del chain.blocks[chain.durable_height :]
        for item in lost:
            if isinstance(item, NewChain):
                self._chains.pop(item.genesis.chain, None)

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        """Return the block at `height` of `chain`, or None."""
        found = self._chains.get(chain)
        if found is None or not 1 <= height <= len(found.blocks):
            return None
        return found.blocks[height - 1]

    def close(self) -> None:
        """Do nothing; what was written stays until `crash`."""

    def _append(self, certified: CertifiedBlock) -> bool:
        """Append a block; False if it is there already."""
        header = certified.block.header
        chain = self._chains.get(header.chain)
        if chain is None:
            raise StorageError(f"there is no chain {header.chain}: block {header.height} is not stored")
        if header.height <= len(chain.blocks) and chain.blocks[header.height - 1] == certified:
            return False
        if header.height != len(chain.blocks) + 1:
            raise StorageError(
                f"block {header.height} cannot be appended, the next one is {len(chain.blocks) + 1}"
            )
        chain.blocks.append(certified)
        return True

    def _vote_state(self, chain: ChainId) -> bytes:
        for item in reversed(self._unsynced):
            if isinstance(item, VoteState) and item.chain == chain:
                return item.state
        return self._votes.get(chain, b"")
