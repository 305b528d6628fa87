"""A pool with snapshots: a store to read from, and a toy state that a snapshot's bytes make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from changing_pool import ChangingPool

from edgepool.core.adoption import SnapshotFetcher
from edgepool.core.machine import SavedSnapshot
from edgepool.errors import DecodeError
from edgepool.model.block import CertifiedBlock, Header
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId
from edgepool.model.message import SNAPSHOT_PAGE_BYTES, SnapshotHead
from edgepool.model.pool import Genesis, Member, members_hash

A, B, C, D, E, F = (Signer(sha256(b"server %d" % i)).peer for i in range(6))
ROOM = 2 * SNAPSHOT_PAGE_BYTES + 1000
"""The size of a toy snapshot: three pages."""


def state_bytes(height: int, size_bytes: int = ROOM) -> bytes:
    """Return what stands for the encoded state after `height`; ChangingPool's headers name its root."""
    return b"%8d" % height * (size_bytes // 8)


@dataclass
class ToyState:
    """What a snapshot's bytes make: its root is the header's only if every byte is right."""

    height: int
    root: bytes
    roster: tuple[Member, ...]
    change_number: int
    pending_change: None = None

    def header_problem(self, header: Header) -> str:
        if header.height != self.height + 1:
            return "another height"
        return "" if header.members_hash == members_hash(self.roster) else "another roster"


@dataclass
class Store:
    """A BlockSource with what a test puts in; `loads` counts how often the snapshot was read."""

    blocks: dict[int, CertifiedBlock] = field(default_factory=dict)
    saved: SavedSnapshot | None = None
    size: int = 0
    loads: int = 0

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        return self.blocks.get(height)

    def snapshot(self, chain: ChainId) -> SavedSnapshot | None:
        self.loads += 1
        return self.saved

    def kept(self, chain: ChainId, height: int, index: int) -> None:
        return None

    def size_bytes(self, chain: ChainId) -> int:
        return self.size


class SnapshotPool(ChangingPool):
    """A pool with blocks: 'n4' comes in block 2, 'm0' goes in block 4; there are snapshots of all heights.

    With `leaves` it is 'n4' that goes again.
    """

    def __init__(self, blocks: int = 12, leaves: int = 0) -> None:
        super().__init__()
        self.rosters = [self.roster]
        for height in range(1, blocks + 1):
            if height == 2:
                self.change(incoming=self.person("n4"))
            elif height == 4:
                self.change(outgoing=self.roster[leaves].peer)
            else:
                self.block()
            self.rosters.append(self.roster)

    def saved(self, height: int, size_bytes: int = ROOM) -> SavedSnapshot:
        handovers = tuple(one for one in self.handovers if one.header.height <= height)
        return SavedSnapshot(height, handovers, state_bytes(height, size_bytes))

    def store(self, height: int, size_bytes: int = ROOM) -> Store:
        """Return a store that is pruned up to a snapshot at `height`."""
        after = {one.block.header.height: one for one in self.blocks[height:]}
        return Store(after, self.saved(height, size_bytes))

    def head(self, at: int, /, **changes: Any) -> SnapshotHead:
        """Return the head of the snapshot at height `at`, with some of its fields changed."""
        after, saved = self.blocks[at], self.saved(at)
        fields: dict[str, Any] = {
            "chain": self.chain,
            "height": at,
            "size_bytes": len(saved.state),
            "header": after.block.header,
            "certificate": after.certificate,
            "handovers": saved.handovers,
        }
        return SnapshotHead(**{**fields, **changes})

    def restore(self, genesis: Genesis, data: bytes) -> ToyState:
        """Do what ChainState.restore does."""
        try:
            height = int(data[:8])
        except ValueError:
            raise DecodeError("not a state") from None
        right = data == state_bytes(height, len(data))
        root = sha256(b"state %d" % height) if right else sha256(data)
        number = 1 + sum(one.header.height <= height for one in self.handovers)
        return ToyState(height, root, self.rosters[height] if height < len(self.rosters) else (), number)

    def fetcher(self) -> SnapshotFetcher:
        return SnapshotFetcher(self.genesis, self.restore)  # type: ignore[arg-type]
