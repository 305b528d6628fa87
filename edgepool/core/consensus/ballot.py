"""What a member knows of one height: blocks, proposals, votes, and what it is bound to.

Whatever arrives is admitted here or not at all: each distinct signature is verified once, each
block is checked once, and everything that is kept is bounded. A fault is reported only of somebody
whose fault it provably is: the sender of a forgery (an honest peer passes on only what it has
verified), or the signer of two values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from msgspec import Meta

from edgepool.core.consensus.application import Application
from edgepool.core.consensus.votes import ROUNDS_KEPT, VoteBook
from edgepool.core.machine import Misbehaved
from edgepool.model.block import Block, CertifiedBlock
from edgepool.model.codec import Wire
from edgepool.model.fields import MaybeHash
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Polka, Proposal, Votes
from edgepool.model.pool import MAX_MEMBERS
from edgepool.model.vote import (
    NIL,
    PRECOMMIT,
    PREVOTE,
    PROPOSAL,
    Certificate,
    Equivocation,
    Said,
    Vote,
    equivocation,
)

PROPOSALS_KEPT = 3
"""Different proposals of one round that are kept; a second one already convicts the leader."""
REFUSALS_KEPT = 64
VOTES_A_MESSAGE = 128
ROUNDS_AHEAD = 4
"""Proposals this many rounds ahead are kept until their round comes."""


class SavedBallot(Wire, frozen=True):
    """What a member must not forget: where it stood, what it is locked on, what it has said.

    `valid_block` with `polka` is the newest block known to have a quorum of prevotes. `proposal`
    is this member's own of `round`, left out when its block is the valid one.
    """

    height: int
    round: int
    step: Annotated[int, Meta(ge=0, le=3)]
    locked_round: int
    locked_id: MaybeHash
    valid_round: int
    valid_block: Block | None
    polka: Annotated[tuple[Vote, ...], Meta(max_length=MAX_MEMBERS)]
    votes: tuple[Vote, ...]
    proposal: Proposal | None


class Ballot:
    """Proposals, votes, lock and valid block of one member at one height."""

    def __init__(
        self,
        network: str,
        chain: ChainId,
        members: Sequence[PeerId],
        me: PeerId,
        app: Application,
        height: int,
    ) -> None:
        self.height = height
        self.round = 0
        self.book = VoteBook(members, me)
        self.blocks: dict[bytes, Block] = {}
        """Blocks that may stand at this height, by id."""
        self.locked_round = -1
        self.locked_id = NIL
        self.valid_round = -1
        self.valid_block: Block | None = None
        self.polka: tuple[Vote, ...] = ()
        self.faults: list[Misbehaved] = []
        """Faults found since somebody last took them."""
        self.caught: list[Equivocation] = []
        """What convicts members, found since somebody last took it; one for each member."""
        self._network = network
        self._chain = chain
        self._app = app
        self._refused: dict[bytes, str] = {}
        self._proposals: dict[int, dict[_Terms, Proposal | None]] = {}  # None: a bad block
        self._first_said: dict[int, Said] = {}  # round -> what its leader has signed first
        self._proven: dict[int, bytes] = {}  # round -> block id of polkas that came as a whole
        self._equivocators: dict[PeerId, None] = {}

    # --- what arrives ---------------------------------------------------------------------------

    def admit_vote(self, sender: PeerId, vote: Vote) -> bool:
        """Count `vote` if it is new and genuine; False if the sender is at fault."""
        if vote.voter not in self.book.index:
            return self._blame(sender, f"a vote of {vote.voter}, who is no member")
        if not self.book.wants(vote, self.blocks):
            return True
        if not vote.authentic(self._network, self._chain):
            return self._blame(sender, f"a forged vote of {vote.voter}")
        self._count(vote)
        return True

    def admit_proposal(self, sender: PeerId, proposal: Proposal) -> bool:
        """Keep `proposal` if it is the round's leader's; False if the sender is at fault.

        The leader's signature covers the header. Polka and records are the sender's word, so they
        are judged first, and a leader is not blamed for what somebody has hung on its proposal.
        """
        if not self.round - ROUNDS_KEPT <= proposal.round <= self.round + ROUNDS_AHEAD:
            return True
        kept = self._proposals.setdefault(proposal.round, {})
        terms = _terms(proposal)
        if terms in kept or len(kept) >= PROPOSALS_KEPT:
            return True
        leader = self._app.leader(proposal.round)
        if not proposal.authentic(self._network, leader):
            return self._blame(sender, f"a forged proposal for round {proposal.round}")
        self._note_said(leader, proposal)
        if proposal.valid_round == -1 and proposal.polka:
            return self._blame(sender, "a proposal with a polka of no round")
        if not self._whole(sender, proposal.block):
            return False
        reason = _terms_problem(proposal, leader) or self._block_problem(proposal.block)
        if reason:
            kept[terms] = None
            return sender != leader or self._blame(leader, f"proposed a bad block: {reason}")
        if proposal.valid_round >= 0:
            if not self._prove(sender, proposal.block.header.id, proposal.valid_round, proposal.polka):
                return False
            self._adopt(proposal.block, proposal.valid_round, proposal.polka)
        kept[terms] = proposal
        return True

    def admit_polka(self, sender: PeerId, block: Block, votes: tuple[Vote, ...]) -> bool:
        """Take a block with a quorum of prevotes, checked by itself, whatever slots are full.

        False if the sender is at fault.
        """
        block_id, round = block.header.id, votes[0].round
        if round <= self.valid_round and block_id in self.blocks and self.has_polka(round, block_id):
            return True
        if not self._whole(sender, block) or not self._prove(sender, block_id, round, votes):
            return False
        if not self._block_problem(block):
            self._adopt(block, round, votes)
        return True

    def _prove(self, sender: PeerId, block_id: bytes, round: int, votes: tuple[Vote, ...]) -> bool:
        if len(self.book.votes_for(PREVOTE, round, block_id)) >= self.book.quorum:
            return True
        voters = {vote.voter: None for vote in votes}
        if len(voters) < max(self.book.quorum, len(votes)):
            return self._blame(sender, "a polka of too few members")
        for vote in votes:
            terms = (vote.kind, vote.height, vote.round, vote.block_id)
            if terms != (PREVOTE, self.height, round, block_id) or vote.voter not in self.book.index:
                return self._blame(sender, "a polka with a vote for something else")
            if not self.book.holds(vote) and not vote.authentic(self._network, self._chain):
                return self._blame(sender, f"a forged vote of {vote.voter} in a polka")
        self._proven[round] = block_id
        for vote in votes:
            self._count(vote)
        return True

    def _count(self, vote: Vote) -> None:
        if self.book.add(vote) and vote.voter not in self._equivocators:
            other = self.book.contradicted(vote)
            assert other is not None, "two values, of which one is not kept"
            both = (Said(vote.block_id, -1, vote.signature), Said(other.block_id, -1, other.signature))
            self._catch(vote.voter, vote.kind, vote.round, both, "votes")

    def _note_said(self, leader: PeerId, proposal: Proposal) -> None:
        """Remember what a leader has signed for a round, whatever somebody has hung on it."""
        said = Said(proposal.block.header.id, proposal.valid_round, proposal.signature)
        first = self._first_said.setdefault(proposal.round, said)
        if _same(first, said) or leader in self._equivocators:
            return
        self._catch(leader, PROPOSAL, proposal.round, (first, said), "proposals")

    def _catch(self, member: PeerId, kind: int, round: int, both: tuple[Said, Said], what: str) -> None:
        self._equivocators[member] = None
        self.caught.append(equivocation(member, kind, self.height, round, both))
        self._blame(member, f"signed two {what} at height {self.height}, round {round}")

    def _whole(self, sender: PeerId, block: Block) -> bool:
        if block.header.id in self.blocks and block == self.blocks[block.header.id]:
            return True
        problem = block.body_problem()
        return not problem or self._blame(sender, f"a block whose body was changed: {problem}")

    def _block_problem(self, block: Block) -> str:
        """Check a whole block once; its id stands for all of it."""
        header = block.header
        block_id = header.id
        if block_id in self.blocks:
            return ""
        if block_id in self._refused:
            return self._refused[block_id]
        if (header.network, header.chain, header.height) != (self._network, self._chain, self.height):
            reason = "it belongs to another network, chain or height"
        else:
            reason = self._app.check_block(block)
        if not reason:
            self.blocks[block_id] = block
        elif len(self._refused) < REFUSALS_KEPT:
            self._refused[block_id] = reason
        return reason

    def _blame(self, peer: PeerId, reason: str) -> bool:
        self.faults.append(Misbehaved(peer, reason))
        return False

    # --- what follows from it -------------------------------------------------------------------

    def has_polka(self, round: int, block_id: bytes) -> bool:
        """Say whether a quorum of prevotes for the block in `round` has been seen."""
        return self._proven.get(round) == block_id or self.book.polkas.get(round) == block_id

    def polka_at(self, round: int) -> bytes | None:
        """Return the id of a block at hand that has a quorum of prevotes in `round`."""
        for block_id in (self.book.polkas.get(round), self._proven.get(round)):
            if block_id is not None and block_id in self.blocks:
                return block_id
        return None

    def refresh(self) -> None:
        """Make the block of the newest polka the valid one, whichever round it is from."""
        for round, block_id in self.book.polkas.items():
            if round > self.valid_round and block_id in self.blocks:
                self._adopt(self.blocks[block_id], round, ())

    def _adopt(self, block: Block, round: int, votes: tuple[Vote, ...]) -> None:
        """Make `block` the valid one; `votes` have been verified, or the book has a quorum itself."""
        kept = self.book.votes_for(PREVOTE, round, block.header.id)
        votes = kept if len(kept) >= self.book.quorum else votes
        if round > self.valid_round and len(votes) >= self.book.quorum:
            self.valid_block, self.valid_round, self.polka = block, round, votes

    def _valid_id(self) -> bytes:
        return self.valid_block.header.id if self.valid_block is not None else NIL

    def lock(self, block_id: bytes) -> None:
        """Be bound to the block until a newer polka frees."""
        self.locked_round, self.locked_id = self.round, block_id

    def acceptable(self, proposal: Proposal) -> bool:
        """Say whether the lock allows to prevote for `proposal` (lines 22 to 33 of Algorithm 1)."""
        if self.locked_round == -1 or self.locked_id == proposal.block.header.id:
            return True
        return proposal.valid_round >= 0 and self.locked_round <= proposal.valid_round

    def proposal(self) -> Proposal | None:
        """Return the first good proposal of the present round."""
        kept = self._proposals.get(self.round, {})
        return next((proposal for proposal in kept.values() if proposal is not None), None)

    def spoiled(self) -> bool:
        """Say whether the leader of the present round has proposed a block that may not stand."""
        kept = self._proposals.get(self.round, {})
        return bool(kept) and all(proposal is None for proposal in kept.values())

    def decision(self) -> CertifiedBlock | None:
        """Return a block at hand with a quorum of precommits of some round, and the proof."""
        for block_id, round in self.book.commits.items():
            if block_id in self.blocks:
                votes = self.book.votes_for(PRECOMMIT, round, block_id)
                signatures = tuple((self.book.index[vote.voter], vote.signature) for vote in votes)
                certificate = Certificate(self.height, round, block_id, signatures)
                return CertifiedBlock(self.blocks[block_id], certificate)
        return None

    def active(self) -> bool:
        """Say whether somebody has been heard of in the present round or a later one."""
        heard = any(kept and round >= self.round for round, kept in self._proposals.items())
        return heard or self.book.active_from(self.round)

    def enter_round(self, round: int) -> None:
        """Go to `round`; forget proposals that are too old to matter."""
        self.round = round
        self.book.enter_round(round)
        for old in [old for old in self._proposals if old < round - ROUNDS_KEPT]:
            del self._proposals[old]
            self._first_said.pop(old, None)

    def add_own_proposal(self, proposal: Proposal) -> None:
        """Keep a proposal of this member's own making."""
        self.blocks[proposal.block.header.id] = proposal.block
        self._proposals.setdefault(proposal.round, {})[_terms(proposal)] = proposal

    def all_known(self, rounds: Iterable[int]) -> list[Votes | Polka | Proposal]:
        """Return all that helps a peer at this height: votes, the valid block's polka, the proposal."""
        messages: list[Votes | Polka | Proposal] = []
        messages += self._votes_messages(self.book.votes_in(rounds))
        if self.valid_block is not None:
            messages.append(Polka(self._chain, self.valid_block, self.polka))
        proposal = self.proposal()
        return messages if proposal is None else [*messages, proposal]

    def said_by(self, me: PeerId) -> list[Votes | Polka | Proposal]:
        """Return what `me` has said at this height, to be said again."""
        proposal = self.proposal()
        own = [proposal] if proposal is not None and self._app.leader(self.round) == me else []
        return [*own, *self._votes_messages(self.book.votes_of(me))]

    def _votes_messages(self, votes: Sequence[Vote]) -> list[Votes]:
        starts = range(0, len(votes), VOTES_A_MESSAGE)
        return [Votes(self._chain, tuple(votes[i : i + VOTES_A_MESSAGE])) for i in starts]

    # --- what must survive a restart ------------------------------------------------------------

    def save(self, me: PeerId, step: int) -> SavedBallot:
        """Return what `me` must not forget."""
        own = self.proposal() if self._app.leader(self.round) == me else None
        if own is not None and own.block.header.id == self._valid_id():
            own = None
        return SavedBallot(
            height=self.height,
            round=self.round,
            step=step,
            locked_round=self.locked_round,
            locked_id=self.locked_id,
            valid_round=self.valid_round,
            valid_block=self.valid_block,
            polka=self.polka,
            votes=self.book.votes_of(me),
            proposal=own,
        )

    def restore(self, saved: SavedBallot) -> None:
        """Take back what `save` returned; blocks are checked again."""
        self.enter_round(saved.round)
        self.locked_round, self.locked_id = saved.locked_round, saved.locked_id
        for vote in saved.votes:
            self.book.add(vote)
        if saved.valid_block is not None and not self._block_problem(saved.valid_block):
            for vote in saved.polka:
                self.book.add(vote)
            self._adopt(saved.valid_block, saved.valid_round, saved.polka)
        if saved.proposal is not None and not self._block_problem(saved.proposal.block):
            self.add_own_proposal(saved.proposal)


_Terms = tuple[bytes, int]
"""What a leader has signed for its round: block id and valid round. A second signature says no more."""


def _terms(proposal: Proposal) -> _Terms:
    return (proposal.block.header.id, proposal.valid_round)


def _same(first: Said, second: Said) -> bool:
    return (first.block_id, first.valid_round) == (second.block_id, second.valid_round)


def _terms_problem(proposal: Proposal, leader: PeerId) -> str:
    header = proposal.block.header
    if proposal.valid_round == -1:
        if (header.round, header.proposer) != (proposal.round, leader):
            return "a new block must be its leader's own, of this round"
        return ""
    if not header.round <= proposal.valid_round < proposal.round:
        return "the round of its polka is not between the block's and its own"
    return ""
