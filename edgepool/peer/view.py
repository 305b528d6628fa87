"""What can be seen of a peer: reading it changes nothing."""

from __future__ import annotations

from msgspec.structs import replace

from edgepool.config import PeerSettings
from edgepool.core.ledger.state import ChainState
from edgepool.core.node import Node
from edgepool.errors import EdgepoolError, LocalError
from edgepool.model.block import CertifiedBlock, Handover
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis, Member
from edgepool.peer.accounting import Accounting
from edgepool.peer.certifier import Certifier
from edgepool.peer.datavalues import LiveStatus
from edgepool.peer.keeper import DataKeeper
from edgepool.peer.lifeview import overdue_problem
from edgepool.peer.members import Membership
from edgepool.peer.rotation import KeyRotation
from edgepool.peer.statusview import metrics_of, status_of
from edgepool.peer.trust import Trusting
from edgepool.peer.trustview import TrustStatus
from edgepool.peer.values import PeerStatus, PoolMembers
from edgepool.runtime.loop import FreshBlocks
from edgepool.runtime.ports import Clock, PeerIdentity, Transport


class PeerView:
    """The part of a `Peer` that only looks."""

    settings: PeerSettings
    name: str
    id: PeerId
    storage: DataKeeper
    trusting: Trusting
    certifier: Certifier
    rotation: KeyRotation
    _node: Node
    _source: FreshBlocks
    _transport: Transport
    _membership: Membership
    _accounting: Accounting
    _clock: Clock
    _identities: dict[PeerId, PeerIdentity]
    _up_since_ms: dict[PeerId, int]
    _started_ms: int
    _failure: EdgepoolError | None

    @property
    def addresses(self) -> tuple[str, ...]:
        """The multiaddrs at which this peer can be dialled; one behind a conduit ends with /p2p/PEER."""
        return self._transport.addresses

    @property
    def pools(self) -> tuple[Genesis, ...]:
        """The pools that this peer is in, as a member or an observer, oldest first."""
        return tuple(chain.genesis for chain in self._node.chains.values())

    @property
    def chains(self) -> tuple[ChainId, ...]:
        """The chains that this peer keeps."""
        return tuple(self._node.chains)

    def trust(self) -> TrustStatus:
        """Return which roots this peer trusts, whom it does not let in, and what is open about that."""
        return self.trusting.status()

    def chain_state(self, chain: ChainId) -> ChainState:
        """Return what the records of a chain add up to; read it, do not change it."""
        known = self._node.chains.get(chain)
        if known is None:
            raise LocalError(f"peer {self.name} is not on chain {chain}")
        return known.state

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        """Return a stored block, or None."""
        return self._source.block(chain, height)

    def connected(self) -> tuple[PeerIdentity, ...]:
        """Return who is at the other end of each link."""
        return tuple(self._identities.values())

    def member(self, peer: PeerId) -> Member | None:
        """Return this or a connected peer as a pool member, or None if it is not known (yet)."""
        return self._membership.member(peer)

    def members(self, chain: ChainId) -> PoolMembers:
        """Return who is in the pool of a chain, which changes are open, and who has left."""
        return self._membership.view(chain)

    def handovers(self, chain: ChainId) -> tuple[Handover, ...]:
        """Return what leads from the genesis of a chain to its present roster, the oldest first."""
        return self._membership.handovers(chain)

    @property
    def failure(self) -> str:
        """Why this peer has stopped by itself (its disk failed), or ''."""
        return str(self._failure or "")

    def status(self) -> PeerStatus:
        """Return everything that a screen shows of this peer."""
        status = status_of(
            self.settings,
            self._node,
            self.addresses,
            self._identities,
            self._up_since_ms,
            self._accounting,
            self._clock.now(),
            self._started_ms,
            self.failure,
            self.storage,
            self._transport,
        )
        now_ms = self._clock.now().wall_ms
        certificate = self.certifier.status()
        late = overdue_problem(certificate, now_ms)
        return replace(
            status,
            live=self._live_status(),
            certificate=certificate,
            roots=self.trusting.lives(now_ms),
            problems=[*status.problems, *filter(None, [late, self.rotation.line_problem])],
        )

    def metrics(self) -> dict[str, float]:
        """Return counters and gauges by their Prometheus names."""
        return metrics_of(self.status())

    def _live_status(self) -> list[LiveStatus]:
        """Return what this peer publishes live."""
        return []
