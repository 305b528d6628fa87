"""A peer: the only place where core, storage and transport meet.

`Peer` is an async context manager. Inside, it publishes data, finds and fetches what others have,
submits records and tells what happens. Everything it acknowledges is durable.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Container, Sequence
from pathlib import Path

from edgepool.config import PeerSettings, check_settings, load_peer_settings
from edgepool.core.machine import (
    AccessRefused,
    BlockCommitted,
    CameUnder,
    Certified,
    Command,
    Confirmed,
    Done,
    Failed,
    Holding,
    Load,
    Misbehaved,
    Notice,
    PoolJoined,
    RankedOffer,
    RecordRef,
    SubmitRecord,
    TrustDecided,
)
from edgepool.core.node import Node
from edgepool.errors import EdgepoolError, LocalError
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis, Member, PoolKind
from edgepool.model.record import Body, sign_record
from edgepool.model.twin import DataKey
from edgepool.peer.accounting import Accounting, processing_load_percent
from edgepool.peer.budgets import Budgets
from edgepool.peer.certifier import Certifier
from edgepool.peer.data import DataPlane, checked_key, checked_purpose
from edgepool.peer.fetches import ProgressCallback
from edgepool.peer.fetching import FetchingPeer
from edgepool.peer.foreign import Foreign
from edgepool.peer.keeper import DataKeeper, blobs_of
from edgepool.peer.members import Membership
from edgepool.peer.paths import conduit_to, follow_conduits
from edgepool.peer.rights import DataRights
from edgepool.peer.rotation import KeyRotation
from edgepool.peer.streams import Live
from edgepool.peer.tickets import Tickets
from edgepool.peer.trust import Trusting
from edgepool.peer.values import (
    Fetched,
    LinkChanged,
    PeerEvent,
    PeerMisbehaved,
    PoolEntered,
    Published,
)
from edgepool.peer.watchers import Watchers
from edgepool.runtime.clock import SystemClock
from edgepool.runtime.loop import FreshBlocks, NodeLoop
from edgepool.runtime.ports import Clock, PeerIdentity, Store, Transport
from edgepool.storage.segments import segment_bytes_for
from edgepool.storage.store import FolderStore
from edgepool.transport.certificates import load_identity
from edgepool.transport.conduits import Conduits
from edgepool.transport.tls import TlsTransport
from edgepool.transport.transfer_server import TransferServer

COMMAND_TIMEOUT_MS = 30_000
RECORD_TIMEOUT_MS = 30_000
"""Longer than a chain takes to find that a record can stand no more, so that its owner hears why."""
_LOAD_EVERY_S = 1.0


class Peer(FetchingPeer):
    """One machine with its gateway, or another role, in a network of peers.

    Use `async with Peer.open("folder") as peer:`. All methods raise LocalError once closed.
    """

    def __init__(
        self,
        settings: PeerSettings,
        *,
        transport: Transport | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_settings(settings, f"peer {settings.name}")
        self.settings = settings
        self.name = settings.name
        self._identity = load_identity(settings)
        self.id: PeerId = self._identity.peer
        self.join_door = self._identity.join_door
        self._clock: Clock = clock if clock is not None else SystemClock()
        segment_bytes = segment_bytes_for(settings.limits.chain_bytes)
        self._store: Store = store if store is not None else FolderStore(settings.folder, segment_bytes)
        self._accounting = Accounting(settings.limits.link_mbit_s)
        self._blobs = blobs_of(settings)
        counters = self._accounting.refused
        conduits = Conduits(settings, self._identity, counters)
        self.data = DataPlane(self, self._identity, self._blobs, self._accounting, self._clock, conduits.open)
        server = TransferServer(self.data.serve, settings.limits, counters)
        self._live = Live(self, self._identity, self._clock, conduits.open, counters)
        self._transport: Transport = transport or TlsTransport(
            settings, self._identity, counters, server, conduits, self._live.server
        )
        self._membership = Membership(self, self._transport, self._clock)
        self._source = fresh = FreshBlocks(self._store)
        self.rotation = KeyRotation(self, self._identity, self._clock)
        self._node = Node(settings, self._identity.signer, fresh, self.rotation.line)
        self.rights = DataRights(self, self._clock, self._membership.pick)
        self.budgets = Budgets(settings, self._clock)
        self.storage = DataKeeper(self, self._blobs, fresh, self._clock)
        self._loop = NodeLoop(
            self._node,
            store=self._store,
            fresh=fresh,
            transport=self._transport,
            clock=self._clock,
            counters=self._accounting.refused,
            on_notice=self._notice,
            on_link=self._link_changed,
            on_failure=self._stop_for,
        )
        follow_conduits(conduits.keys, self._node, self._transport, self._loop.post)
        self.trusting = Trusting(self, self._identity)
        self._foreign = Foreign(self, self._transport)
        self._identities: dict[PeerId, PeerIdentity] = {}
        self._up_since_ms: dict[PeerId, int] = {}
        self.certifier = Certifier(self._identity, self._clock, self._loop.post, self._identities)
        self.certifier.end_former = self.trusting.end_former
        self._tickets = Tickets(self._loop.post)
        self._watchers = Watchers()
        self._load_task: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._started_ms = 0
        self._open = False
        self._failure: EdgepoolError | None = None

    @classmethod
    def open(cls, source: Path | str | PeerSettings) -> Peer:
        """Return a peer from its folder, its TOML file or its settings; enter it to start it.

        Raises ConfigError, in one sentence, for whatever is wrong with them.
        """
        if isinstance(source, PeerSettings):
            return cls(source)
        return cls(load_peer_settings(Path(source)))

    async def __aenter__(self) -> Peer:
        try:
            self._loop.load()
            self._node.pools.remembered = self.rotation.lost()
            for root in self._blobs.roots():
                if (manifest := self._blobs.manifest(root)) is not None:
                    self._node.directory.held[root] = manifest.size_bytes
            self.trusting.follow()
            self.rights.start()
            await self._transport.start(self._loop)
            self._node.rendezvous.addresses = self._transport.addresses
            self._started_ms = self._clock.now().wall_ms
            self._open = True
            await self._loop.start()
        except BaseException:
            await self._shut()
            raise
        for member in self._node.heirs.known_members():
            self._transport.want(member)
        self._load_task = asyncio.create_task(self._measure_load(), name=f"load of {self.name}")
        self._renewing = asyncio.create_task(self.certifier.run(), name=f"renewal of {self.name}")
        self.storage.start()
        self._foreign.start()
        self.rotation.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._shut()

    async def _shut(self) -> None:
        self.budgets.close()
        await self.rotation.close()
        await self.data.close()  # receipts may still be on their way
        self._open = False
        tasks = [task for task in (self._load_task, self._renewing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._live.close()
        await self._foreign.close()
        await self.storage.close()
        await self._transport.close()
        await self._loop.close()
        self.rights.close()
        self._store.close()
        self._tickets.fail_all(LocalError(f"peer {self.name} is closed"))
        self._watchers.close()

    # --- data -------------------------------------------------------------------------------

    async def publish(
        self,
        key: DataKey | str,
        data: bytes | None = None,
        *,
        path: Path | None = None,
        version: int = 0,
        chain: ChainId | None = None,
    ) -> Published:
        """Store data (bytes, or the file at `path`) and offer it on a chain [S3.8, S3.9].

        `version` 0 means one above the newest on that chain. On return the data is durable and
        its offer is final. Raises LocalError, Refused, StorageError, Unavailable.
        """
        self._check_open()
        return await self.data.publish(checked_key(key), data, path, version, self._membership.pick(chain))

    async def request(
        self, key: DataKey | str, *, version: int = 0, timeout_ms: int = 5_000, purpose: str = ""
    ) -> tuple[RankedOffer, ...]:
        """Find who has `key` by Algorithm 2 [S3.14]; proven offers, least busy holder first.

        What this peer may not have, for that purpose, comes last, with the reason.
        """
        self._check_open()
        return await self.data.find(checked_key(key), version, timeout_ms, checked_purpose(purpose))

    async def fetch(
        self,
        key: DataKey | str,
        *,
        version: int = 0,
        chain: ChainId | None = None,
        features: str = "",
        composition: str = "",
        purpose: str = "",
        timeout_ms: int = 60_000,
        progress: ProgressCallback | None = None,
    ) -> Fetched:
        """Get data straight from all who have it, every chunk checked [S3.13 to S3.15].

        Writes a demand on `chain`, finds and ranks holders, has them countersign, draws from several at once,
        leaves a receipt. Gives up when nothing came for `timeout_ms`; the next fetch goes on from there.
        `purpose` is what it is wanted for, which this peer signs and policies may ask for [S2.3].
        `progress` is given a FetchProgress as it goes. Raises Unavailable if nobody has
        it, Refused with the condition that failed, RemoteError naming a holder that cheated.
        """
        self._check_open()
        demand = (checked_key(key), version, features[:256], composition[:256])
        purpose = checked_purpose(purpose)
        return await self.data.fetch(*demand, self._membership.pick(chain), timeout_ms, progress, purpose)

    # --- records and pools ------------------------------------------------------------------

    async def submit(self, body: Body, *, chain: ChainId) -> RecordRef:
        """Sign `body`, put it on `chain`; return where it stands once it is final.

        Raises Refused with the rule that said no, Unavailable if no quorum answers in 30 s (the
        record may still become final later).
        """
        self._check_open()
        known = self._node.chains.get(chain)
        signed = sign_record(
            self._identity.signer,
            self.settings.network,
            chain,
            body,
            self._clock.now().wall_ms,
            secrets.randbits(53),
            0 if known is None else known.state.height,
        )
        ref = await self.command(SubmitRecord(signed), RECORD_TIMEOUT_MS)
        assert isinstance(ref, RecordRef)
        return ref

    async def form_pool(
        self,
        name: str,
        kind: PoolKind,
        members: Sequence[Member],
        *,
        combination: Sequence[str] = (),
        observers: Sequence[Member] = (),
    ) -> Genesis:
        """Form a pool and its chain [S3.4, S3.5]; only a coordinator's invitation is believed.

        One that is neither a member nor an observer keeps no chain, and cannot adopt the pool when its key
        changes (decision 0017). Raises Refused or Unavailable naming who did not accept.
        """
        self._check_open()
        everybody = members, combination, observers
        return await self._membership.form(name, kind, *everybody, COMMAND_TIMEOUT_MS)

    async def change_members(
        self,
        chain: ChainId,
        *,
        admit: Member | PeerId | str | None = None,
        exclude: PeerId | str | None = None,
        reason: str = "",
        address: str = "",
        timeout_ms: int = COMMAND_TIMEOUT_MS,
    ) -> RecordRef:
        """Propose that somebody comes into a pool, leaves it, or both: a replacement in place [S3.6].

        People are named, or meant by peer id; who is not linked is reached at `address`, a multiaddr.
        Returns where this peer's own word stands; the change is decided when more than two thirds of
        the members have said the same, see `members`. Raises LocalError, Refused, Unavailable.
        """
        self._check_open()
        return await self._membership.change(chain, admit, exclude, reason, address, timeout_ms)

    async def approve_change(self, chain: ChainId, proposer: PeerId | str = "") -> RecordRef:
        """Approve what `proposer` has open in a pool ('': the only change); return where that stands."""
        self._check_open()
        return await self._membership.approve(chain, proposer, COMMAND_TIMEOUT_MS)

    # --- what happens ---------------------------------------------------------------------------

    def watch(self) -> AsyncIterator[PeerEvent]:
        """Return an async iterator over what happens from now on.

        A reader that is too slow gets EventsMissed; the iterator ends when the peer closes or its
        disk fails.
        """
        self._check_open()
        return self._watchers.new()

    # --- used by the data plane -------------------------------------------------------------

    @property
    def node(self) -> Node:
        """The decisions of this peer; only this package uses it."""
        return self._node

    async def command(self, command: Command, timeout_ms: int) -> object:
        """Give the node a command; return its result or raise Refused or Unavailable."""
        self._check_open()
        return await self._tickets.command(command, timeout_ms)

    def holding(self, root: bytes, size_bytes: int, held: bool = True) -> None:
        """Tell the node that data is held from now on, or is no longer."""
        self._loop.post(Holding(root, size_bytes, held))

    def forget(self, peers: Container[PeerId]) -> None:
        """Take nothing more of what has come from `peers` and waits."""
        self._loop.forget(peers)

    def tell(self, event: PeerEvent) -> None:
        """Give an event to all watchers."""
        self._watchers.put(event)

    # --- callbacks of the loop --------------------------------------------------------------

    def _notice(self, notice: Notice) -> None:
        match notice:
            case Done() | Failed():
                self._tickets.settle(notice)
            case BlockCommitted(chain, certified):
                if not self._watchers:
                    return
                for event in self._membership.told_by(chain, certified):
                    self.tell(event)
            case TrustDecided():
                self.trusting.follow()
                self.certifier.look_again()
            case Certified(peer, message):
                self.certifier.said(peer, message)
            case PoolJoined(genesis):
                self.rotation.joined()
                self.tell(PoolEntered(genesis))
            case Confirmed(confirmation):
                self.storage.confirmed(confirmation)
                self.rights.confirmed(confirmation)
            case AccessRefused() | CameUnder():
                self.rights.told(notice)
            case Misbehaved(peer, reason):
                self.tell(PeerMisbehaved(peer, reason))
            case _:
                pass

    def _link_changed(self, who: PeerIdentity | PeerId, reason: str) -> None:
        if isinstance(who, PeerIdentity):
            self._identities[who.peer] = who
            self._up_since_ms[who.peer] = self._clock.now().wall_ms
            if who.role == "coordinator":
                self.certifier.look_again()
            self.tell(LinkChanged(who.peer, who.name, True, "", conduit_to(self._transport, who.peer)))
            return
        identity = self._identities.pop(who, None)
        self._up_since_ms.pop(who, None)
        self.tell(LinkChanged(who, identity.name if identity else "", False, reason))

    def _stop_for(self, error: EdgepoolError) -> None:
        """The disk failed, or a fault of ours showed: nothing can be promised, so fall silent."""
        self._failure = error
        self._tickets.fail_all(error)
        self._watchers.close()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._open:
            raise LocalError(f"peer {self.name} is not open: use it inside 'async with'")

    async def _measure_load(self) -> None:
        while True:
            network = self._accounting.network_load_percent(self._clock.now().monotonic_ms)
            self._loop.post(Load(network, processing_load_percent()))
            self._identity.look_at_barred()
            self._identity.trust.tick()
            await self.rights.tend()
            await asyncio.sleep(_LOAD_EVERY_S)
