"""One peer: routes events to its rooms and merges their effects.

`step` takes one event and returns what is to be done, in order; nothing in here waits, reads a
clock or touches the world, so the simulator runs this very class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from edgepool.config import PeerSettings
from edgepool.core.chain import Chain
from edgepool.core.directory import ChainDirectory
from edgepool.core.ledger.proof import proof_problem
from edgepool.core.machine import (
    BlockSource,
    ConfirmTransfer,
    Effect,
    Event,
    Failed,
    FindData,
    FormPool,
    Holding,
    Instant,
    Load,
    Misbehaved,
    NewChain,
    Notify,
    PeerDown,
    PeerUp,
    Persist,
    PoolJoined,
    Received,
    Send,
    SubmitRecord,
    Submitted,
    WantLink,
    Woke,
)
from edgepool.core.pools.lifecycle import Formed, PoolLifecycle, beacon_secret
from edgepool.core.resolution.resolver import Countersigned, Resolver
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import (
    Blocks,
    ConfirmAnswer,
    ConfirmRequest,
    Hello,
    LoadQuery,
    LoadReport,
    OfferProof,
    Ping,
    Polka,
    PoolAccept,
    PoolDecline,
    PoolFormed,
    PoolInvite,
    Proposal,
    Query,
    QueryAnswer,
    Records,
    RecordsRefused,
    Status,
    Votes,
)
from edgepool.model.pool import Genesis
from edgepool.model.record import SignedRecord


class Node:
    """The decisions of one peer, over all its chains. `source` reads what was persisted."""

    def __init__(self, settings: PeerSettings, signer: Signer, source: BlockSource) -> None:
        self.peer = signer.peer
        self.network = settings.network
        self._settings = settings
        self._signer = signer
        self._source = source
        self.addresses: tuple[str, ...] = ()
        """Where this peer listens; set before `start`."""
        self.directory = ChainDirectory(signer.peer, source)
        self.chains = self.directory.chains
        self._trusted: dict[PeerId, None] = {PeerId(peer): None for peer in settings.coordinators}
        if settings.role == "coordinator":
            self._trusted[signer.peer] = None
        self._pools = PoolLifecycle(
            signer=signer,
            network=settings.network,
            coordinators=self._trusted,
            known=self._knows,
            chains_limit=settings.limits.chains,
        )
        self._resolver = Resolver(
            signer=signer,
            network=settings.network,
            directory=self.directory,
            check_proof=self._proof_problem,
            limit=settings.limits.queries,
        )

    def load(self, genesis: Genesis, height: int, vote_state: bytes) -> None:
        """Take up a stored chain before `start`."""
        self._add_chain(genesis, height, vote_state)

    def start(self, now: Instant) -> list[Effect]:
        """Begin: ask for links to everybody in this peer's pools and go on with its chains."""
        effects: list[Effect] = []
        for chain in self.chains.values():
            effects += self._want_people(chain)
            effects += chain.start(now)
        return effects

    def step(self, event: Event, now: Instant) -> list[Effect]:
        """Take one event; return its effects in order."""
        match event:
            case Received(peer, message):
                return self._receive(peer, message, now)
            case PeerUp(peer):
                return self._peer_up(peer, now)
            case PeerDown(peer):
                self.directory.connected_peers.pop(peer, None)
                self.directory.addresses.pop(peer, None)
                effects = self._merge(self._pools.peer_down(peer, now), now)
                return effects + self._merge(self._resolver.peer_down(peer, now), now)
            case Submitted(ticket, command):
                return self._submit(ticket, command, now)
            case Holding(root, size_bytes, held):
                if held:
                    self.directory.held[root] = size_bytes
                else:
                    self.directory.held.pop(root, None)
                return []
            case Load(network_percent, processing_percent):
                self.directory.load_percent = (network_percent, processing_percent)
                return []
            case Woke():
                return self._wake(now)
            case _:
                assert_never(event)

    def wakeup_at(self) -> int | None:
        """Return the monotonic time in ms at which something is due, if anything is."""
        deadlines = [self._pools.deadline, self._resolver.deadline]
        deadlines += [chain.wakeup_at() for chain in self.chains.values()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # --- routing ----------------------------------------------------------------------------

    def _receive(self, peer: PeerId, message: object, now: Instant) -> list[Effect]:
        match message:
            case Records() | RecordsRefused() | Proposal() | Votes() | Polka() | Status() | Blocks():
                chain = self.chains.get(message.chain)
                if chain is None:
                    return []  # not formed here yet, or not ours: what matters comes again
                if peer not in chain.people:
                    return [Notify(Misbehaved(peer, "speaks on a chain that it is not on"))]
                return self._merge(chain.receive(peer, message, now), now)
            case PoolInvite() | PoolAccept() | PoolDecline() | PoolFormed():
                return self._merge(self._pools.receive(peer, message, now), now)
            case Query() | QueryAnswer() | LoadQuery() | LoadReport() | ConfirmRequest() | ConfirmAnswer():
                return self._merge(self._resolver.receive(peer, message, now), now)
            case Hello(addresses):
                self.directory.addresses[peer] = addresses
                return []
            case Ping():
                return []
            case _:
                raise AssertionError(f"no route for {type(message).__name__}")

    def _peer_up(self, peer: PeerId, now: Instant) -> list[Effect]:
        self.directory.connected_peers[peer] = None
        effects: list[Effect] = [Send(peer, Hello(self.addresses))]
        for chain in self.chains.values():
            if peer not in chain.people:
                continue
            if chain.genesis.invitation.coordinator == self.peer:
                # It may have been away when the pool was formed.
                effects.append(Send(peer, PoolFormed(chain.genesis)))
            effects += chain.peer_up(peer, now)
        effects += self._merge(self._pools.peer_up(peer, now), now)
        return effects + self._merge(self._resolver.peer_up(peer, now), now)

    def _submit(self, ticket: int, command: object, now: Instant) -> list[Effect]:
        match command:
            case SubmitRecord(record):
                return self._submit_record(ticket, record, now)
            case FindData():
                return self._merge(self._resolver.find(ticket, command, now), now)
            case ConfirmTransfer():
                return self._merge(self._resolver.confirm(ticket, command, now), now)
            case FormPool(invitation):
                return self._merge(self._pools.form(ticket, invitation, now), now)
            case _:
                raise AssertionError(f"no route for {type(command).__name__}")

    def _submit_record(self, ticket: int, record: SignedRecord, now: Instant) -> list[Effect]:
        chain = self.chains.get(record.record.chain)
        if chain is None:
            reason = f"this peer is not on chain {record.record.chain}"
            return [Notify(Failed(ticket, reason, refused=True))] if ticket else []
        return chain.submit(ticket, record, now)

    def _wake(self, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        for room in (self._pools, self._resolver):
            if room.deadline is not None and room.deadline <= now.monotonic_ms:
                effects += self._merge(room.wake(now), now)
        for chain in list(self.chains.values()):
            deadline = chain.wakeup_at()
            if deadline is not None and deadline <= now.monotonic_ms:
                effects += chain.wake(now)
        return effects

    # --- merging ----------------------------------------------------------------------------

    def _merge(self, outputs: Sequence[Effect | Formed | Countersigned], now: Instant) -> list[Effect]:
        """Carry out what one room asks of another; pass the rest on."""
        effects: list[Effect] = []
        for output in outputs:
            match output:
                case Formed(genesis):
                    effects += self._begin(genesis, now)
                case Countersigned(record):
                    effects += self._submit_record(0, record, now)
                case _:
                    effects.append(output)
        return effects

    def _begin(self, genesis: Genesis, now: Instant) -> list[Effect]:
        if genesis.chain in self.chains:
            return []
        if len(self.chains) >= self._settings.limits.chains:
            coordinator = genesis.invitation.coordinator
            return [Notify(Misbehaved(coordinator, "forms more pools than limits.chains allows"))]
        chain = self._add_chain(genesis, 0, b"")
        effects: list[Effect] = [Persist(NewChain(genesis)), Notify(PoolJoined(genesis))]
        return effects + self._want_people(chain) + chain.start(now)

    def _add_chain(self, genesis: Genesis, height: int, vote_state: bytes) -> Chain:
        chain = Chain(
            genesis,
            signer=self._signer,
            beacon_secret=beacon_secret(self._signer, genesis.invitation),
            settings=self._settings.consensus,
            limits=self._settings.limits,
            source=self._source,
            height=height,
            vote_state=vote_state,
        )
        self.chains[chain.id] = chain
        return chain

    def _want_people(self, chain: Chain) -> list[Effect]:
        people = chain.genesis.invitation.people()
        return [WantLink(member) for member in people if member.peer != self.peer]

    def _knows(self, chain: ChainId) -> bool:
        return chain in self.chains

    def _proof_problem(self, proof: OfferProof) -> str:
        return proof_problem(proof, self.network, self._trusted)
