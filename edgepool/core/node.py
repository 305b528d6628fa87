"""One peer: routes events to its rooms and merges their effects.

`step` takes one event and returns what is to be done, in order; nothing in here waits, reads a
clock or touches the world, so the simulator runs this very class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from edgepool.config import PeerSettings
from edgepool.core.anchoring import Anchoring
from edgepool.core.chain import Chain
from edgepool.core.deadlines import earliest
from edgepool.core.directory import ChainDirectory
from edgepool.core.governing import Governing, failed
from edgepool.core.heirs import Heirs
from edgepool.core.ledger.proof import proof_problem
from edgepool.core.ledger.trust import UnitedTrust
from edgepool.core.machine import (
    ApproveChange,
    BlockCommitted,
    BlockSource,
    Broadcast,
    CameUnder,
    Certified,
    Certify,
    ChangeMembers,
    ChangeTrust,
    ConfirmTransfer,
    Effect,
    Event,
    FindData,
    FormPool,
    Holding,
    Instant,
    KeySucceeded,
    Load,
    Misbehaved,
    Moved,
    NewChain,
    Notify,
    PeerDown,
    PeerUp,
    Persist,
    PoolJoined,
    Received,
    SaveSnapshot,
    Send,
    SubmitRecord,
    Submitted,
    Succeed,
    UnwantLink,
    WantLink,
    Woke,
)
from edgepool.core.partners import Partners
from edgepool.core.pools.joining import JOIN_TIMEOUT_MS, Agreed, Following, Joining
from edgepool.core.pools.lifecycle import Formed, PoolLifecycle
from edgepool.core.rendezvous import Rendezvous
from edgepool.core.resolution.resolver import Countersigned, Resolver
from edgepool.core.rights import Standing, Subject, refusal
from edgepool.core.room import TOO_MANY, Room
from edgepool.model.block import CertifiedBlock
from edgepool.model.certifying import CertificateAnswer, CertificateRequest, CertificateShown, RootFollows
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.lineage import Line, Lineage
from edgepool.model.message import (
    Blocks,
    ConfirmAnswer,
    ConfirmRequest,
    Hello,
    Join,
    JoinAnswer,
    LoadQuery,
    LoadReport,
    OfferProof,
    Ping,
    Polka,
    Pong,
    PoolAccept,
    PoolDecline,
    PoolFormed,
    PoolInvite,
    Proposal,
    Query,
    QueryAnswer,
    Reachable,
    Records,
    RecordsRefused,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
    Status,
    Votes,
)
from edgepool.model.policy import DataPolicy
from edgepool.model.pool import Genesis, Member
from edgepool.model.record import SignedRecord
from edgepool.model.trust import RevokePeer

SELF_PROVING = (Blocks, Status, SnapshotHead, SnapshotPage)
"""What a chain takes from anybody: who is on it may have changed in blocks that this peer lacks."""


class Node:
    """The decisions of one peer, over all its chains. `source` reads what was persisted.

    `line` says which keys this peer had before.
    """

    def __init__(self, settings: PeerSettings, signer: Signer, source: BlockSource, line: Line = ()) -> None:
        self.peer = signer.peer
        self.network = settings.network
        self._settings = settings
        self._signer = signer
        self._source = source
        self._self = Subject(signer.peer, settings.role)
        self.directory = ChainDirectory(signer.peer, source, settings.rights.default)
        self.chains = self.directory.chains
        self.heirs = Heirs(settings, signer.peer, line)
        self.room = Room(self._self, self.chains, settings.limits.chains)
        self.pools = PoolLifecycle(
            signer=signer,
            network=settings.network,
            coordinators=self.heirs.coordinators,
            known=self.chains.__contains__,
            who=self._who,
            chains_limit=settings.limits.chains,
            formers=[one.former for one in line],
            full=self.room.full,
        )
        self._resolver = Resolver(
            signer=signer,
            network=settings.network,
            directory=self.directory,
            check_proof=self._proof_problem,
            check_policy=self._policy_problem,
            limit=settings.limits.queries,
        )
        self._joining = Joining(
            signer=signer,
            network=settings.network,
            coordinators=self.heirs.coordinators,
            own=self._as_member,
            problem=lambda genesis: self.room.problem(genesis, self.pools.closed),
        )
        self._anchoring = Anchoring(signer.peer, settings.limits.chains)
        self._governing = Governing(signer.peer, self.chains, self._joining)
        self.rendezvous = Rendezvous(
            signer, settings.network, self.heirs.coordinators, self.directory, lambda: self.trust.revoked
        )
        self.directory.where_now = self.rendezvous.where_now
        self.partners = Partners(self.chains, self.heirs, self.rendezvous, lambda: self.trust.revoked)

    def load(self, genesis: Genesis, height: int, vote_state: bytes) -> None:
        """Take up a stored chain before `start`."""
        self._add_chain(genesis, height, vote_state)
        self._governing.know_trust()
        self.heirs.follow(self.chains[genesis.chain].state, self.trust.revoked)

    @property
    def trust(self) -> UnitedTrust:
        """What this peer's main chains say together of whom to trust."""
        return self._governing.trust

    def start(self, now: Instant) -> list[Effect]:
        """Begin: ask for links to everybody in this peer's pools and go on with its chains."""
        effects: list[Effect] = []
        for chain in self.chains.values():
            effects += self._merge(chain.start(now), now)
        return effects + self._merge(self._governing.spread_trust(now), now)

    def step(self, event: Event, now: Instant) -> list[Effect]:
        """Take one event; return its effects in order."""
        match event:
            case Received(peer, message):
                return self._receive(peer, message, now)
            case PeerUp(subject):
                return self._peer_up(subject, now)
            case PeerDown(peer):
                self.directory.connected_peers.pop(peer, None)
                self._joining.peer_down(peer)
                self.heirs.peer_down(peer)
                self.rendezvous.peer_down(peer, now)
                effects = self._merge(self.pools.peer_down(peer, now), now)
                for chain in self.chains.values():
                    effects += self._merge(chain.peer_down(peer, now), now)
                return effects + self._merge(self._resolver.peer_down(peer, now), now)
            case Submitted(ticket, command):
                return self._submit(ticket, command, now)
            case Holding() | Load():
                self.directory.told(event)
                return []
            case Moved(addresses):
                return self.rendezvous.moved(addresses, now)
            case Woke():
                return self._wake(now)
            case _:
                assert_never(event)

    def wakeup_at(self) -> int | None:
        """Return the monotonic time in ms at which something is due, if anything is."""
        return earliest(
            self.pools.deadline,
            self._resolver.deadline,
            self._joining.deadline,
            self._anchoring.deadline,
            self.rendezvous.deadline,
            self.partners.deadline,
            *[chain.wakeup_at() for chain in self.chains.values()],
        )

    # --- routing ----------------------------------------------------------------------------

    def _receive(self, peer: PeerId, message: object, now: Instant) -> list[Effect]:
        match message:
            case (
                Records()
                | RecordsRefused()
                | Proposal()
                | Votes()
                | Polka()
                | Status()
                | Blocks()
                | SnapshotHead()
                | SnapshotRequest()
                | SnapshotPage()
            ):
                chain = self.chains.get(message.chain)
                if chain is None:
                    return []  # not formed here yet, or not ours: what matters comes again
                if not isinstance(message, SELF_PROVING) and not self._follows(peer, chain):
                    return []  # perhaps it is on the chain by now: this peer may be behind
                return self._merge(chain.receive(peer, message, now), now)
            case Join() | JoinAnswer():
                return self._merge(self._joining.receive(peer, message, now), now)
            case PoolInvite() | PoolAccept() | PoolDecline() | PoolFormed():
                return self._merge(self.pools.receive(peer, message, now), now)
            case Query() if refused := refusal("search", self.directory.subject(peer)):
                return [Notify(Misbehaved(peer, refused))]
            case Query() | QueryAnswer() | LoadQuery() | LoadReport() | ConfirmRequest() | ConfirmAnswer():
                return self._merge(self._resolver.receive(peer, message, now), now)
            case (
                CertificateRequest() | CertificateAnswer() | CertificateShown() | RootFollows() | RevokePeer()
            ):
                return [Notify(Certified(peer, message))]
            case Lineage():
                return self._merge(self.heirs.receive(self.directory.subject(peer), message), now)
            case Hello() | Reachable():
                return self.rendezvous.receive(peer, message, now)
            case Ping() | Pong():
                return []
            case _:
                raise AssertionError(f"no route for {type(message).__name__}")

    def _peer_up(self, subject: Subject, now: Instant) -> list[Effect]:
        peer = subject.peer
        self.directory.connected_peers[peer] = subject
        effects = self.heirs.peer_up(peer) + self.rendezvous.peer_up(peer, now)
        for chain in self.chains.values():
            if not self._follows(peer, chain):
                continue
            chain.watch(peer)
            if self.room.tells(chain, subject):  # it may have been away, or have lost its disk
                effects.append(Send(peer, PoolFormed(chain.genesis, chain.state.adoption)))
            effects += self._merge(chain.peer_up(peer, now), now)
        effects += self._merge(self.pools.peer_up(peer, now), now)
        effects += self._merge(self._joining.peer_up(peer), now)
        return effects + self.rendezvous.tell(peer) + self._merge(self._resolver.peer_up(peer, now), now)

    def _submit(self, ticket: int, command: object, now: Instant) -> list[Effect]:
        match command:
            case SubmitRecord(record):
                return self._submit_record(ticket, record, now)
            case FindData():
                if refused := refusal("search", self._self):
                    return failed(ticket, refused)
                return self._merge(self._resolver.find(ticket, command, now), now)
            case ConfirmTransfer(holder):
                effects: list[Effect] = [*self.partners.confirming(holder, now)]
                return effects + self._merge(self._resolver.confirm(ticket, command, now), now)
            case FormPool(invitation):
                return self._merge(self.pools.form(ticket, invitation, now), now)
            case Certify(peers, said):
                return [Broadcast(peers, said)]
            case ChangeMembers() | ApproveChange() | Succeed() | ChangeTrust():
                return self._merge(self._governing.submit(ticket, command, now), now)
            case _:
                raise AssertionError(f"no route for {type(command).__name__}")

    def _submit_record(self, ticket: int, record: SignedRecord, now: Instant) -> list[Effect]:
        chain = self.chains.get(record.record.chain)
        if chain is None:
            return failed(ticket, f"this peer is not on chain {record.record.chain}")
        return self._merge(chain.submit(ticket, record, now), now)

    def _wake(self, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        self.rendezvous.wake(now)
        for room in (self.pools, self._resolver, self._joining, self.partners):
            if room.deadline is not None and room.deadline <= now.monotonic_ms:
                effects += self._merge(room.wake(now), now)
        for chain in list(self.chains.values()):
            deadline = chain.wakeup_at()
            if deadline is not None and deadline <= now.monotonic_ms:
                effects += self._merge(chain.wake(now), now)
        return effects + self._anchor(now)

    # --- merging ----------------------------------------------------------------------------

    def _merge(
        self, outputs: Sequence[Effect | Formed | Countersigned | Agreed | Following], now: Instant
    ) -> list[Effect]:
        """Carry out what one room asks of another; pass the rest on."""
        effects: list[Effect] = []
        for output in outputs:
            match output:
                case Formed(genesis):
                    effects += self._begin(genesis, now, Notify(PoolJoined(genesis)))
                case Following(genesis):
                    self.pools.agreed(genesis.invitation, now.monotonic_ms + JOIN_TIMEOUT_MS, now)
                    effects += self._begin(genesis, now)
                case Agreed():
                    effects += self._merge(self._governing.agreed(output, now), now)
                case Countersigned(record):
                    effects += self._submit_record(0, record, now)
                case WantLink(member, instead_of):
                    effects += self.partners.wanted(member, instead_of, now)
                    effects += self.rendezvous.tell(member.peer)
                case UnwantLink(peer):
                    effects += self.partners.left(peer)
                case Notify(CameUnder(root, origin)):
                    if self.directory.access.owner_of(origin) != self.peer:
                        self.directory.access.origins[root] = origin
                        effects.append(output)
                case Notify(KeySucceeded(_, heir)):
                    effects += [output, *self.rendezvous.followed(heir, now)]
                case Notify(BlockCommitted(chain, certified)):
                    effects += [output, *self._after_block(self.chains[chain], certified, now)]
                case Persist(SaveSnapshot(chain, adopted=True)):
                    effects += [output, *self._learn(self.chains[chain], now)]
                case _:
                    effects.append(output)
        return effects

    def _begin(self, genesis: Genesis, now: Instant, *told: Effect) -> list[Effect]:
        """Begin with the chain of a pool that stands, or on which this peer votes once it is admitted."""
        if genesis.chain in self.chains:
            return []
        if self.room.has_none_for(genesis):
            return [Notify(Misbehaved(genesis.invitation.coordinator, TOO_MANY))]
        chain = self._add_chain(genesis, 0, b"")
        return [Persist(NewChain(genesis)), *told, *self._merge(chain.start(now), now)]

    def _after_block(self, chain: Chain, certified: CertifiedBlock, now: Instant) -> list[Effect]:
        """Do what the rest of this peer makes of a new block: see to anchors, renew wishes."""
        height = certified.block.header.height
        if chain.member:
            voters = tuple(member.peer for member in chain.rosters.at(height))
            kind = chain.genesis.invitation.kind
            self._anchoring.block_committed(chain.id, kind, certified, voters, now.monotonic_ms)
        effects = self._learn(chain, now)
        return effects + self._merge(self._governing.renew_wishes(chain, now), now)

    def _learn(self, chain: Chain, now: Instant) -> list[Effect]:
        """Take in what a chain says by now of trust, and of whose keys have changed."""
        trusted = self._governing.follow_trust(now)
        effects = self._merge([*trusted, *self.heirs.follow(chain.state, self.trust.revoked)], now)
        return effects + list(self.partners.trust_changed())

    def _anchor(self, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        mains = [self.chains[chain] for chain in self.directory.main_chains() if self.chains[chain].member]
        for chain, record in self._anchoring.records(self._signer, mains, now):
            effects += self._merge(chain.submit(0, record, now), now)
        return effects

    def _add_chain(self, genesis: Genesis, height: int, vote_state: bytes) -> Chain:
        chain = Chain(
            genesis,
            signer=self._signer,
            settings=self._settings.consensus,
            limits=self._settings.limits,
            source=self._source,
            height=height,
            vote_state=vote_state,
            who=self._who,
        )
        chain.trust_known(self.trust)
        self.chains[chain.id] = chain
        for peer in self.directory.connected_peers:
            if self._follows(peer, chain):
                chain.watch(peer)
        return chain

    def _as_member(self) -> Member:
        own, addresses = self._settings, self.rendezvous.addresses
        return Member(self.peer, own.name, own.machine_type, addresses, own.role)

    def _who(self, peer: PeerId) -> Subject | None:
        """Return who `peer` is by its certificate: this peer itself, or one that is linked."""
        return self._self if peer == self.peer else self.directory.connected_peers.get(peer)

    def _follows(self, peer: PeerId, chain: Chain) -> bool:
        """Say whether a linked peer may follow a chain: one of its people, or who may follow all."""
        standing: tuple[Standing, ...] = ("people",) if peer in chain.people else ()
        return not refusal("follow chain", self.directory.subject(peer), standing)

    def _proof_problem(self, proof: OfferProof) -> str:
        return proof_problem(proof, self.network, self.heirs.coordinators)

    def _policy_problem(self, proof: OfferProof) -> str:
        return proof_problem(proof, self.network, self.heirs.coordinators, DataPolicy)
