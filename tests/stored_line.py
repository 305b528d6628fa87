"""A chain that stands every check, and its folder: for the tests of what is read from stored chains."""

from __future__ import annotations

from pathlib import Path

from ledger_world import World

from edgepool.core.machine import CommitBlock, NewChain, Prune, SavedSnapshot, SaveSnapshot
from edgepool.core.replay import next_leaders
from edgepool.model.block import CertifiedBlock
from edgepool.model.record import ChainAnchor, SignedRecord
from edgepool.storage.store import FolderStore


class Line:
    """A chain whose blocks the lottery's leaders pack, so that it stands every check."""

    def __init__(self, members: int = 4, kind: str = "manufacturing") -> None:
        self.world = World(members, kind=kind)  # type: ignore[arg-type]
        self.blocks: list[CertifiedBlock] = []
        self.snapshot: SavedSnapshot | None = None

    def stand(self, *records: SignedRecord) -> CertifiedBlock:
        world = self.world
        packer = world.state.members.index(next_leaders(world.state)[0])
        author = world._signer_of[world.state.members[0]]
        records = records or (world.record(author, world.demand(0).record.body),)
        self.blocks.append(world.certify(world.pack(*records, packer=packer)))
        return self.blocks[-1]

    def change(self, **who: object) -> None:
        """Stand a block in which a quorum says the same, and the two until it is in force."""
        change = self.world.change(**who)  # type: ignore[arg-type]
        voters = self.world.state.members[: len(self.world.state.members) * 2 // 3 + 1]
        self.stand(*(self.world.record(self.world._signer_of[peer], change) for peer in voters))
        self.stand()

    def take_snapshot(self) -> None:
        state = self.world.state
        self.snapshot = SavedSnapshot(state.height, tuple(self.world.handovers), state.snapshot())

    def store(self, folder: Path, *, pruned: bool = False, first: int = 0) -> Path:
        """Write the chain into a peer's folder; pruned up to the snapshot, in segments of one block each."""
        folder.mkdir(parents=True, exist_ok=True)
        store = FolderStore(folder, segment_bytes=1)
        store.open()
        store.write([NewChain(self.world.genesis), *map(CommitBlock, self.blocks)])
        if self.snapshot is not None:
            saved, chain = self.snapshot, self.world.genesis.chain
            store.write([SaveSnapshot(chain, saved.height, saved.handovers, saved.state, False)])
            if pruned:
                store.write([Prune(chain, first - 1 if first else saved.height, ())])
        store.sync()
        store.close()
        return folder

    def anchor(self, height: int, certified: CertifiedBlock | None = None) -> ChainAnchor:
        block = certified or self.blocks[height - 1]
        return ChainAnchor(self.world.genesis.chain, block.certificate)
