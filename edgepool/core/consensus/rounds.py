"""One height of one chain: the rules of Tendermint's Algorithm 1, round by round, up to a decision.

Admitted messages (ballot.py) and deadlines only change what is known; then `settle` applies the rules
until none fires. Rounds never go back and a vote that was cast is never cast again, so no two values are
ever signed for one (kind, height, round). What is signed is left in `said`: it may only leave once it is
durable, which is for the engine to see to.
"""

from __future__ import annotations

from edgepool.config import ConsensusSettings
from edgepool.core.consensus.application import Application
from edgepool.core.consensus.ballot import Ballot, SavedBallot
from edgepool.core.deadlines import earliest
from edgepool.core.machine import Instant
from edgepool.model.block import CertifiedBlock
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Proposal, Votes, sign_proposal
from edgepool.model.vote import NIL, PRECOMMIT, PREVOTE, sign_vote

NEW, PROPOSE, PREVOTED, PRECOMMITTED = range(4)
"""Steps of a round: idle, waiting for the proposal, for prevotes, for precommits."""

GATHER_QUIET_MS = 2
"""A leader has gathered enough when no record has come for so long; `gather_ms` is the most it waits."""


class Rounds:
    """The rounds of one height. `votes_here` says whether this member takes part or only listens.

    `decided` is the block that stands, once one does; `said` what was signed and not yet taken.
    """

    def __init__(
        self,
        network: str,
        chain: ChainId,
        members: tuple[PeerId, ...],
        signer: Signer,
        settings: ConsensusSettings,
        app: Application,
        height: int,
    ) -> None:
        self.height = height
        self.round = 0
        self.step = NEW
        self.votes_here = signer.peer in members
        self.decided: CertifiedBlock | None = None
        self.said: list[Proposal | Votes] = []
        self.ballot = Ballot(network, chain, members, signer.peer, app, height)
        self._network = network
        self._chain = chain
        self._signer = signer
        self._me = signer.peer
        self._settings = settings
        self._app = app
        self._timers: dict[str, int | None] = {}
        """Deadlines of the present round; None once passed: each is armed only once a round."""
        self._gather_until_ms = 0

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which `wake` is wanted, if any."""
        return earliest(*self._timers.values())

    def settle(self, now: Instant) -> None:
        """Apply the rules until none is enabled, or the height is decided."""
        while self.votes_here and self.decided is None and self._one_rule(now):
            pass

    def arrived(self, now: Instant) -> None:
        """Records have come: begin, or go on gathering."""
        if self._timers.get("gather") is not None:
            self._gather(now)
        if self.step == NEW or (self.step == PROPOSE and self._leads()):
            self.settle(now)

    def wake(self, now: Instant) -> None:
        """Do what is due at `now`."""
        for name in ("gather", "propose", "prevote", "precommit"):
            at = self._timers.get(name)
            if at is not None and at <= now.monotonic_ms and self.decided is None:
                self._timers[name] = None
                self._time_out(name)
                self.settle(now)

    def save(self) -> SavedBallot:
        """Return what this member must not forget."""
        return self.ballot.save(self._me, self.step)

    def restore(self, saved: SavedBallot) -> None:
        """Take back what `save` returned in an earlier life."""
        self.round, self.step = saved.round, saved.step
        self.ballot.restore(saved)

    # --- the rules of Algorithm 1 ---------------------------------------------------------------

    def _one_rule(self, now: Instant) -> bool:
        """Apply the first rule that is enabled; say whether others may be by now."""
        ballot = self.ballot
        ballot.refresh()
        self.decided = ballot.decision()
        if self.decided is not None:
            return False
        if ballot.book.round_to_join() > self.round:
            self._enter_round(ballot.book.round_to_join())
            return True
        if self.step == NEW and self._begin(now):
            return True
        if self.step == PROPOSE and (self._propose(now) or self._prevote()):
            return True
        if self.step == PREVOTED and self._precommit():
            return True
        self._arm(now)
        return False

    def _enter_round(self, round: int) -> None:
        self.round, self.step, self._timers = round, NEW, {}
        self.ballot.enter_round(round)

    def _begin(self, now: Instant) -> bool:
        ballot = self.ballot
        if not (ballot.active() or ballot.valid_block is not None or self._app.has_waiting()):
            return False
        settings = self._settings
        self.step = PROPOSE
        wait_ms = settings.propose_timeout_ms + settings.gather_ms + self.round * settings.growth_ms
        self._timers["propose"] = now.monotonic_ms + wait_ms
        if self._leads() and self.round == 0 and settings.gather_ms:
            self._gather_until_ms = now.monotonic_ms + settings.gather_ms
            self._gather(now)
        return True

    def _gather(self, now: Instant) -> None:
        """Wait a little longer for records, unless a block can be filled."""
        quiet_ms = 0 if self._app.has_enough() else GATHER_QUIET_MS
        self._timers["gather"] = min(self._gather_until_ms, now.monotonic_ms + quiet_ms)

    def _leads(self) -> bool:
        return self._app.leader(self.round) == self._me

    def _propose(self, now: Instant) -> bool:
        """Lines 14 to 19: the valid block if there is one, else a new one once records gathered."""
        ballot = self.ballot
        if not self._leads() or ballot.proposal() is not None:
            return False
        block, valid_round, polka = ballot.valid_block, ballot.valid_round, ballot.polka
        if block is None:
            gathering_until = self._timers.get("gather")
            if gathering_until is not None and gathering_until > now.monotonic_ms:
                return False
            if not self._app.has_waiting():
                return False
            block = self._app.make_block(self.round, now)
        if block is None or valid_round >= self.round:
            return False
        proposal = sign_proposal(
            self._signer, self._network, self._chain, self.round, block, valid_round, polka
        )
        ballot.add_own_proposal(proposal)
        self.said.append(proposal)
        return True

    def _prevote(self) -> bool:
        """Lines 22 to 33: for the proposal if it may stand and the lock allows it, else nil.

        What has a polka was judged by more members than may lie, so who may not judge it follows them: a pool
        whose members are locked on it could never go on else.
        """
        proposal = self.ballot.proposal()
        if proposal is None:
            if self.ballot.spoiled():
                self._cast(PREVOTE, NIL)
            return self.step != PROPOSE
        judged = proposal.valid_round >= 0 or self._app.may_prevote(proposal.block)
        acceptable = judged and self.ballot.acceptable(proposal)
        self._cast(PREVOTE, proposal.block.header.id if acceptable else NIL)
        return True

    def _precommit(self) -> bool:
        """Lines 36 to 46: lock on what a quorum has prevoted, or say nil with it."""
        block_id = self.ballot.polka_at(self.round)
        if block_id is not None:
            self.ballot.lock(block_id)
            self._cast(PRECOMMIT, block_id)
        elif self.ballot.book.nil_quorum(self.round):
            self._cast(PRECOMMIT, NIL)
        return self.step != PREVOTED

    def _arm(self, now: Instant) -> None:
        """Lines 34 and 47: a quorum has voted, for whatever; wait a little for the others."""
        book = self.ballot.book
        at = now.monotonic_ms + self._settings.vote_timeout_ms + self.round * self._settings.growth_ms
        if self.step == PREVOTED and book.voters(PREVOTE, self.round) >= book.quorum:
            self._timers.setdefault("prevote", at)
        if self.step > NEW and book.voters(PRECOMMIT, self.round) >= book.quorum:
            self._timers.setdefault("precommit", at)

    def _time_out(self, name: str) -> None:
        """Lines 57 to 67."""
        if name == "propose" and self.step == PROPOSE:
            self._cast(PREVOTE, NIL)
        elif name == "prevote" and self.step == PREVOTED:
            self._cast(PRECOMMIT, NIL)
        elif name == "precommit":
            self._enter_round(self.round + 1)

    def _cast(self, kind: int, block_id: bytes) -> None:
        """Vote in the present round, unless that was done before, in whichever life."""
        self.step = PREVOTED if kind == PREVOTE else PRECOMMITTED
        done = ("gather", "propose") if kind == PREVOTE else ("gather", "propose", "prevote")
        self._timers.update(dict.fromkeys(done))
        if self.ballot.book.said(kind, self.round, self._me) is None:
            vote = sign_vote(
                self._signer, self._network, self._chain, kind, self.height, self.round, block_id
            )
            self.ballot.book.add(vote)
            self.said.append(Votes(self._chain, (vote,)))
