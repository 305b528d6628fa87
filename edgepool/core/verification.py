"""A full check of one chain by somebody who has nothing but its genesis and its blocks.

Every hash, Merkle root, record signature, lottery right, reveal, contract, state root and certificate is
checked again, as the members did; the first block that fails is named. Where the first blocks are pruned
the check begins with the snapshot: the handovers from the genesis say who voted on the block behind it,
and that block's header says which state it stands on.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.config import ConsensusSettings, Limits
from edgepool.core.chain import Chain
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import SavedSnapshot
from edgepool.core.replay import handover_of, missed_turns
from edgepool.core.rosters import RosterHistory
from edgepool.errors import DecodeError
from edgepool.model.block import Block, CertifiedBlock, Handover, certified_by, roster_after
from edgepool.model.codec import decode
from edgepool.model.crypto import Signer
from edgepool.model.pool import Genesis, Member


class _NoBlocks:
    def block(self, chain: object, height: int) -> CertifiedBlock | None:
        return None

    def record_ids(self, chain: object, height: int) -> None:
        return None

    def snapshot(self, chain: object) -> None:
        return None

    def kept(self, chain: object, height: int, index: int) -> None:
        return None

    def size_bytes(self, chain: object) -> int:
        return 0


class ChainChecker:
    """Takes a chain's blocks in order from the height `first`; `check` says what is wrong with the next one.

    With `first` 1 every block is checked in full, and a snapshot against the state that they make. Later
    ones need the snapshot: blocks up to it are checked for hashes, signatures and votes, those behind it
    in full. `problem` says why the check cannot even begin, or is ''.
    """

    def __init__(self, genesis: Genesis, snapshot: SavedSnapshot | None = None, first: int = 1) -> None:
        # An outsider's key: it is no member, so the chain only ever follows.
        outsider = Signer(bytes(32))
        self._chain = Chain(
            genesis,
            signer=outsider,
            settings=ConsensusSettings(),
            limits=Limits(),
            source=_NoBlocks(),
            height=0,
            vote_state=b"",
        )
        self._genesis = genesis
        self._snapshot = snapshot
        self._restored: ChainState | None = None
        self._handovers: list[Handover] = []
        self._recent: list[Block] = []
        self._last_id = b""
        self.first = first
        self.height = first - 1
        """The height of the last block that passed."""
        self.snapshot_certified = False
        """Whether the state in the snapshot is the one that a certified block stands on."""
        self.problem = self._begin()

    @property
    def state(self) -> ChainState:
        """The chain's state: that of the last block that passed, or of the snapshot if that is later."""
        return self._chain.state

    @property
    def rosters(self) -> RosterHistory:
        """Who votes at which height, up to the one after the next."""
        return RosterHistory(self._genesis, tuple(self._handovers))

    def check(self, payload: bytes) -> str:
        """Say what is wrong with the encoded certified block that should be next, or return ''."""
        try:
            certified = decode(CertifiedBlock, payload)
        except DecodeError as error:
            return str(error)
        header = certified.block.header
        whole = self.height >= self.state.height
        reason = self._check_next(certified) if whole else self._check_early(certified)
        if reason:
            return reason
        self.height = header.height
        self._last_id = header.id
        return self._check_snapshot()

    def _begin(self) -> str:
        """Take up the snapshot, if there is one."""
        saved = self._snapshot
        if saved is None:
            return "" if self.first == 1 else f"blocks 1 to {self.first - 1} are missing, without a snapshot"
        try:
            self._restored = ChainState.restore(self._genesis, saved.state)
        except DecodeError as error:
            return f"the snapshot at {saved.height} is damaged ({error})"
        if self._restored.height != saved.height:
            return f"the snapshot at {saved.height} is that of height {self._restored.height}"
        if self.first == 1:
            return ""
        if self.first > saved.height + 1:
            return f"blocks {saved.height + 1} to {self.first - 1} are missing"
        reason = self._check_handovers(saved)
        if not reason:
            self._chain.state = self._restored
            self._handovers = list(saved.handovers)
        return reason

    def _check_handovers(self, saved: SavedSnapshot) -> str:
        """Say why the handovers of a snapshot do not lead from the genesis to its roster, or return ''."""
        assert self._restored is not None
        network, chain = self._genesis.invitation.network, self._genesis.chain
        led_to = roster_after(network, chain, self._genesis.invitation.members, saved.handovers)
        if isinstance(led_to, str):
            return f"the snapshot at {saved.height}: {led_to}"
        if any(handover.header.height > saved.height for handover in saved.handovers):
            return f"the snapshot at {saved.height} has handovers of later heights"
        if led_to != self._restored.roster:
            return f"the snapshot at {saved.height} is of another roster than its handovers lead to"
        return ""

    def _check_next(self, certified: CertifiedBlock) -> str:
        """Check the block behind the state in full, and enter it."""
        block, state = certified.block, self.state
        reason = self._chain.check_block(block) or self._check_votes(certified, state.roster)
        if not reason:
            handover = handover_of(state, certified)
            if handover is not None:
                self._handovers.append(handover)
            state.apply(block, missed_turns(state, block.header))
        return reason

    def _check_early(self, certified: CertifiedBlock) -> str:
        """Check what can be checked of a block without the state that it stood on."""
        block = certified.block
        if block.header.height != self.height + 1:
            return f"the block has height {block.header.height}, the next one is {self.height + 1}"
        if self._last_id and block.header.previous != self._last_id:
            return "the block does not stand on the last one"
        reason = block.body_problem()
        for index, signed in enumerate(block.records):
            if not reason and not signed.authentic():
                reason = f"the signature of record {index} does not hold"
        reason = reason or self._check_votes(certified, self.rosters.at(block.header.height))
        if not reason and block.header.height > self.state.horizon:
            self._recent.append(block)
        return reason

    def _check_votes(self, certified: CertifiedBlock, roster: Sequence[Member]) -> str:
        network, chain = self._genesis.invitation.network, self._genesis.chain
        return certified_by(certified.block.header, certified.certificate, network, chain, roster)

    def _check_snapshot(self) -> str:
        """Compare the snapshot with the block that has just passed."""
        saved, restored = self._snapshot, self._restored
        if saved is None or restored is None:
            return ""
        if self.height == saved.height:
            if restored.last_block_id != self._last_id:
                return f"the snapshot at {saved.height} stands on another block"
            if self.first == 1 and restored.root != self.state.root:
                return f"the snapshot at {saved.height} is another state than the blocks make"
            while self._recent:  # the state knows their records again, so that none can come twice
                self.state.recall(self._recent.pop())
        # The first block behind it was checked to stand on the state, by its header's state root.
        self.snapshot_certified = self.snapshot_certified or self.height == saved.height + 1
        return ""
