"""The engine of one chain: Tendermint (Buchman, Kwon, Milosevic, arXiv 1807.04938, Algorithm 1).

Rules of this file. The rules of a height are in rounds.py; here is what goes on between heights and
between members: messages of other heights, who is behind, memory. All that this member signs in one call
is covered by one Persist at the head of that call's output, so nothing is spoken before it is durable,
and what was said is remembered after a restart. There are no empty blocks: with nothing waiting the
engine idles in step 0, without timeouts, until a record, a proposal or a vote wakes it.

Who votes may differ from height to height: the chain is asked at the beginning of each, and a block
is only ever judged by the members of its own height. Blocks prove themselves, so they (and the word
that there are more) are taken from anybody: a member that was away may know none of its pool any more.
"""

from __future__ import annotations

from typing import assert_never

from edgepool.config import ConsensusSettings
from edgepool.core.consensus.application import Application, Caught, Decided, Output
from edgepool.core.consensus.ballot import Ballot, SavedBallot
from edgepool.core.consensus.catchup import (
    BlockQueue,
    BlockServer,
    Company,
    EarlyMessages,
    Ration,
    StatusTeller,
    certified_problem,
)
from edgepool.core.consensus.rounds import NEW, Rounds
from edgepool.core.deadlines import earliest
from edgepool.core.machine import (
    BlockSource,
    Broadcast,
    Effect,
    Instant,
    Misbehaved,
    Notify,
    Persist,
    Send,
    VoteState,
)
from edgepool.errors import DecodeError, StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Blocks, Polka, Proposal, Status, Votes

__all__ = ["Application", "Caught", "Decided", "Engine", "Output"]


class Engine:
    """Consensus on one chain, for a member, or for somebody who only follows.

    `height` is the last committed one (0 if none), `vote_state` what was last persisted for this
    chain (b"" if nothing). StorageError if that state cannot be read: to vote without memory could
    mean to sign twice.
    """

    def __init__(
        self,
        *,
        network: str,
        chain: ChainId,
        signer: Signer,
        settings: ConsensusSettings,
        app: Application,
        source: BlockSource,
        height: int,
        vote_state: bytes,
    ) -> None:
        self.height = height + 1
        self._network = network
        self._chain = chain
        self._signer = signer
        self._me = signer.peer
        self._settings = settings
        self._app = app
        self._since_ms = 0
        self._caught: dict[PeerId, None] = {}
        self._company = Company(self._me, app)
        self._rounds = self._new_rounds()
        self._early = EarlyMessages()
        self._queue = BlockQueue()
        self._helper: PeerId | None = None
        pause_ms = settings.status_ms // 2
        self._teller = StatusTeller(settings)
        self._repaired = Ration(pause_ms, settings.idle_status_ms)
        self._server = BlockServer(source, chain, Ration(pause_ms, settings.idle_status_ms))
        self._outputs: list[Effect] = []
        self._decided: CertifiedBlock | None = None
        self._memory = self._remember(vote_state) if vote_state else None
        self._restored = self._recall()

    @property
    def round(self) -> int:
        """The round of the present height."""
        return self._rounds.round

    @property
    def step(self) -> int:
        """The step of the present round: 0 idle, 1 propose, 2 prevoted, 3 precommitted."""
        return self._rounds.step

    @property
    def behind(self) -> bool:
        """Say whether more members than may lie have been heard of at a later height."""
        return self._company.gone_past(self.height)

    @property
    def _ballot(self) -> Ballot:
        return self._rounds.ballot

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which `wake` is wanted, if any."""
        return earliest(self._teller.deadline, self._rounds.deadline) if self._decided is None else None

    # --- inputs ---------------------------------------------------------------------------------

    def start(self, now: Instant) -> list[Output]:
        """Begin, or go on after a restart: own votes are spoken again, they may have been lost."""
        self._since_ms = now.monotonic_ms
        if self._company.peers:
            self._tick(now)
            if self._restored:
                self._outputs += [
                    Broadcast(self._company.peers, said) for said in self._ballot.said_by(self._me)
                ]
        self._rounds.settle(now)
        return self._finish(now)

    def receive(
        self, peer: PeerId, message: Proposal | Votes | Polka | Status | Blocks, now: Instant
    ) -> list[Output]:
        """Take a message from the link of `peer`; of strangers only what leads on to later blocks."""
        if self._decided is not None or message.chain != self._chain:
            return []
        leads_on = isinstance(message, Blocks) or (
            isinstance(message, Status) and message.height > self.height
        )
        if not leads_on and not self._company.knows(peer):
            return []
        match message:
            case Proposal() | Polka() | Votes():
                self._admit(peer, message, now)
            case Status():
                self._on_status(peer, message, now)
            case Blocks():
                self._on_blocks(peer, message, now)
            case _:
                assert_never(message)
        if self._decided is None:
            self._rounds.settle(now)
        return self._finish(now)

    def nudge(self, now: Instant) -> list[Output]:
        """Records have come: begin a round (or propose, in one's own) if they may stand."""
        if self._decided is not None:
            return []
        self._rounds.arrived(now)
        return self._finish(now)

    def wake(self, now: Instant) -> list[Output]:
        """Do what is due at `now`."""
        if self._decided is not None:
            return []
        self._rounds.wake(now)
        if self._teller.deadline is not None and self._teller.deadline <= now.monotonic_ms:
            self._tick(now)
        return self._finish(now)

    def peer_up(self, peer: PeerId, now: Instant) -> list[Output]:
        """Tell a peer whose link has come up where this member stands; what was sent is forgotten."""
        self._company.listen()
        if self._decided is not None or not self._company.knows(peer):
            return []
        for memory in (self._teller, self._repaired, self._server):
            memory.forget(peer)
        self._tell(peer, now)
        return self._finish(now)

    def advance(self, now: Instant) -> list[Output]:
        """Go to the next height: the decided block is stored and applied."""
        if self._decided is None:
            return []
        certified, self._decided = self._decided, None
        newly_met = self._begin(self.height + 1, now)
        header = certified.block.header
        listening = tuple(peer for peer, last in self._company.listeners.items() if header.height <= last)
        if header.proposer == self._me and listening:
            self._outputs.append(Broadcast(listening, Blocks(self._chain, (certified,))))
        for peer in newly_met:
            self._tell(peer, now)
        early = self._early.take()
        if not self._take_queued():
            helper, self._helper = self._helper, None
            if helper is not None:
                self._tell(helper, now)
            for peer, message in early:
                self._admit(peer, message, now)
            self._rounds.settle(now)
        return self._finish(now)

    def jump(self, height: int, now: Instant) -> list[Output]:
        """Go to the height after `height`: the app has the state after it, without the blocks between.

        AssertionError if that leads back, or if a block is decided. Own votes of later heights, said in
        an earlier life, stay remembered.
        """
        assert self._decided is None, "a decided block is to be applied first"
        assert height >= self.height, f"height {height} is behind"
        self._queue.clear()
        self._early.take()
        self._helper = None
        for peer in self._begin(height + 1, now):
            self._tell(peer, now)
        self._rounds.settle(now)
        return self._finish(now)

    def _begin(self, height: int, now: Instant) -> list[PeerId]:
        """Work on `height` from now on; return who was not known before."""
        self.height = height
        newly_met = self._company.meet()
        self._caught = {peer: None for peer in self._caught if peer in self._company.members}
        self._rounds = self._new_rounds()
        self._recall()
        self._since_ms = now.monotonic_ms
        if self._company.peers and self._teller.deadline is None:
            self._tick(now)
        return newly_met

    # --- messages -------------------------------------------------------------------------------

    def _admit(self, peer: PeerId, message: Proposal | Votes | Polka, now: Instant) -> None:
        if isinstance(message, Votes):
            for vote in message.votes:
                if not self._present(vote.height):
                    self._other_height(peer, vote.height, Votes(self._chain, (vote,)), now)
                elif not self._ballot.admit_vote(peer, vote):
                    return
        elif not self._present(message.block.header.height):
            self._other_height(peer, message.block.header.height, message, now)
        elif isinstance(message, Proposal):
            self._ballot.admit_proposal(peer, message)
        else:
            self._ballot.admit_polka(peer, message.block, message.votes)

    def _present(self, height: int) -> bool:
        return height == self.height and self._rounds.votes_here

    def _other_height(
        self, peer: PeerId, height: int, message: Proposal | Votes | Polka, now: Instant
    ) -> None:
        """Keep what is one height too early; if we are further behind, tell who knows more."""
        if height <= self.height:
            return
        self._company.heard(peer, max(height, self._company.height_of(peer)))
        soon = height == self.height + 1
        if soon and (self._rounds.votes_here or self._me in self._app.next_members()):
            self._early.keep(peer, message)
        if not soon or not self._rounds.votes_here:
            self._tell(peer, now)

    def _on_blocks(self, peer: PeerId, message: Blocks, now: Instant) -> None:
        last = message.blocks[-1].block.header.height
        self._queue.offer(peer, message.blocks, self.height)
        if self._queue:
            more = len(message.blocks) > 1 or self._company.height_of(peer) > last + 1
            self._helper = peer if more else None
            self._take_queued()
        elif last >= self.height:
            self._company.heard(peer, max(last + 1, self._company.height_of(peer)))
            self._tell(peer, now)

    def _take_queued(self) -> bool:
        taken = self._queue.take(self.height)
        if taken is None:
            return False
        peer, certified = taken
        problem = certified_problem(certified, self._network, self._chain, self._company.members, self.height)
        problem = problem or self._app.check_block(certified.block)
        if problem:
            self._queue.clear()
            self._outputs.append(Notify(Misbehaved(peer, f"a block that does not stand: {problem}")))
            return False
        self._decided = certified
        return True

    def _on_status(self, peer: PeerId, status: Status, now: Instant) -> None:
        self._company.heard(peer, status.height)
        if status.height < self.height:
            self._serve(peer, status.height, now)
        elif status.height > self.height:
            self._tell(peer, now)
        elif not self._rounds.votes_here or peer not in self._company.members:
            return
        elif self.step == NEW:
            if status.step > NEW:
                self._tell(peer, now)
        elif self._teller.stalled and (status.round, status.step) <= (self.round, self.step):
            self._repair(peer, status, now)

    def _serve(self, peer: PeerId, first: int, now: Instant) -> None:
        """Send stored blocks from `first` on, unless they are surely on their way as votes."""
        just_now = now.monotonic_ms - self._since_ms < self._settings.status_ms // 2
        if first == self.height - 1 and just_now and self.step > NEW and peer in self._company.members_before:
            return
        last = min(self.height - 1, self._company.listeners.get(peer, self.height))
        if first > last:
            return
        served = self._server.serve(peer, first, last, now.monotonic_ms)
        self._outputs += self._app.pruned(peer, first, now) if served is None else served

    def _repair(self, peer: PeerId, status: Status, now: Instant) -> None:
        """Send all that a peer at this height may lack: votes, the valid block's polka, the proposal."""
        ballot = self._ballot
        place = (self.height, self.round, self.step, ballot.book.count, status.round, status.step)
        if not self._repaired.allows(peer, place, now.monotonic_ms, at_once=False):
            return
        rounds = sorted({status.round, max(0, self.round - 1), self.round})
        self._outputs += [Send(peer, message) for message in ballot.all_known(rounds)]

    def _status(self) -> Status:
        return Status(self._chain, self.height, self.round, self.step, int(self._app.has_waiting()))

    def _tell(self, peer: PeerId, now: Instant) -> None:
        if self._teller.may_tell(peer, self.height, now.monotonic_ms):
            self._outputs.append(Send(peer, self._status()))

    def _tick(self, now: Instant) -> None:
        """Say where this member stands, and see whether anything has moved since it last did."""
        votes = self._ballot.book.count
        self._outputs += self._teller.tick(self._company.peers, self._status(), votes, now.monotonic_ms)

    # --- output and memory ----------------------------------------------------------------------

    def _finish(self, now: Instant) -> list[Output]:
        """Return what is to be done: first what must be durable, last the decision."""
        outputs: list[Output] = []
        said, self._rounds.said = self._rounds.said, []
        if said and self._company.peers:
            outputs.append(Persist(VoteState(self._chain, encode(self._rounds.save()))))
            outputs += [Broadcast(self._company.peers, message) for message in said]
        outputs += self._outputs
        outputs += [Notify(fault) for fault in self._ballot.faults]
        for found in self._ballot.caught:
            if found.member != self._me and found.member not in self._caught:
                self._caught[found.member] = None
                outputs.append(Caught(found))
        self._outputs = []
        self._ballot.faults.clear()
        self._ballot.caught.clear()
        self._decided = self._decided or self._rounds.decided
        if self._decided is not None:
            outputs.append(Decided(self._decided))
        elif self.step > NEW or self._company.anybody_past(self.height):
            self._teller.hurry(now.monotonic_ms)
        return outputs

    def _remember(self, vote_state: bytes) -> SavedBallot:
        try:
            return decode(SavedBallot, vote_state)
        except DecodeError as error:
            raise StorageError(f"the stored votes of chain {self._chain} cannot be read: {error}") from None

    def _recall(self) -> bool:
        """Take back what was said at this height; True if there was something.

        Said at a later height means that stored blocks were lost: what was said at the heights in
        between is no longer known, so this member only follows until it is back there.
        """
        memory = self._memory
        forgotten = memory is not None and memory.height > self.height
        self._rounds.votes_here = self._me in self._company.members and not forgotten
        if memory is None or memory.height > self.height:
            return False
        self._memory = None
        if memory.height < self.height or not self._rounds.votes_here:
            return False
        self._rounds.restore(memory)
        return True

    def _new_rounds(self) -> Rounds:
        return Rounds(
            self._network,
            self._chain,
            self._company.members,
            self._signer,
            self._settings,
            self._app,
            self.height,
        )
