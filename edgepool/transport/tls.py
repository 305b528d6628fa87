"""Links over mutual TLS 1.3: the default transport.

One listening port takes links, transfers and those who want a conduit; ALPN tells them apart. There
is at most one link for each pair of peers. When both dial at once, the smaller peer id's connection
is kept: it refuses the other's while its own is through TLS or just up, and gives its own up
otherwise. Outside of that moment a peer that dials has lost its link, or has found a way without a
conduit, so a new connection replaces an old one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from edgepool.config import PeerSettings
from edgepool.errors import DecodeError
from edgepool.model.ids import PeerId, split_address
from edgepool.model.pool import Member
from edgepool.runtime.ports import LinkHandler, PeerIdentity
from edgepool.transport import refusals
from edgepool.transport.conduit import Conduit
from edgepool.transport.conduits import Conduits
from edgepool.transport.conduitwire import CIRCUIT_NAME
from edgepool.transport.dial import DIRECT, Way
from edgepool.transport.dialler import GRACE_S, Dialler, State
from edgepool.transport.door import Doorway, Listener, connect
from edgepool.transport.found import FoundElsewhere
from edgepool.transport.identity import (
    CONDUIT_PROTOCOL,
    LINK_PROTOCOL,
    LIVE_PROTOCOL,
    TRANSFER_PROTOCOL,
    Identity,
)
from edgepool.transport.keptport import listen_as_before
from edgepool.transport.lane import LANE
from edgepool.transport.libp2p import LINK_STREAM, Libp2pRoad
from edgepool.transport.link import Link
from edgepool.transport.live_server import LiveServer
from edgepool.transport.paths import LinkPath, Paths
from edgepool.transport.pauses import Pauses
from edgepool.transport.proofdoor import ProofDoor
from edgepool.transport.refusals import Counters, count
from edgepool.transport.transfer_server import TransferServer

CLOSE_S = 1.0
"""How long `close` waits for what is queued."""
_CROSSING_S = 5.0  # who has dialled at the same time is through its handshake by then

logger = logging.getLogger(__name__)


class TlsTransport:
    """The Transport port over mutual TLS 1.3. `counters` is counted in place (see refusals.py).

    `conduits` opens streams for links; `conduit` is what this peer is to others, None if it does not serve.
    """

    def __init__(
        self,
        settings: PeerSettings,
        identity: Identity,
        counters: Counters,
        transfers: TransferServer | None = None,
        conduits: Conduits | None = None,
        live: LiveServer | None = None,
    ) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._identity = identity
        self._counters = counters
        self._transfers = transfers
        self._live = live
        self.conduits = conduits or Conduits(settings, identity, counters)
        self._keys = keys = self.conduits.keys
        self.conduit = Conduit(settings, identity, counters, keys) if settings.conduit.serve else None
        self._paths = Paths()
        self.found = FoundElsewhere()
        self._listener = Listener(identity, settings.limits, counters, self._judge_tls)
        if transfers is not None:
            self._listener.plain[LANE] = transfers.take
        self.libp2p: Libp2pRoad | None = None
        if settings.transport != "tls":
            self.libp2p = Libp2pRoad(settings, identity, counters, self._judge_libp2p, keys)
            self.libp2p.arrived, self.conduits.through_libp2p = self._arrived, self.libp2p.open_pipe
        self._handler: LinkHandler | None = None
        self._closing = False
        self._wanted: dict[PeerId, Member] = {}
        self._diallers: dict[PeerId, Dialler] = {}
        self._up: dict[PeerId, Link] = {}
        self._awaiting_welcome: dict[PeerId, Link] = {}
        self._open: dict[Link, None] = {}
        self._all_closed = asyncio.Event()
        self._pauses = Pauses()
        self._keepalive: asyncio.TimerHandle | None = None

    # --- the port -----------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[str, ...]:
        """The multiaddrs at which this peer can be dialled, those through conduits last.

        The former are without /p2p, those behind a conduit end with it; the listener's only after `start`.
        """
        ours, libp2p = self._listener.addresses, self.libp2p.addresses if self.libp2p is not None else ()
        # Others dial the first first: where links go over libp2p, TLS takes data only.
        direct = (*libp2p, *ours) if self._settings.transport == "libp2p" else (*ours, *libp2p)
        circuits = () if self.libp2p is None else self.libp2p.relays.addresses
        return (*direct, *self.conduits.addresses, *circuits)

    def paths(self) -> dict[PeerId, LinkPath]:
        """Return by which path each link goes, and what that costs."""
        return {peer: self._paths.of(link) for peer, link in self._up.items()}

    async def start(self, handler: LinkHandler) -> None:
        """Listen and begin to dial. LocalError if the port is in use."""
        assert self._handler is None, "a transport is started once"
        self._handler = handler
        if self._settings.listen:
            await listen_as_before(self._listener, self._settings)
        if self.conduit is not None:
            self._listener.plain[CIRCUIT_NAME] = self.conduit.take
            self.conduit.start()
            self.conduits.local = self.conduit.grant
        self.conduits.start(self._arrived)
        if self.libp2p is not None:
            await self.libp2p.start()
        self._tick()
        for member in self._wanted.values():
            self._dial_from_now_on(member)

    def want(self, member: Member) -> None:
        """Keep a link to `member`; one with newer addresses replaces what was known of it."""
        if member.peer == self._identity.peer or self._closing:
            return
        if member.peer not in self._wanted and len(self._wanted) >= self._limits.links:
            count(self._counters, refusals.BUSY)
            return
        self._wanted[member.peer] = member
        if member.peer in self._diallers:
            self._diallers[member.peer].meet(member)
        elif self._keepalive is not None:
            self._dial_from_now_on(member)

    def unwant(self, peer: PeerId) -> None:
        """Dial `peer` no more; a link that stands stays until it is lost."""
        self.found.settle(peer)
        if self._wanted.pop(peer, None) is not None and peer in self._diallers:
            self._diallers.pop(peer).task.cancel()

    def send(self, peer: PeerId, frame: bytes) -> bool:
        """Queue `frame`; False (and it is counted) if there is no link or its outbox is full."""
        link = self._up.get(peer)
        if link is None:
            count(self._counters, refusals.NO_LINK)
            return False
        if len(frame) > self._limits.frame_bytes:
            count(self._counters, refusals.FRAME_TOO_LONG)
            return False
        if not link.send(frame):
            count(self._counters, refusals.OUTBOX)
            return False
        return True

    def close_link(self, peer: PeerId, reason: str) -> None:
        """End the link to `peer`, who broke the protocol; it may be made again after a pause.

        The handler's link_down follows in a later turn of the loop.
        """
        self._pauses.begin(peer)
        if (link := self._up.get(peer)) is not None:
            link.end(reason)

    async def close(self) -> None:
        """Flush what can be flushed in 1 s, then end all links; the handler is told nothing more."""
        self._closing = True
        if self._keepalive is not None:
            self._keepalive.cancel()
        tasks = [dialler.task for dialler in self._diallers.values()]
        for task in tasks:
            task.cancel()
        await self._listener.close()
        if self._live is not None:
            self._live.close()
        await self.conduits.close()
        for link in list(self._open):
            link.finish("this peer is closing")
        if self._transfers is not None:
            await self._transfers.close()
        await self._wait_until_closed(CLOSE_S)
        for link in list(self._open):
            link.end("this peer is closing")
        await self._wait_until_closed(CLOSE_S / 10)
        if self.conduit is not None:
            self.conduit.close()
        if self.libp2p is not None:
            await self.libp2p.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_until_closed(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._open:
                    self._all_closed.clear()
                    await self._all_closed.wait()

    # --- who may come in ----------------------------------------------------------------------

    def _arrived(self, connection: socket.socket, way: Way) -> None:
        """Somebody has come through a conduit: it is let in as at the port."""
        if self._closing:
            connection.close()
        else:
            self._listener.take(connection, partial(self._judge_inbound, way=way))

    def _judge_inbound(
        self, identity: PeerIdentity, protocol: str, way: Way = DIRECT
    ) -> asyncio.BufferedProtocol | None:
        if self._closing:
            return None
        if protocol == LINK_PROTOCOL:
            refusal = self._link_refusal(identity.peer)
            if not refusal:
                conduit = self._keys.name_of(way.conduit)
                return Link(identity, False, self, self._limits, self._counters, conduit)
            count(self._counters, refusal)
            return None
        if protocol == CONDUIT_PROTOCOL and way != DIRECT:
            count(self._counters, refusals.NESTED)
            return None
        if protocol == CONDUIT_PROTOCOL and self.conduit is not None:
            return self.conduit.connection(identity)
        if protocol == TRANSFER_PROTOCOL and self._transfers is not None:
            return self._transfers.connection(self._identity.network, self._identity.peer, identity, way)
        if protocol == LIVE_PROTOCOL and self._live is not None:
            return self._live.connection(identity)
        count(self._counters, refusals.STRANGER)
        return None

    def _judge_tls(self, identity: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
        if protocol == LINK_PROTOCOL and self._settings.transport == "libp2p":
            count(self._counters, refusals.OTHER_ROAD)
            return None
        return self._judge_inbound(identity, protocol)

    def _judge_libp2p(self, identity: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
        taker = self._judge_inbound(identity, LINK_PROTOCOL if protocol == LINK_STREAM else protocol)
        if isinstance(taker, Link):
            taker.road = "libp2p"
        return taker

    def _link_refusal(self, peer: PeerId) -> str:
        """Say for which reason an accepted connection of `peer` does not become its link, or ''."""
        if peer == self._identity.peer:
            return refusals.STRANGER
        if self._pauses.lasts(peer):
            return refusals.PAUSED
        link = self._up.get(peer)
        mine_comes_first = self._identity.peer < peer
        if peer in self._awaiting_welcome and mine_comes_first:
            return refusals.DUPLICATE
        if link is None:
            return refusals.BUSY if len(self._up) >= self._limits.links else ""
        young = asyncio.get_running_loop().time() - link.up_at_s < _CROSSING_S
        return refusals.DUPLICATE if mine_comes_first and link.dialled and young else ""

    # --- dialling -----------------------------------------------------------------------------

    def _dial_from_now_on(self, member: Member) -> None:
        yields = self._identity.peer > member.peer
        link = self._up.get(member.peer)
        state: State = "down" if link is None else "conduit" if link.conduit else "direct"
        grace_s = GRACE_S if self._settings.listen else 0.0
        more = self.libp2p.nearby.of if self.libp2p is not None else lambda peer: ()
        self._diallers[member.peer] = Dialler(member, self._dial, yields, state, grace_s, more)

    async def _dial(self, member: Member, address: str) -> bool:
        """Try one address of `member`; True once the other side has taken the link."""
        full = len(self._up) >= self._limits.links + (member.peer in self._up)
        if full or self._pauses.lasts(member.peer) or member.peer in self._identity.trust.revoked:
            return False
        try:
            found = split_address(address)
        except DecodeError:
            return False
        taken = self.found.is_taken(member.peer, address, self._up)
        if taken or found.peer not in (None, member.peer):
            return False
        judge = partial(self._judge_dialled, member, address)
        doorway: Doorway | ProofDoor = Doorway(self._identity.trust, self._counters, judge)
        if found.libp2p and self.libp2p is not None:
            doorway = self.libp2p.door(judge)
        elif found.libp2p or self._settings.transport == "libp2p":
            return False  # no road of ours
        timeout_ms, welcomed = self._limits.handshake_timeout_ms, False
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                if self.libp2p is not None and isinstance(doorway, ProofDoor):
                    await self.libp2p.connect(doorway, member.peer, address)
                elif isinstance(doorway, Doorway):
                    context = self._identity.link_context
                    await connect(doorway, address, context, timeout_ms, self.conduits.open)
                if isinstance(doorway.admitted, Link):
                    welcomed = await asyncio.shield(doorway.admitted.welcome)
        except (OSError, ValueError, DecodeError):  # TimeoutError and ssl.SSLError are OSErrors
            pass
        finally:
            doorway.abandoned = True
            if isinstance(doorway.admitted, Link) and not doorway.admitted.up:
                doorway.admitted.end("the other side did not take the link")
        return welcomed

    def _judge_dialled(
        self, wanted: Member, address: str, identity: PeerIdentity, protocol: str
    ) -> Link | None:
        """Take what was dialled for a link with who answers, whether that is who was wanted or not."""
        place, peer = split_address(address), identity.peer
        through_conduit, link = place.conduit is not None, self._up.get(peer)
        taken = link is not None and (through_conduit or not link.conduit)
        strange = protocol not in (LINK_PROTOCOL, LINK_STREAM)
        if strange or peer != wanted.peer:
            count(self._counters, refusals.WRONG_PEER)
            full = link is None and len(self._up) >= self._limits.links
            if strange or through_conduit or full or self._pauses.lasts(peer):
                return None
            self.found.note(wanted, address, identity)
            # The other side takes this for the newest link, whatever there was before: so does this one.
            taken = peer == self._identity.peer
        if self._closing or taken or peer in self._awaiting_welcome:
            return None
        made = Link(identity, True, self, self._limits, self._counters, self._keys.name_of(place.conduit))
        made.road = "libp2p" if place.libp2p else "tls"
        return made

    # --- what links tell (LinkOwner) ----------------------------------------------------------

    def link_connected(self, link: Link) -> None:
        """A connection was handed over: welcome the other side, or wait for its welcome."""
        self._open[link] = None
        if link.dialled:
            self._awaiting_welcome[link.peer] = link
            return
        if (own := self._awaiting_welcome.get(link.peer)) is not None:
            count(self._counters, refusals.DUPLICATE)
            own.end("the other side's connection was taken instead")
        if link.peer in self._diallers:
            self._diallers[link.peer].give_up_attempt()
        link.ping()
        self._set_up(link)

    def link_welcomed(self, link: Link) -> None:
        """The other side took the link that this side dialled."""
        if self._awaiting_welcome.get(link.peer) is link:
            del self._awaiting_welcome[link.peer]
        if not self._closing:
            link.ping()
            self._set_up(link)

    def link_frame(self, link: Link, frame: bytes) -> None:
        """Hand a frame to the handler."""
        if link.up and not self._closing and self._handler is not None:
            handler = self._handler
            self._guard(link, lambda: handler.frame_received(link.peer, frame))

    def link_lost(self, link: Link, reason: str) -> None:
        """A connection is gone; the handler hears of it if it was the link."""
        self._open.pop(link, None)
        self._all_closed.set()
        if self._awaiting_welcome.get(link.peer) is link:
            del self._awaiting_welcome[link.peer]
        self._set_down(link, reason)

    # --- the table of links -------------------------------------------------------------------

    def _set_up(self, link: Link) -> None:
        if (old := self._up.get(link.peer)) is not None:
            self._set_down(old, "a newer connection replaced the link")
            old.end("a newer connection replaced the link")
        link.up = True
        link.up_at_s = asyncio.get_running_loop().time()
        self._up[link.peer] = link
        self.found.settle(link.peer)
        if link.peer in self._diallers:
            self._diallers[link.peer].link_up(bool(link.conduit))
        if (handler := self._handler) is not None:
            self._guard(link, lambda: handler.link_up(link.identity))

    def _set_down(self, link: Link, reason: str) -> None:
        if self._up.get(link.peer) is not link:
            return
        del self._up[link.peer]
        link.up = False
        self._paths.remember(link)
        if link.peer in self._diallers:
            self._diallers[link.peer].link_down()
        if self._handler is not None and not self._closing:
            handler = self._handler
            self._guard(link, lambda: handler.link_down(link.peer, reason))

    def _guard(self, link: Link, call: Callable[[], None]) -> None:
        """Call the handler; what it raises ends one link and nothing else."""
        try:
            call()
        except Exception:
            logger.exception("the handler failed on the link to %s", link.identity.name)
            count(self._counters, refusals.HANDLER)
            link.end("the handler failed")

    def _tick(self) -> None:
        """Look after all links: ping where this side is idle, end where the other side is silent."""
        loop = asyncio.get_running_loop()
        for link in list(self._up.values()):
            if not link.check_alive(loop.time()):
                count(self._counters, refusals.SILENT)
                link.end("nothing was heard of the other side")
        self._keepalive = loop.call_later(self._limits.keepalive_ms / 4000, self._tick)
