"""What must never happen, watched at every step: the judge of a simulated pool.

Most rules are local, so that a fault is found where it begins and not only when two chains differ:

    agreement    one block at each height of a chain
    validity     each block that is durable passes a second opinion (oracle.py), certificate included
    lottery      its packer is whom the lottery drew, also from work that others stood for
    signatures   an honest member never says two values for one (kind, chain, height, round), in any life
    locks        it precommits only with a quorum of prevotes, and breaks a lock only for a newer one
    durability   what was synced is there after a restart; heights never go back
    records      what was acknowledged stands at its place, durably, and later on every honest peer
    blame        no honest peer is ever accused
    order        no step raises, none goes round in circles without time passing

Byzantine peers are not judged, but what they sign counts where a quorum is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgepool.core.consensus.catchup import MAX_BATCH_BLOCKS
from edgepool.core.machine import CommitBlock, Done, Misbehaved, NewChain, Notice, RecordRef, VoteState
from edgepool.model.block import NIL, PRECOMMIT, PREVOTE, CertifiedBlock, Vote
from edgepool.model.crypto import verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Message, Polka, Proposal, Votes
from edgepool.sim.oracle import ChainOracle
from edgepool.storage.memory import MemoryStore

SAYINGS_KEPT = 4096
"""When more is remembered of what members said, what all honest peers have behind them is forgotten."""

PROPOSAL = 0
"""The kind of a proposal, beside PREVOTE and PRECOMMIT."""

_verify = verify


class Violation(Exception):
    """Something that must never happen has happened; `rule` is one word of the list above."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class _Place(NamedTuple):
    """Where a member may say one value only."""

    peer: PeerId
    kind: int
    chain: ChainId
    height: int
    round: int


class Judge:
    """Sees all that peers store, say and are told, and raises Violation."""

    def __init__(self) -> None:
        self.names: dict[PeerId, str] = {}
        """The people of the pool, as violations call them."""
        self.liars: dict[PeerId, None] = {}
        self.oracles: dict[ChainId, ChainOracle] = {}
        self.accused: dict[PeerId, int] = {}
        """Byzantine peers, and how often somebody has complained of them."""
        self.acknowledged: dict[ChainId, dict[bytes, tuple[int, int]]] = {}
        self._asked: dict[tuple[PeerId, int], bytes] = {}
        self._durable: dict[tuple[PeerId, ChainId], int] = {}
        self._said: dict[_Place, object] = {}
        self._low: dict[ChainId, int] = {}
        self._votes: dict[tuple[ChainId, int], dict[tuple[int, int, bytes], dict[PeerId, None]]] = {}
        self._locks: dict[tuple[ChainId, int], dict[PeerId, tuple[int, bytes]]] = {}

    # --- what peers store -----------------------------------------------------------------------

    def synced(self, peer: PeerId, items: Sequence[VoteState | NewChain | CommitBlock]) -> None:
        """`peer`'s disk has confirmed items: what is in them is decided, and must always be there.

        A block that was only written is not decided: its certificate may need a vote that is lost with it.
        """
        for item in items:
            if isinstance(item, NewChain) and item.genesis.chain not in self.oracles:
                self.oracles[item.genesis.chain] = ChainOracle(item.genesis)
            elif isinstance(item, CommitBlock):
                header = item.certified.block.header
                place = (peer, header.chain)
                if header.height != self._durable.get(place, 0) + 1:
                    raise self._violation("durability", peer, f"stored block {header.height} out of turn")
                self._durable[place] = header.height
                if peer not in self.liars:
                    self._decided(peer, item.certified)

    def restarted(self, peer: PeerId, store: MemoryStore) -> None:
        """`peer` is back with what is in `store`: at least with what was durable."""
        heights = {saved.genesis.chain: saved.height for saved in store.open()}
        for chain in self.oracles:
            durable, height = self._durable.get((peer, chain), 0), heights.get(chain, 0)
            if height < durable and peer not in self.liars:
                raise self._violation("durability", peer, f"went back from height {durable} to {height}")
            self._durable[peer, chain] = height
            for survived in range(durable + 1, height + 1):
                certified = store.block(chain, survived)
                if certified is not None and peer not in self.liars:
                    self._decided(peer, certified)

    def _decided(self, peer: PeerId, certified: CertifiedBlock) -> None:
        header = certified.block.header
        oracle = self.oracles[header.chain]
        if header.height > oracle.height + 1:
            raise self._violation("validity", peer, f"block {header.height} has no block before it")
        if header.height == oracle.height + 1:
            problem = oracle.next_problem(certified)
            if problem:
                raise self._violation("validity", peer, f"block {header.height} may not stand: {problem}")
            self._forget(header.chain)
        elif oracle.blocks[header.height - 1] != header.id:
            raise self._violation("agreement", peer, f"has another block at height {header.height}")
        problem = oracle.certificate_problem(certified)
        if problem:
            raise self._violation("validity", peer, f"block {header.height} may not stand: {problem}")

    # --- what peers say -------------------------------------------------------------------------

    def spoke(self, peer: PeerId, message: Message) -> None:
        """A message leaves `peer`, whether it arrives or not."""
        if isinstance(message, Votes | Polka):
            self._heard(peer, message.chain, message.votes)
        elif isinstance(message, Proposal):
            self._heard(peer, message.chain, message.polka)
            if peer not in self.liars:
                self._proposed(peer, message)

    def _heard(self, peer: PeerId, chain: ChainId, votes: Sequence[Vote]) -> None:
        liar = peer in self.liars
        if chain not in self.oracles:
            return
        for vote in votes:
            if liar and vote.voter != peer:
                continue  # if it is genuine, its voter has been heard
            if not liar and vote.voter == peer:
                self._voted(peer, chain, vote)
            said = self._votes.setdefault((chain, vote.height), {})
            said.setdefault((vote.kind, vote.round, vote.block_id), {})[vote.voter] = None

    def _voted(self, peer: PeerId, chain: ChainId, vote: Vote) -> None:
        key = _Place(peer, vote.kind, chain, vote.height, vote.round)
        known = self._said.get(key)
        if known is None:
            self._said[key] = vote.block_id
            if vote.block_id != NIL:
                self._check_lock(peer, chain, vote)
        elif known != vote.block_id:
            what = "prevotes" if vote.kind == PREVOTE else "precommits"
            raise self._violation(
                "signatures", peer, f"signed two {what} at height {vote.height}, round {vote.round}"
            )

    def _check_lock(self, peer: PeerId, chain: ChainId, vote: Vote) -> None:
        locks = self._locks.setdefault((chain, vote.height), {})
        where = f"at height {vote.height}, round {vote.round}"
        if vote.kind == PRECOMMIT:
            if not self._polka(chain, vote.height, vote.round, vote.block_id, peer):
                raise self._violation("locks", peer, f"precommitted without a quorum of prevotes {where}")
            if vote.round >= locks.get(peer, (-1, NIL))[0]:
                locks[peer] = (vote.round, vote.block_id)
            return
        locked_round, locked_id = locks.get(peer, (-1, NIL))
        if locked_round < 0 or vote.round <= locked_round or locked_id == vote.block_id:
            return
        rounds = range(locked_round, vote.round)
        if not any(self._polka(chain, vote.height, round, vote.block_id, peer) for round in rounds):
            raise self._violation("locks", peer, f"prevoted against its lock of round {locked_round} {where}")

    def _polka(self, chain: ChainId, height: int, round: int, block_id: bytes, peer: PeerId) -> bool:
        """Say whether a quorum has prevoted; `peer`'s own prevote may be on its way."""
        said = self._votes.get((chain, height), {}).get((PREVOTE, round, block_id), {})
        own = self._said.get(_Place(peer, PREVOTE, chain, height, round)) == block_id and peer not in said
        return 3 * (len(said) + own) > 2 * len(self.oracles[chain].members)

    def _proposed(self, peer: PeerId, proposal: Proposal) -> None:
        header = proposal.block.header
        network = self.oracles[proposal.chain].network
        terms = [network, proposal.chain, header.height, proposal.round, header.id, proposal.valid_round]
        if not _verify(peer, "proposal", terms, proposal.signature):
            return  # it passes on somebody else's
        key = _Place(peer, PROPOSAL, proposal.chain, header.height, proposal.round)
        if self._said.setdefault(key, terms) != terms:
            raise self._violation(
                "signatures", peer, f"signed two proposals at height {header.height}, round {proposal.round}"
            )

    # --- what owners are told -------------------------------------------------------------------

    def asked(self, peer: PeerId, ticket: int, record_id: bytes) -> None:
        """The owner of `peer` asks for a record to be put on its chain."""
        self._asked[peer, ticket] = record_id

    def told(self, peer: PeerId, notice: Notice, store: MemoryStore) -> None:
        """The owner of `peer` gets a notice."""
        if peer in self.liars:
            return
        if isinstance(notice, Misbehaved):
            if notice.peer in self.names and notice.peer not in self.liars:
                text = f"accuses {self.names[notice.peer]}, who is honest: {notice.reason}"
                raise self._violation("blame", peer, text)
            self.accused[notice.peer] = self.accused.get(notice.peer, 0) + 1
        elif isinstance(notice, Done) and isinstance(notice.result, RecordRef):
            self._acknowledged(peer, notice.ticket, notice.result, store)

    def _acknowledged(self, peer: PeerId, ticket: int, ref: RecordRef, store: MemoryStore) -> None:
        record_id = self._asked.pop((peer, ticket))
        if ref.height > self._durable.get((peer, ref.chain), 0):
            raise self._violation("records", peer, f"acknowledged block {ref.height} before it was durable")
        if self.oracles[ref.chain].places.get(record_id) != (ref.height, ref.index):
            raise self._violation("records", peer, "acknowledged a record that is not at its place")
        self.acknowledged.setdefault(ref.chain, {})[record_id] = (ref.height, ref.index)

    def at_rest(self, peer: PeerId, store: MemoryStore) -> None:
        """`peer` has caught up: every record that anybody's owner was promised must be with it."""
        for chain, promised in self.acknowledged.items():
            for record_id, (height, index) in promised.items():
                certified = store.block(chain, height)
                if certified is None or index >= len(certified.block.records):
                    raise self._violation("records", peer, f"lacks an acknowledged record of block {height}")
                if certified.block.header.id != self.oracles[chain].blocks[height - 1] or (
                    certified.block.records[index].id != record_id
                ):
                    raise self._violation("records", peer, f"holds another record in block {height}")
        self._durable_at_rest(peer, store)

    def forget_promises(self) -> None:
        """All promises so far were found kept by everybody; heights never go back, so they stay kept."""
        self.acknowledged.clear()

    def _durable_at_rest(self, peer: PeerId, store: MemoryStore) -> None:
        for saved in store.open():
            chain = saved.genesis.chain
            if saved.height < self._durable.get((peer, chain), 0):
                raise self._violation("durability", peer, f"its disk has lost blocks above {saved.height}")

    # --- memory ---------------------------------------------------------------------------------

    def _forget(self, chain: ChainId) -> None:
        """Forget votes of heights that all honest peers have behind them.

        Not at once: a peer that stores several blocks in one go says afterwards what it voted.
        """
        honest = [peer for peer in self.names if peer not in self.liars]
        low = max(0, min(self._durable.get((peer, chain), 0) for peer in honest) - MAX_BATCH_BLOCKS)
        for height in range(self._low.get(chain, 0), low + 1):
            self._votes.pop((chain, height), None)
            self._locks.pop((chain, height), None)
        self._low[chain] = low
        if len(self._said) > SAYINGS_KEPT:
            self._said = {
                key: value for key, value in self._said.items() if key.height > self._low.get(key.chain, 0)
            }

    def _violation(self, rule: str, peer: PeerId, text: str) -> Violation:
        return Violation(rule, f"{self.names.get(peer, peer)} {text}")
