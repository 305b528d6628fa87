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
    members      nobody honest is convicted; who goes, who comes, and whose key changes, somebody honest has
                 asked for (peoplejudge.py)
    history      a snapshot is the pool's state; nothing is pruned that a replay could come from
    trust        whom a chain trusts is what its members have said; no honest peer takes a frame of somebody
                 whose revocation it has committed (trustjudge.py)
    anchors      what an honest member anchors is what the sub-chain has
    order        no step raises, none goes round in circles without time passing

Byzantine peers are not judged, but what they sign counts where a quorum is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgepool.core.consensus.catchup import MAX_BATCH_BLOCKS
from edgepool.core.machine import (
    CommitBlock,
    Done,
    Item,
    Misbehaved,
    NewChain,
    Notice,
    Prune,
    RecordRef,
    SaveSnapshot,
)
from edgepool.errors import DecodeError
from edgepool.model.block import CertifiedBlock
from edgepool.model.crypto import verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Message, Polka, Proposal, Votes
from edgepool.model.vote import NIL, PRECOMMIT, PREVOTE, Vote
from edgepool.runtime.ports import Store
from edgepool.sim.oracle import ChainOracle
from edgepool.sim.peoplejudge import PeopleJudge
from edgepool.sim.trustjudge import TrustJudge

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
        self.wishes: dict[tuple[ChainId, str, str], None] | None = None
        """Chain, who leaves, who comes ('' for nobody), as an honest owner wants; None: not judged."""
        self.trust = TrustJudge(self)
        self.people = PeopleJudge(self)
        self.happened: dict[str, int] = {}
        """How often the ledger has changed its members, forgotten, and so on."""
        self._asked: dict[tuple[PeerId, int], bytes] = {}
        self._durable: dict[tuple[PeerId, ChainId], int] = {}
        self._first: dict[tuple[PeerId, ChainId], int] = {}
        """The lowest height whose block a peer must have."""
        self._base: dict[tuple[PeerId, ChainId], int] = {}
        """The height whose state a peer has adopted, without the blocks."""
        self._said: dict[_Place, object] = {}
        self._low: dict[ChainId, int] = {}
        self._votes: dict[tuple[ChainId, int], dict[tuple[int, int, bytes], dict[PeerId, None]]] = {}
        self._locks: dict[tuple[ChainId, int], dict[PeerId, tuple[int, bytes]]] = {}

    # --- what peers store -----------------------------------------------------------------------

    def synced(self, peer: PeerId, items: Sequence[Item]) -> None:
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
                    raise self.violation("durability", peer, f"stored block {header.height} out of turn")
                self._durable[place] = header.height
                if peer not in self.liars:
                    self._decided(peer, item.certified)
            elif isinstance(item, SaveSnapshot):
                self._saved(peer, item.chain, item.height, item.state, item.adopted)
            elif isinstance(item, Prune):
                self._pruned(peer, item)

    def wiped(self, peer: PeerId) -> None:
        """`peer` has lost its disk."""
        for chain in self.oracles:
            self._durable[peer, chain], self._first[peer, chain], self._base[peer, chain] = 0, 1, 0

    def goes_on_as(self, peer: PeerId, heir: PeerId) -> None:
        """`peer` is opened again with the key `heir`: its old one is no honest peer's any more."""
        for table in (self._durable, self._first, self._base):
            for chain in self.oracles:
                if (peer, chain) in table:
                    table[heir, chain] = table.pop((peer, chain))
        self.names[peer] = f"the former key of {self.names[peer]}"
        self.liars[peer] = None

    def restarted(self, peer: PeerId, store: Store) -> None:
        """`peer` is back with what is in `store`: at least with what was durable."""
        heights = {saved.genesis.chain: saved.height for saved in store.open()}
        for chain in self.oracles:
            durable, height = self._durable.get((peer, chain), 0), heights.get(chain, 0)
            if height < durable and peer not in self.liars:
                raise self.violation("durability", peer, f"went back from height {durable} to {height}")
            saved = store.snapshot(chain)
            adopted = saved is not None and store.block(chain, saved.height) is None
            later = saved is not None and saved.height > durable
            if saved is not None and later and adopted:
                self._saved(peer, chain, saved.height, saved.state, adopted)
            self._durable[peer, chain] = height
            for survived in range(durable + 1, height + 1):
                certified = store.block(chain, survived)
                if certified is not None and peer not in self.liars:
                    self._decided(peer, certified)
            if saved is not None and later and not adopted:
                self._saved(peer, chain, saved.height, saved.state, adopted)
            first = self._first.get((peer, chain), 1)
            while saved is not None and first <= saved.height and store.block(chain, first) is None:
                first += 1
            self._first[peer, chain] = first

    def _saved(self, peer: PeerId, chain: ChainId, height: int, state: bytes, adopted: bool) -> None:
        """`peer` has stored a snapshot, its own or (`adopted`) somebody's."""
        place = (peer, chain)
        if adopted:
            if height <= self._durable.get(place, 0) and peer not in self.liars:
                raise self.violation("history", peer, f"adopted a snapshot of height {height}, which it has")
            self._durable[place], self._first[place] = height, height + 1
            self._base[place] = height
        if peer in self.liars:
            return
        try:
            problem = self.oracles[chain].state_problem(height, state)
        except DecodeError as error:
            problem = str(error)
        if problem:
            how = "adopted" if adopted else "took"
            raise self.violation("history", peer, f"{how} a false snapshot of height {height}: {problem}")
        self.count("snapshots adopted" if adopted else "snapshots taken")

    def _pruned(self, peer: PeerId, item: Prune) -> None:
        place = (peer, item.chain)
        self._first[place] = max(self._first.get(place, 1), item.height + 1)
        if peer in self.liars:
            return
        horizon = self.oracles[item.chain].horizons[self._durable.get(place, 0)]
        if item.height > horizon:
            text = f"pruned up to {item.height}, above the horizon {horizon}"
            raise self.violation("history", peer, text)
        self.count("pruned")

    def _decided(self, peer: PeerId, certified: CertifiedBlock) -> None:
        header = certified.block.header
        oracle = self.oracles[header.chain]
        if header.height > oracle.height + 1:
            raise self.violation("validity", peer, f"block {header.height} has no block before it")
        if header.height == oracle.height + 1:
            problem = oracle.next_problem(certified)
            if problem:
                raise self.violation("validity", peer, f"block {header.height} may not stand: {problem}")
            self.trust.decided(oracle)
            self.people.decided(oracle)
            self._forget(header.chain)
        elif oracle.blocks[header.height - 1] != header.id:
            raise self.violation("agreement", peer, f"has another block at height {header.height}")
        problem = oracle.certificate_problem(certified)
        if problem:
            raise self.violation("validity", peer, f"block {header.height} may not stand: {problem}")

    def count(self, what: str) -> None:
        """Count something that a ledger has done."""
        self.happened[what] = self.happened.get(what, 0) + 1

    def durable(self, peer: PeerId, chain: ChainId) -> int:
        """Return the height up to which `peer` has a chain durably."""
        return self._durable.get((peer, chain), 0)

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
        if known is None and peer not in self.oracles[chain].members_at(vote.height):
            raise self.violation("members", peer, f"votes on height {vote.height}, where it is no member")
        if known is None:
            self._said[key] = vote.block_id
            if vote.block_id != NIL:
                self._check_lock(peer, chain, vote)
        elif known != vote.block_id:
            what = "prevotes" if vote.kind == PREVOTE else "precommits"
            raise self.violation(
                "signatures", peer, f"signed two {what} at height {vote.height}, round {vote.round}"
            )

    def _check_lock(self, peer: PeerId, chain: ChainId, vote: Vote) -> None:
        locks = self._locks.setdefault((chain, vote.height), {})
        where = f"at height {vote.height}, round {vote.round}"
        if vote.kind == PRECOMMIT:
            if not self._polka(chain, vote.height, vote.round, vote.block_id, peer):
                raise self.violation("locks", peer, f"precommitted without a quorum of prevotes {where}")
            if vote.round >= locks.get(peer, (-1, NIL))[0]:
                locks[peer] = (vote.round, vote.block_id)
            return
        locked_round, locked_id = locks.get(peer, (-1, NIL))
        if locked_round < 0 or vote.round <= locked_round or locked_id == vote.block_id:
            return
        rounds = range(locked_round, vote.round)
        if not any(self._polka(chain, vote.height, round, vote.block_id, peer) for round in rounds):
            raise self.violation("locks", peer, f"prevoted against its lock of round {locked_round} {where}")

    def _polka(self, chain: ChainId, height: int, round: int, block_id: bytes, peer: PeerId) -> bool:
        """Say whether a quorum has prevoted; `peer`'s own prevote may be on its way."""
        members = self.oracles[chain].members_at(height)
        heard = self._votes.get((chain, height), {}).get((PREVOTE, round, block_id), {})
        said = [voter for voter in heard if voter in members]
        own = self._said.get(_Place(peer, PREVOTE, chain, height, round)) == block_id and peer not in said
        return 3 * (len(said) + own) > 2 * len(members)

    def _proposed(self, peer: PeerId, proposal: Proposal) -> None:
        header = proposal.block.header
        network = self.oracles[proposal.chain].network
        terms = [network, proposal.chain, header.height, proposal.round, header.id, proposal.valid_round]
        if not _verify(peer, "proposal", terms, proposal.signature):
            return  # it passes on somebody else's
        key = _Place(peer, PROPOSAL, proposal.chain, header.height, proposal.round)
        if self._said.setdefault(key, terms) != terms:
            raise self.violation(
                "signatures", peer, f"signed two proposals at height {header.height}, round {proposal.round}"
            )

    # --- what owners are told -------------------------------------------------------------------

    def asked(self, peer: PeerId, ticket: int, record_id: bytes) -> None:
        """The owner of `peer` asks for a record to be put on its chain."""
        self._asked[peer, ticket] = record_id

    def told(self, peer: PeerId, notice: Notice, store: Store) -> None:
        """The owner of `peer` gets a notice."""
        if peer in self.liars:
            return
        if isinstance(notice, Misbehaved):
            if notice.peer in self.names and notice.peer not in self.liars:
                text = f"accuses {self.names[notice.peer]}, who is honest: {notice.reason}"
                raise self.violation("blame", peer, text)
            self.accused[notice.peer] = self.accused.get(notice.peer, 0) + 1
        elif isinstance(notice, Done) and isinstance(notice.result, RecordRef):
            self._acknowledged(peer, notice.ticket, notice.result, store)

    def _acknowledged(self, peer: PeerId, ticket: int, ref: RecordRef, store: Store) -> None:
        record_id = self._asked.pop((peer, ticket), None)
        if ref.height > self._durable.get((peer, ref.chain), 0):
            raise self.violation("records", peer, f"acknowledged block {ref.height} before it was durable")
        if record_id is None:  # of a change of the members, which the peer has written itself
            certified = store.block(ref.chain, ref.height)
            assert certified is not None, "pruned in the step in which it was stored"
            record_id = certified.block.records[ref.index].id
        if self.oracles[ref.chain].places.get(record_id) != (ref.height, ref.index):
            raise self.violation("records", peer, "acknowledged a record that is not at its place")
        self.acknowledged.setdefault(ref.chain, {})[record_id] = (ref.height, ref.index)

    def at_rest(self, peer: PeerId, store: Store, chains: Sequence[ChainId] | None = None) -> None:
        """`peer` has caught up: every record that anybody's owner was promised must be with it.

        On `chains`, or on all. Of what is pruned here, the record itself is gone; that the state is the
        pool's shows that it was there.
        """
        for chain in self.acknowledged if chains is None else chains:
            for record_id, (height, index) in self.acknowledged.get(chain, {}).items():
                if height < self._first.get((peer, chain), 1):
                    continue
                certified = store.block(chain, height)
                if certified is None or index >= len(certified.block.records):
                    raise self.violation("records", peer, f"lacks an acknowledged record of block {height}")
                if certified.block.header.id != self.oracles[chain].blocks[height - 1] or (
                    certified.block.records[index].id != record_id
                ):
                    raise self.violation("records", peer, f"holds another record in block {height}")
        self._durable_at_rest(peer, store)

    def stands_at(self, peer: PeerId, chain: ChainId, height: int, root: bytes) -> None:
        """`peer` has come to `height`, wherever it began: its state must be the pool's."""
        oracle = self.oracles[chain]
        if height > oracle.height or oracle.roots[height] != root:
            raise self.violation("agreement", peer, f"has another state at height {height}")

    def provable(self, peer: PeerId, chain: ChainId) -> list[tuple[int, int]]:
        """Return where the offers are that `peer` has seen and pruned, and that still stand."""
        place = (peer, chain)
        pruned, base = self._first.get(place, 1) - 1, self._base.get(place, 0)
        return [at for at in self.oracles[chain].standing_places(pruned) if at[0] > base]

    def forget_promises(self) -> None:
        """All promises so far were found kept by everybody; heights never go back, so they stay kept."""
        self.acknowledged.clear()

    def _durable_at_rest(self, peer: PeerId, store: Store) -> None:
        for saved in store.open():
            chain = saved.genesis.chain
            if saved.height < self._durable.get((peer, chain), 0):
                raise self.violation("durability", peer, f"its disk has lost blocks above {saved.height}")

    # --- memory ---------------------------------------------------------------------------------

    def _forget(self, chain: ChainId) -> None:
        """Forget votes of heights that all honest peers have behind them.

        Not at once: a peer that stores several blocks in one go says afterwards what it voted.
        """
        oracle = self.oracles[chain]
        voters = (*oracle.members, *oracle.newest_members)
        reached = [self._durable.get((peer, chain), 0) for peer in voters if peer not in self.liars]
        low = max(0, min(reached, default=0) - MAX_BATCH_BLOCKS)
        for height in range(self._low.get(chain, 0), low + 1):
            self._votes.pop((chain, height), None)
            self._locks.pop((chain, height), None)
        self._low[chain] = low
        if len(self._said) > SAYINGS_KEPT:
            self._said = {
                key: value for key, value in self._said.items() if key.height > self._low.get(key.chain, 0)
            }

    def violation(self, rule: str, peer: PeerId, text: str) -> Violation:
        """Return what is to be raised: that `peer` does something that must never happen."""
        return Violation(rule, f"{self.names.get(peer, peer)} {text}")
