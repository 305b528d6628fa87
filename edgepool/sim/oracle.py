"""A second opinion about one chain: which block may stand, told apart from the code that is tested.

It keeps its own height, parent, beacon, tips, rosters, window and credited work, draws the lottery itself,
counts certificates itself, and never forgets a record. Only the content of most records is judged by the
contracts, and the state root is the core's; that is made anew from all that the state holds now and then. A
bug in the core therefore shows as a disagreement, and is not repeated here.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

from edgepool.core.consensus.lottery import leader_order, lottery_seed, weights
from edgepool.core.ledger import window
from edgepool.core.ledger.state import ChainState
from edgepool.model.beacon import first_beacon
from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.crypto import verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import BEACON_LENGTH, Genesis
from edgepool.model.record import (
    ChainAnchor,
    Complaint,
    DataDemand,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    MembershipChange,
    SignedRecord,
    TransferReceipt,
)
from edgepool.model.succession import KeySuccession
from edgepool.model.trust import TrustChange
from edgepool.model.vote import PRECOMMIT, Equivocation
from edgepool.sim.holdingsoracle import HoldingsOracle
from edgepool.sim.persons import Persons
from edgepool.sim.policyoracle import PolicyOracle
from edgepool.sim.rosteroracle import KeyPassed, RosterOracle
from edgepool.sim.trustoracle import TrustOracle
from edgepool.sim.workoracle import WorkOracle

# Bound here, so that a canary that swaps them in the core does not swap them here.
_order, _seed, _weights, _verify, _root = leader_order, lottery_seed, weights, verify, records_root
_restore: Callable[[Genesis, bytes], ChainState] = ChainState.restore
_standing = ChainState.standing_places

SNAPSHOTS_KEPT = 8
CHECK_BLOCKS = 16
"""How often the state root is computed from all entries, as somebody does who restores a snapshot."""


class ChainOracle:
    """Follows one chain block by block; every problem it names is a violation."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.chain = genesis.chain
        self.network = genesis.invitation.network
        self.blocks: list[bytes] = []
        self.places: dict[bytes, tuple[int, int]] = {}
        """Record id -> (height, index in the block)."""
        self.rounds: list[int] = []
        """In which round each block was decided, by the certificate that was seen first."""
        self.horizons: list[int] = [0]
        """The height below which each height takes no records, from height 0 on."""
        self.anchors: list[tuple[PeerId, ChainAnchor]] = []
        """What members have anchored here, since somebody last took it."""
        self.anchored: dict[ChainId, int] = {}
        """Up to which height each sub-chain is anchored here."""
        self._state = ChainState(genesis)
        self.roots: list[bytes] = [self._state.root]
        """The state root after each height, from height 0 on."""
        self._window: deque[int] = deque()
        self._beacon = first_beacon(genesis)
        self._rosters = RosterOracle(genesis)
        self._next_rosters = self._rosters
        self._tips = dict(self._rosters.tips)
        self._reveals: dict[tuple[PeerId, int], int] = {}
        self._persons = Persons()
        self._work = WorkOracle(self._persons)
        self._holdings = HoldingsOracle(self._persons)
        self._policies = self._next_policies = PolicyOracle(self._persons)
        self._trust = self._next_trust = TrustOracle(genesis)
        self._leaders: tuple[int, tuple[PeerId, ...]] = (-1, ())
        self._certificates: dict[int, dict[object, None]] = {}
        self._snapshots: dict[int, bytes] = {}

    @property
    def height(self) -> int:
        """The height of the last block that stands."""
        return len(self.blocks)

    @property
    def members(self) -> tuple[PeerId, ...]:
        """Who votes on the next height."""
        return self.members_at(self.height + 1)

    def members_at(self, height: int) -> tuple[PeerId, ...]:
        """Return who votes on `height`, as far as is known by now."""
        return self._rosters.members(height)

    @property
    def newest_members(self) -> tuple[PeerId, ...]:
        """Who votes on the highest height of which that is known."""
        return self._rosters.members(self.height + 2)

    @property
    def convicted(self) -> list[PeerId]:
        """Against whom there is evidence, of those who are in the pool."""
        return self._rosters.convicted

    def has_voted(self, peer: PeerId) -> bool:
        """Say whether `peer` has a vote at some height, or had one."""
        return self._rosters.has_voted(peer)

    def person(self, peer: PeerId) -> PeerId:
        """Return the present key of who once had the key `peer` here: its own, unless it has changed."""
        return self._rosters.person(peer)

    def convicts_no_more(self, peer: PeerId) -> bool:
        """Say whether `peer` is a key that was changed so long ago that its heir does not answer for it."""
        return self._rosters.is_past(peer, self.horizons[-1])

    def newest_key(self, peer: str) -> PeerId:
        """Return the key that who has had the key `peer` will have by all that is decided."""
        return self._rosters.person(PeerId(peer), newest=True)

    @property
    def revoked(self) -> dict[str, int]:
        """Who is revoked here, and in which block that was decided."""
        return self._trust.revoked

    @property
    def trust(self) -> TrustOracle:
        """Whom this chain trusts after its last block."""
        return self._trust

    def take_news(self) -> list[Equivocation | MembershipChange | KeyPassed]:
        """Return the evidence and the decided changes of the last blocks, once."""
        news, self._rosters.news = self._rosters.news, []
        return news

    def standing_places(self, height: int) -> tuple[tuple[int, int], ...]:
        """Return height and index of the offers at or below `height` that stand."""
        return _standing(self._state, height)

    def state_problem(self, height: int, data: bytes) -> str:
        """Say why `data` is no snapshot of this chain's state after `height`, or return ''."""
        if height > self.height:
            return f"it is of height {height}, this chain has {self.height} blocks"
        if self._snapshots.get(height) == data:
            return ""
        state = _restore(self.genesis, data)
        if state.height != height or state.root != self.roots[height]:
            return "it is another state than this chain's"
        self._snapshots[height] = data
        if len(self._snapshots) > SNAPSHOTS_KEPT:
            del self._snapshots[next(iter(self._snapshots))]
        return ""

    def leader(self, round: int) -> PeerId:
        """Return whom the lottery gives `round` of the next height."""
        if self._leaders[0] != self.height:
            seed = _seed(self.network, self.chain, self.height + 1, self._beacon)
            work = {member: self._work.minutes(self.height + 1, member) for member in self.members}
            missed = [member for member in self.members if self._work.missed(self.height + 1, member)]
            self._leaders = (self.height, _order(seed, _weights(work, self.members, missed)))
        order = self._leaders[1]
        return order[round % len(order)]

    def next_problem(self, certified: CertifiedBlock) -> str:
        """Say why the block may not be the next one, or return '' and take it."""
        block = certified.block
        problem = (
            self._header_problem(block.header)
            or self._body_problem(block)
            or self.certificate_problem(certified)
        )
        if not problem:
            self._take(block)
            self.rounds.append(certified.certificate.round)
            problem = self._policies.standing_problem(self._state)
            problem = problem or self._trust.standing_problem(self._state)
            problem = problem or self._rosters.standing_problem(self._state)
            if self.height % CHECK_BLOCKS == 0 or self._rosters.passed:
                problem = problem or self._all_problem()
        return problem

    def _all_problem(self) -> str:
        """Look at all that the state holds, as is done now and then; say what is wrong with it."""
        problem = self._work.standing_problem(self._state) or self._holdings.standing_problem(self._state)
        if not problem and self._root_anew() != self.roots[-1]:
            problem = "its state root is not that of all that the state holds"
        return problem

    def certificate_problem(self, certified: CertifiedBlock) -> str:
        """Say why the certificate does not make the block stand, or return ''."""
        header, certificate = certified.block.header, certified.certificate
        seen = self._certificates.setdefault(header.height, {})
        if certificate in seen:
            return ""
        if (certificate.height, certificate.block_id) != (header.height, header.id):
            return "its certificate is for another block"
        signers: dict[int, None] = {}
        members = self.members_at(header.height)
        for index, signature in certificate.signatures:
            terms = [self.network, self.chain, PRECOMMIT, header.height, certificate.round, header.id]
            if index < len(members) and _verify(members[index], "vote", terms, signature):
                signers[index] = None
        if 3 * len(signers) <= 2 * len(members):
            return f"only {len(signers)} of {len(members)} members have signed its certificate"
        if len(certificate.signatures) != len(signers):
            return "its certificate holds signatures that do not count"
        seen[certificate] = None
        return ""

    def _header_problem(self, header: Header) -> str:
        if (header.network, header.chain, header.height) != (self.network, self.chain, self.height + 1):
            return "it is for another network, chain or height"
        if header.previous != (self.blocks[-1] if self.blocks else bytes.fromhex(self.chain)):
            return "it does not stand on the block before"
        if header.proposer != self.leader(header.round):
            return (
                f"round {header.round} was drawn for {self.leader(header.round)}, not for {header.proposer}"
            )
        hashes = (header.members_hash, header.next_members_hash)
        if hashes != tuple(self._rosters.roster_hash(header.height + ahead) for ahead in (0, 1)):
            return "it names other members than those that vote on it, and on the next one"
        if header.state_root != self.roots[-1]:
            return "it stands on another state"
        admission = self._admission(header)
        if self._reveals.get(admission, 0) >= BEACON_LENGTH:
            return "it reveals something although the packer has revealed all" if header.reveal else ""
        if hashlib.sha256(header.reveal).digest() != self._tips[admission]:
            return "its reveal is not the preimage of the packer's tip"
        return ""

    def _admission(self, header: Header) -> tuple[PeerId, int]:
        """Return the packer, and the first height of its present time as a member."""
        packer = header.proposer
        return max(one for one in self._tips if one[0] == packer and one[1] <= header.height)

    def _body_problem(self, block: Block) -> str:
        header = block.header
        if (header.records_count, header.records_root) != (len(block.records), _root(block.records)):
            return "its header does not fit its records"
        draft, policies = self._state.draft(), self._policies.copy()
        for index, signed in enumerate(block.records):
            if not self._signed(signed):
                return f"the signature of its record {index} does not hold"
            problem = self._stale(signed) or draft.add(signed) or self._foreign_work(signed)
            problem = problem or policies.next_problem(signed)
            if problem:
                return f"its record {index} may not stand: {problem}"
        self._next_rosters, self._next_policies = self._rosters.copy(), policies
        self._next_trust = self._trust.copy()
        height, members = header.height, self.members_at(header.height)
        words = [one for one in block.records if not self._next_rosters.says_again(height, one)]
        problem = self._next_trust.take(height, words, members, self._rosters.coordinator)
        problem = problem or self._next_rosters.take(height, block.records, self.horizons[-1])
        for old, member in self._next_rosters.passed:
            self._next_trust.pass_on(old, member.peer)
        self._next_trust.counted(height, self._next_rosters.members(height + 1))
        return problem

    def _stale(self, signed: SignedRecord) -> str:
        """Say why a record does not belong here and now, whatever it says."""
        record = signed.record
        if not self.horizons[-1] <= record.since <= self.height:
            return f"it is of height {record.since}, the window begins at {self.horizons[-1]}"
        if signed.id in self.places:
            return f"it stands at {self.places[signed.id]} already"
        passing = self._rosters.passing(self.height + 1)
        if passing is not None and record.author == passing[1].heir:
            return "its author is a new key that does not vote yet"
        kinds = MachiningRequirement | MembershipChange | TrustChange | KeySuccession
        coordinators = isinstance(record.body, kinds)
        if record.author in self.members or record.author in self.newest_members:
            return ""
        asks = isinstance(record.body, DataDemand | TransferReceipt | Complaint)
        observers = {one.peer: one.role for one in self._rosters.observers}
        if asks and observers.get(record.author) == "client":
            return ""
        if isinstance(record.body, KeySuccession) and record.author in observers:
            return ""
        own = coordinators and record.author == self._rosters.coordinator
        return "" if own else "its author is no member"

    def _foreign_work(self, signed: SignedRecord) -> str:
        """Say whether a record reports a step that was given to another station before this block."""
        body = signed.record.body
        if not isinstance(body, MachiningProcedure | MachiningCompletion):
            return ""
        task = self._state.tasks.get(body.task)
        step = task.step_of(body.operation_number) if task is not None else None
        foreign = step is not None and step.requirement.station != signed.record.author
        return "it reports the work of another station" if foreign else ""

    def _signed(self, signed: SignedRecord) -> bool:
        return _verify(signed.record.author, "record", [signed.record], signed.signature)

    def _take(self, block: Block) -> None:
        header = block.header
        missed = tuple(self.leader(round) for round in range(min(header.round, len(self.members))))
        self._state.apply(block, missed)
        self._beacon = hashlib.sha256(self._beacon + header.reveal).digest()
        if header.reveal:
            admission = self._admission(header)
            self._tips[admission] = header.reveal
            self._reveals[admission] = self._reveals.get(admission, 0) + 1
        for index, signed in enumerate(block.records):
            self.places[signed.id] = (header.height, index)
            self._work.enter(header.height, signed.record, len(self.members))
            self._holdings.enter(header.height, index, signed.record)
            body = signed.record.body
            if isinstance(body, ChainAnchor):
                self.anchors.append((signed.record.author, body))
                reached = max(body.certificate.height, self.anchored.get(body.sub_chain, 0))
                self.anchored[body.sub_chain] = reached
        self._work.miss(header.height, missed)
        for old, member in self._next_rosters.passed:
            self._persons.pass_on(old, member.peer)
        self._rosters, self._policies = self._next_rosters, self._next_policies
        self._trust = self._next_trust
        self._tips = self._rosters.tips | self._tips
        self.blocks.append(header.id)
        self._work.close(header.height, self.members)
        self._holdings.close(self.members)
        self._slide(len(block.records))
        self.roots.append(self._state.root)
        self._certificates.pop(header.height - 100, None)

    def _slide(self, count: int) -> None:
        """Move the window on by a block of `count` records."""
        blocks, horizon = self._window, self.horizons[-1]
        blocks.append(count)
        while len(blocks) > window.WINDOW_BLOCKS or sum(blocks) > window.WINDOW_RECORDS:
            blocks.popleft()
            horizon += 1
        self.horizons.append(horizon)

    def _root_anew(self) -> bytes:
        return _restore(self.genesis, self._state.snapshot()).root
