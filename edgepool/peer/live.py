"""Live streams of a peer: it publishes some, and lets those follow that have a confirmation."""

from __future__ import annotations

import asyncio
import secrets
from types import TracebackType
from typing import TYPE_CHECKING

from edgepool.config import LiveSettings
from edgepool.core.live.ring import Ring
from edgepool.errors import LocalError, Unavailable
from edgepool.model.ids import ChainId
from edgepool.model.live import MAX_SAMPLE_BYTES, LiveSample, live_root
from edgepool.model.record import DataOffer, SignedRecord, TransmissionConfirmation
from edgepool.model.twin import DataKey
from edgepool.peer.datavalues import LiveStatus
from edgepool.runtime.ports import Clock, PeerIdentity
from edgepool.transport.live_server import LiveGrant, LiveLog

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer


class LiveStreams:
    """What one peer publishes live."""

    def __init__(self, peer: Peer, settings: LiveSettings, clock: Clock) -> None:
        self._peer = peer
        self._settings = settings
        self._clock = clock
        self._open: dict[bytes, LiveStream] = {}

    def new(self, key: DataKey, chain: ChainId) -> LiveStream:
        """Return a stream that can be entered; see Peer.live."""
        return LiveStream(self, self._peer, key, chain, self._settings, self._clock)

    def add(self, root: bytes, stream: LiveStream) -> None:
        """A stream is being opened."""
        if root in self._open:
            raise LocalError(f"{stream.key} is published live by this peer already: use that stream")
        if len(self._open) >= self._settings.streams:
            raise LocalError(
                f"this peer publishes {self._settings.streams} live streams, and live.streams allows no more"
            )
        self._open[root] = stream

    def remove(self, root: bytes) -> None:
        """A stream is closed."""
        self._open.pop(root, None)

    def decide(self, identity: PeerIdentity, record: SignedRecord) -> LiveGrant | str:
        """Decide on a confirmation that a subscriber shows; a string is the condition that failed.

        Unavailable if asking again later may help.
        """
        body = record.record.body
        if not isinstance(body, TransmissionConfirmation):
            return "the request names no confirmation"
        if record.record.author != self._peer.id or not record.authentic():
            return "this publisher has not countersigned the confirmation"
        if body.requester != identity.peer:
            return "the confirmation is for another requester"
        if body.valid_until_ms < self._clock.now().wall_ms:
            raise Unavailable("the confirmation has expired by the publisher's clock")
        refused = self._peer.rights.refused_transfer(identity, body)
        if refused:
            return refused
        stream = self._open.get(body.root)
        if stream is None or stream.log is None:
            raise Unavailable("the publisher does not publish that live stream now")
        kind = stream.key.kind

        async def pace(size_bytes: int) -> None:
            await self._peer.budgets.sending.take(identity.peer, kind, size_bytes)

        def problem() -> str:
            return self._peer.rights.problem(identity, body)

        return LiveGrant(stream.log, body.valid_until_ms, pace, problem)

    def status(self) -> list[LiveStatus]:
        """Return what is published."""
        return [stream.status() for stream in self._open.values() if stream.log is not None]

    def close(self) -> None:
        """End all streams."""
        for stream in list(self._open.values()):
            stream.end()


class LiveStream:
    """One stream to put samples into; use it in 'async with'."""

    def __init__(
        self,
        streams: LiveStreams,
        peer: Peer,
        key: DataKey,
        chain: ChainId,
        settings: LiveSettings,
        clock: Clock,
    ) -> None:
        self.key = key
        self.log: LiveLog | None = None
        self._streams = streams
        self._peer = peer
        self._chain = chain
        self._settings = settings
        self._clock = clock
        self._root = live_root(peer.settings.network, key, peer.id)

    async def __aenter__(self) -> LiveStream:
        self._streams.add(self._root, self)
        try:
            await self._offer()
        except BaseException:
            self._streams.remove(self._root)
            raise
        settings = self._settings
        epoch = 1 + secrets.randbits(52)  # another one in each life, whatever the clock says
        self.log = LiveLog(Ring(epoch, settings.ring_bytes, settings.ring_age_s * 1000), settings.gather_ms)
        self._peer.holding(self._root, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    async def put(self, data: bytes) -> int:
        """Add a sample; return its number, from 1 on. It never waits for subscribers.

        LocalError if it has more than MAX_SAMPLE_BYTES or the stream is not open.
        """
        if self.log is None:
            raise LocalError(f"the live stream {self.key} is not open: use it inside 'async with'")
        if len(data) > MAX_SAMPLE_BYTES:
            raise LocalError(
                f"a sample has {len(data)} bytes, {MAX_SAMPLE_BYTES} are allowed: publish it as data"
            )
        now = self._clock.now()
        number, pause = self.log.put(LiveSample(now.wall_ms, bytes(data)), now.monotonic_ms)
        if pause:
            await asyncio.sleep(0)
        return number

    def end(self) -> None:
        """Close the stream: subscribers are told, and look for it again."""
        log, self.log = self.log, None
        if log is not None:
            self._streams.remove(self._root)
            self._peer.holding(self._root, 0, held=False)
            log.end("the publisher has closed the stream")

    def status(self) -> LiveStatus:
        """Return how the stream stands."""
        assert self.log is not None
        ring = self.log.ring
        return LiveStatus(
            key=str(self.key),
            epoch=ring.epoch,
            put=ring.next - 1,
            held=ring.next - ring.first,
            held_bytes=ring.size_bytes,
            subscribers=len(self.log.feeds),
        )

    async def _offer(self) -> None:
        """Offer the stream on its chain, unless it is offered there already."""
        state = self._peer.chain_state(self._chain)
        newest = state.offers(self.key)
        if any(entry.holder == self._peer.id and entry.offer.root == self._root for entry in newest):
            return
        version = 1 + max((entry.offer.version for entry in newest), default=0)
        addresses = self._peer.addresses
        offer = DataOffer(self.key, version, self._root, 0, addresses[0] if addresses else "", 100)
        await self._peer.submit(offer, chain=self._chain)
