"""The Transport port in one event loop, without sockets: for tests and examples.

Frames keep their order, outboxes are bounded, and links can be cut and healed by hand.
"""

from __future__ import annotations

import asyncio
from collections import deque

from edgepool.config import Limits
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.runtime.ports import LinkHandler, PeerIdentity
from edgepool.transport import refusals
from edgepool.transport.refusals import Counters, count

Pair = frozenset[PeerId]


class MemoryNetwork:
    """Connects the MemoryTransports that were made with it."""

    def __init__(self) -> None:
        self.transports: dict[PeerId, MemoryTransport] = {}
        self._cut: dict[Pair, None] = {}

    def cut(self, a: PeerId, b: PeerId) -> None:
        """End the link between two peers; frames under way are lost; it stays down until healed."""
        self._cut[frozenset((a, b))] = None
        self.unlink(a, b, "the link was cut")

    def heal(self, a: PeerId, b: PeerId) -> None:
        """Let two peers link again, which they do if either wants to."""
        self._cut.pop(frozenset((a, b)), None)
        self.link_if_wanted(a, b)

    def link_if_wanted(self, a: PeerId, b: PeerId) -> None:
        """Link two peers if both run, nothing is in the way, and either wants to."""
        one, other = self.transports.get(a), self.transports.get(b)
        if one is None or other is None or a == b or frozenset((a, b)) in self._cut:
            return
        if b in one.links or not (b in one.wanted or a in other.wanted):
            return
        one.set_up(other.identity)
        other.set_up(one.identity)

    def unlink(self, a: PeerId, b: PeerId, reason: str) -> None:
        """End the link between two peers, if there is one."""
        for here, there in ((a, b), (b, a)):
            transport = self.transports.get(here)
            if transport is not None:
                transport.set_down(there, reason)


class MemoryTransport:
    """The Transport port on a MemoryNetwork; what the handler raises goes to the loop."""

    def __init__(
        self,
        network: MemoryNetwork,
        identity: PeerIdentity,
        limits: Limits | None = None,
        counters: Counters | None = None,
        relink_pause_ms: int = 20,
    ) -> None:
        self.identity = identity
        self.wanted: dict[PeerId, Member] = {}
        self.links: dict[PeerId, deque[bytes]] = {}
        self.counters: Counters = {} if counters is None else counters
        self._network = network
        self._limits = limits or Limits()
        self._relink_pause_ms = relink_pause_ms
        self._handler: LinkHandler | None = None
        self._outbox_bytes: dict[PeerId, int] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """An address in form only: peers find each other by peer id here."""
        return ("/dns4/memory/tcp/1",)

    async def start(self, handler: LinkHandler) -> None:
        """Join the network, and link to whoever is there and wanted, or wants this peer."""
        assert self._handler is None, "a transport is started once"
        self._handler = handler
        self._network.transports[self.identity.peer] = self
        for peer in list(self._network.transports):
            self._network.link_if_wanted(self.identity.peer, peer)

    def want(self, member: Member) -> None:
        """Keep a link to `member` whenever it is there."""
        self.wanted[member.peer] = member
        self._network.link_if_wanted(self.identity.peer, member.peer)

    def unwant(self, peer: PeerId) -> None:
        """Look for `peer` no more; a link that stands stays until it is lost."""
        self.wanted.pop(peer, None)

    def send(self, peer: PeerId, frame: bytes) -> bool:
        """Queue `frame`; False (and it is counted) if there is no link or its outbox is full."""
        outbox = self.links.get(peer)
        if outbox is None:
            count(self.counters, refusals.NO_LINK)
            return False
        if len(frame) > self._limits.frame_bytes:
            count(self.counters, refusals.FRAME_TOO_LONG)
            return False
        if self._outbox_bytes[peer] + len(frame) > self._limits.outbox_bytes:
            count(self.counters, refusals.OUTBOX)
            return False
        outbox.append(frame)
        self._outbox_bytes[peer] += len(frame)
        asyncio.get_running_loop().call_soon(self._deliver, peer, outbox)
        return True

    def close_link(self, peer: PeerId, reason: str) -> None:
        """End the link to `peer`; it is made again after a pause if either side wants it."""
        self._network.unlink(self.identity.peer, peer, reason)
        asyncio.get_running_loop().call_later(
            self._relink_pause_ms / 1000, self._network.link_if_wanted, self.identity.peer, peer
        )

    async def close(self) -> None:
        """Deliver what is queued, then end all links; the handler is told nothing more."""
        for peer, outbox in list(self.links.items()):
            while outbox:
                self._deliver(peer, outbox)
        self._handler = None
        for peer in list(self.links):
            self._network.unlink(self.identity.peer, peer, "the other side closed the link")
        self._network.transports.pop(self.identity.peer, None)

    # --- for the network ----------------------------------------------------------------------

    def set_up(self, identity: PeerIdentity) -> None:
        """A link stands from now on; the handler hears of it in a later turn of the loop."""
        self.links[identity.peer] = deque()
        self._outbox_bytes[identity.peer] = 0
        asyncio.get_running_loop().call_soon(self._tell_up, identity)

    def set_down(self, peer: PeerId, reason: str) -> None:
        """The link is gone, with all that was queued on it."""
        outbox = self.links.pop(peer, None)
        if outbox is not None:
            outbox.clear()
            asyncio.get_running_loop().call_soon(self._tell_down, peer, reason)

    def take(self, peer: PeerId, frame: bytes) -> None:
        """A frame of `peer` arrived."""
        if self._handler is not None and peer in self.links:
            self._handler.frame_received(peer, frame)

    def _deliver(self, peer: PeerId, outbox: deque[bytes]) -> None:
        if outbox and self.links.get(peer) is outbox:
            frame = outbox.popleft()
            self._outbox_bytes[peer] -= len(frame)
            self._network.transports[peer].take(self.identity.peer, frame)

    def _tell_up(self, identity: PeerIdentity) -> None:
        if self._handler is not None:
            self._handler.link_up(identity)

    def _tell_down(self, peer: PeerId, reason: str) -> None:
        if self._handler is not None:
            self._handler.link_down(peer, reason)
