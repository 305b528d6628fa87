"""The part of a `Peer` with live streams: small samples from one publisher to many subscribers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from edgepool.core.live.following import Item
from edgepool.model.ids import ChainId
from edgepool.model.live import Cursor
from edgepool.model.twin import DataKey
from edgepool.peer.data import checked_key, checked_purpose
from edgepool.peer.datavalues import LiveStatus
from edgepool.peer.live import LiveStream, LiveStreams
from edgepool.peer.subscription import Subscriptions
from edgepool.peer.view import PeerView
from edgepool.runtime.ports import Clock
from edgepool.transport.dial import OpenStream
from edgepool.transport.identity import Identity
from edgepool.transport.live_server import LiveServer
from edgepool.transport.refusals import Counters

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer


class Live:
    """Everything live of one peer: what it publishes, what it follows, and the server for its subscribers."""

    def __init__(
        self, peer: Peer, identity: Identity, clock: Clock, open_stream: OpenStream, counters: Counters
    ) -> None:
        settings = peer.settings.live
        self.streams = LiveStreams(peer, settings, clock)
        self.follows = Subscriptions(peer, identity, clock, open_stream)
        decide, limits = self.streams.decide, peer.settings.limits
        self.server = LiveServer(decide, limits, settings.subscribers, clock, counters)

    async def close(self) -> None:
        """End it all."""
        self.streams.close()
        await self.follows.close()


class StreamingPeer(PeerView):
    """Publishes live streams and follows those of others."""

    _live: Live

    def live(self, key: DataKey | str, *, chain: ChainId | None = None) -> LiveStream:
        """Return a live stream to enter with 'async with' and to `put` samples into, see LiveStream.

        It is offered on `chain` under `key` once. Entering raises LocalError, Refused, Unavailable.
        """
        self._check_open()
        return self._live.streams.new(checked_key(key), self._membership.pick(chain))

    def subscribe(
        self,
        key: DataKey | str,
        *,
        cursor: Cursor | str | None = None,
        oldest: bool = False,
        purpose: str = "",
    ) -> AsyncGenerator[Item, None]:
        """Follow a live stream, wherever in reach it is published: an async iterator that does not end.

        It yields Sample, Missed (the numbers that are lost) and Restarted (the publisher began anew), in
        order, over lost connections too; while nobody publishes it waits. It begins with the next sample,
        with the `oldest` that is held, or behind the sample with this `cursor`. `purpose` is what it is
        wanted for, as for `fetch`. Raises Refused if the stream may not be followed, LocalError if `key` is
        no live stream, RemoteError.
        """
        self._check_open()
        return self._live.follows.items(checked_key(key), cursor, oldest, checked_purpose(purpose))

    def _live_status(self) -> list[LiveStatus]:
        return self._live.streams.status()

    def _check_open(self) -> None:
        raise NotImplementedError
