"""What a liar with good keys says: values that decode well, are signed well, and mean harm.

The liar is a member, so its votes, proposals and records are authentic; the coordinator is trusted to
form pools, so its invitations are believed; a stranger has only a link. All of them may pass on what
honest members have signed, whole or in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz_cell import Cell
from fuzz_choices import LAST_HEIGHT, LAST_ROUND, NUMBERS
from fuzz_liar import Liar
from fuzz_world import EPOCH_MS, LIAR, NETWORK, PAGE_BYTES, beacon

from edgepool.core.chain import Chain
from edgepool.core.pools.lifecycle import beacon_secret
from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.ids import ChainId
from edgepool.model.message import (
    MAX_SNAPSHOT_BYTES,
    Blocks,
    Message,
    Polka,
    Proposal,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
    Status,
    Votes,
    sign_proposal,
)
from edgepool.model.vote import NIL, PRECOMMIT, PREVOTE, Vote, sign_vote


class Hostile(Liar):
    """Makes hostile messages of all kinds."""

    def __init__(self, rng: Random, cell: Cell) -> None:
        super().__init__(rng, cell)
        self._makers: tuple[Callable[[], Message], ...] = (
            *(self._votes, self._votes, self._fair_votes, self._proposal, self._proposal, self._polka),
            *(self._status, self._status, self._blocks, self._records, self._records, self._refused),
            *(self._query, self._answer, self._load_query, self._load_report, self._confirm_request),
            *(self._certify, self._confirm_answer, self._invite, self._accept, self._decline, self._formed),
            *(self._hello, self._lineage, self._reachable, self._ping, self._join, self._join_answer),
            *(self._snapshot_head, self._snapshot_head, self._snapshot_request, self._snapshot_page),
        )

    def next(self) -> Message:
        """Return the next hostile message; see `address`."""
        self.address = None
        return self._one(self._makers)()

    # --- consensus ----------------------------------------------------------------------------

    def _votes(self) -> Message:
        chain = self._chain()
        heard = self._heard(Votes)
        votes = [self._vote(chain) for _ in range(self._one((1, 1, 1, 2, 5, 128)))]
        if heard is not None and self._often():
            votes = [*votes, *heard.votes][:128]
        return Votes(chain.id if self._often() else self._chain().id, tuple(votes))

    def _fair_votes(self) -> Message:
        return self.fair_votes(self._chain())

    def fair_votes(self, chain: Chain) -> Votes:
        """Vote as an honest member would, so that the pool goes on without one that is away."""
        signer, height, round = self._voter(chain), chain.state.height + 1, chain.engine.round
        blocks = [one.header for one in self._cell.blocks.values() if one.header.chain == chain.id]
        found = [one.id for one in blocks if one.height == height and one.round == round]
        votes = [
            sign_vote(signer, NETWORK, chain.id, kind, height, round, found[-1] if found else NIL)
            for kind in (PREVOTE, PRECOMMIT)
        ]
        return Votes(chain.id, tuple(votes))

    def _vote(self, chain: Chain) -> Vote:
        kind, height, round = self._one((PREVOTE, PRECOMMIT)), self._height(chain), self._round(chain)
        vote = sign_vote(self._voter(chain), NETWORK, chain.id, kind, height, round, self._block_id(chain))
        if self._often():
            return vote
        return self._changed(vote, voter=self._peer(), signature=self._bytes(64))

    def _proposal(self) -> Message:
        chain = self._chain()
        heard = self._heard(Proposal)
        if heard is not None and self._often():
            if self._often():  # hang another polka, or another body, on an honest leader's proposal
                return self._changed(heard, polka=self._polka_votes(chain), block=self._block(chain))
            header, round = heard.block.header, self._one((0, 1, 2))
            votes = self._true_polka(heard.chain, header.height, round, header.id)
            next_round = self._round(chain)
            return sign_proposal(LIAR, NETWORK, heard.chain, next_round, heard.block, round, votes)
        valid_round = self._one((-1, -1, -1, -1, 0, 1, LAST_ROUND))
        polka = self._polka_votes(chain) if valid_round >= 0 or not self._often() else ()
        signer = self._voter(chain)
        led = [round for round in range(4) if chain.leader(round) == signer.peer]
        round = led[0] if led and self._often() else self._round(chain)
        return sign_proposal(signer, NETWORK, chain.id, round, self._block(chain, round), valid_round, polka)

    def _polka(self) -> Message:
        chain = self._chain()
        block = self._proposed() if self._often() else None
        if block is None:
            return Polka(chain.id, self._block(chain), self._polka_votes(chain) or (self._vote(chain),))
        header = block.header
        votes = self._true_polka(
            header.chain, header.height, self._one((0, 1, 2, chain.engine.round)), header.id
        )
        return Polka(header.chain, block, votes)

    def _proposed(self) -> Block | None:
        blocks = tuple(self._cell.blocks.values())
        return blocks[-1 - int(self._rng.random() ** 2 * len(blocks))] if blocks else None

    def _true_polka(self, chain: ChainId, height: int, round: int, block_id: bytes) -> tuple[Vote, ...]:
        """Return the prevotes that honest members have cast, with the liar's own."""
        mine = sign_vote(LIAR, NETWORK, chain, PREVOTE, height, round, block_id)
        return (*self._cell.prevotes.get((chain, height, round, block_id), {}).values(), mine)[:30]

    def _polka_votes(self, chain: Chain) -> tuple[Vote, ...]:
        heard = self._heard(Votes)
        votes = [self._vote(chain) for _ in range(self._one((0, 1, 3, 30)))]
        return tuple([*votes, *(heard.votes if heard is not None else ())][:30])

    def _block(self, chain: Chain, round: int | None = None) -> Block:
        """Return a block of the liar's, good in most ways, at the height that comes next."""
        state = chain.state
        records = tuple(self._record(chain) for _ in range(self._one((1, 1, 2, 3, 20))))
        signer = self._voter(chain)
        secret = beacon_secret(signer, chain.genesis.invitation)
        reveal = beacon(secret).reveal(state.reveals.get(signer.peer, 0))
        header = Header(
            NETWORK,
            chain.id,
            min(LAST_HEIGHT, state.height + 1),
            self._round(chain) if round is None else round,
            state.last_block_id,
            state.members_hash,
            state.next_members_hash,
            state.root,
            records_root(records),
            len(records),
            signer.peer,
            reveal,
            self._one((0, EPOCH_MS, 2**53)),
        )
        if self._often():
            return Block(header, records)
        header = self._changed(
            header,
            height=self._height(chain),
            round=self._round(chain),
            previous=self._one((bytes(20), self._bytes(32))),
            records_root=self._bytes(32),
            records_count=self._one((1, 2, 500)),
            proposer=self._peer(),
            reveal=self._one((b"", b"x", self._bytes(32))),
            chain=self._one((self._chain().id, "0" * 40)),
            network="elsewhere",
        )
        return Block(header, records)

    def _status(self) -> Message:
        chain = self._chain()
        waiting = self._one(NUMBERS)
        return Status(chain.id, self._height(chain), self._round(chain), int(self._rng.random() * 4), waiting)

    def _blocks(self) -> Message:
        chain = self._chain()
        return Blocks(chain.id, tuple(self._certified(chain) for _ in range(self._one((1, 1, 2, 32)))))

    def _certified(self, chain: Chain) -> CertifiedBlock:
        heard = self._heard(Blocks)
        if heard is not None and self._often():
            certified = self._one(heard.blocks)
            if self._often():
                return certified
            return self._changed(certified, block=self._block(chain), certificate=self._certificate(chain))
        return CertifiedBlock(self._block(chain), self._certificate(chain))

    # --- snapshots ----------------------------------------------------------------------------

    def _snapshot_head(self) -> Message:
        """Return a made-up head; or a true one, in which something is said that nobody has signed."""
        chain = self._chain()
        height, handovers = self._height(chain), self._handovers(chain)
        sizes_bytes = (1, PAGE_BYTES, 256 * PAGE_BYTES, MAX_SNAPSHOT_BYTES)
        saved = self._cell.saved_head(chain.id)
        if saved is None or self._seldom():
            header, certificate = self._header(chain), self._certificate(chain)
            return SnapshotHead(chain.id, height, self._one(sizes_bytes), header, certificate, handovers)
        head, _ = saved
        if self._seldom():
            return head
        return self._changed(
            head,
            size_bytes=self._one((*sizes_bytes, head.size_bytes + 1, max(1, head.size_bytes - 1))),
            height=height,
            header=self._header(chain),
            certificate=self._certificate(chain),
            handovers=handovers,
        )

    def _snapshot_request(self) -> Message:
        chain = self._chain()
        saved = self._cell.saved_head(chain.id)
        height = saved[0].height if saved is not None and self._often() else self._height(chain)
        return SnapshotRequest(chain.id, height, self._one((0, 0, 1, 2, 255)))

    def _snapshot_page(self) -> Message:
        """Return a page that nobody wants; or one that was asked for: true, false, short, long, another."""
        asked = [one for one in self._cell.asked_hostile if isinstance(one[2], SnapshotRequest)]
        if not asked or self._seldom():
            chain = self._chain()
            return SnapshotPage(chain.id, self._height(chain), self._one((0, 1, 255)), self._bytes(32))
        sender, receiver, request = asked[-1]
        assert isinstance(request, SnapshotRequest)
        self.address = (receiver, sender)
        saved = self._cell.saved_head(request.chain)
        start = request.page * PAGE_BYTES
        true = saved[1][start : start + PAGE_BYTES] if saved is not None else b""
        data = self._one((true, true, self._bytes(PAGE_BYTES), self._bytes(PAGE_BYTES - 1), true + b"x"))
        page = SnapshotPage(request.chain, request.height, request.page, data or b"x")
        return (
            page
            if self._often()
            else self._changed(page, height=request.height + 1, page=(request.page + 1) % 256)
        )
