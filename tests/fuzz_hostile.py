"""What a liar with good keys says: values that decode well, are signed well, and mean harm.

The liar is a member, so its votes, proposals and records are authentic; the coordinator is trusted to
form pools, so its invitations are believed; a stranger has only a link. All of them may pass on what
honest members have signed, whole or in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz_cell import (
    EPOCH_MS,
    LIAR,
    LIARS_BEACONS,
    NETWORK,
    Cell,
)
from fuzz_liar import LAST_HEIGHT, LAST_ROUND, NUMBERS, Liar

from edgepool.core.chain import Chain
from edgepool.model.block import (
    PRECOMMIT,
    PREVOTE,
    Block,
    CertifiedBlock,
    Header,
    Vote,
    records_root,
    sign_vote,
)
from edgepool.model.ids import ChainId
from edgepool.model.message import (
    Blocks,
    Message,
    Polka,
    Proposal,
    Status,
    Votes,
    sign_proposal,
)


class Hostile(Liar):
    """Makes hostile messages of all kinds."""

    def __init__(self, rng: Random, cell: Cell, *, writes: bool) -> None:
        super().__init__(rng, cell, writes=writes)
        self._makers: tuple[Callable[[], Message], ...] = (
            *(self._votes, self._votes, self._fair_votes, self._proposal, self._proposal, self._polka),
            *(self._status, self._status, self._blocks, self._records, self._records, self._refused),
            *(self._query, self._answer, self._load_query, self._load_report, self._confirm_request),
            *(self._confirm_answer, self._invite, self._accept, self._decline, self._formed),
            *(self._hello, self._ping),
        )

    def next(self) -> Message:
        """Return the next hostile message."""
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
        """Vote as an honest member would, so that the pool goes on without one that is away."""
        block = self._proposed()
        if block is None:
            return self._votes()
        header = block.header
        votes = [
            sign_vote(LIAR, NETWORK, header.chain, kind, header.height, round, header.id)
            for round in range(header.round, header.round + 4)
            for kind in (PREVOTE, PRECOMMIT)
        ]
        return Votes(header.chain, tuple(votes))

    def _vote(self, chain: Chain) -> Vote:
        kind, height, round = self._one((PREVOTE, PRECOMMIT)), self._height(chain), self._round(chain)
        vote = sign_vote(LIAR, NETWORK, chain.id, kind, height, round, self._block_id(chain))
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
        round = self._round(chain)
        return sign_proposal(LIAR, NETWORK, chain.id, round, self._block(chain, round), valid_round, polka)

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
        reveal = LIARS_BEACONS[chain.id].reveal(state.reveals[LIAR.peer])
        header = Header(
            NETWORK,
            chain.id,
            min(LAST_HEIGHT, state.height + 1),
            self._round(chain) if round is None else round,
            state.last_block_id,
            records_root(records),
            len(records),
            LIAR.peer,
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
