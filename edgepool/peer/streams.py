"""The part of a `Peer` with live streams: small samples from one publisher to many subscribers."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from edgepool.core.live.following import Item
from edgepool.model.ids import ChainId
from edgepool.model.live import Cursor
from edgepool.model.twin import DataKey
from edgepool.peer.data import checked_key
from edgepool.peer.live import LiveStream
from edgepool.peer.subscription import Subscriptions
from edgepool.peer.view import PeerView


class StreamingPeer(PeerView):
    """Publishes live streams and follows those of others."""

    _follows: Subscriptions

    def live(self, key: DataKey | str, *, chain: ChainId | None = None) -> LiveStream:
        """Return a live stream to enter with 'async with' and to `put` samples into, see LiveStream.

        It is offered on `chain` under `key` once. Entering raises LocalError, Refused, Unavailable.
        """
        self._check_open()
        return self._live.new(checked_key(key), self._membership.pick(chain))

    def subscribe(
        self, key: DataKey | str, *, cursor: Cursor | str | None = None, oldest: bool = False
    ) -> AsyncGenerator[Item, None]:
        """Follow a live stream, wherever in reach it is published: an async iterator that does not end.

        It yields Sample, Missed (the numbers that are lost) and Restarted (the publisher began anew), in
        order, over lost connections too; while nobody publishes it waits. It begins with the next sample,
        with the `oldest` that is held, or behind the sample with this `cursor`. Raises Refused if the
        stream may not be followed, LocalError if `key` is no live stream, RemoteError.
        """
        self._check_open()
        return self._follows.items(checked_key(key), cursor, oldest)

    def _check_open(self) -> None:
        raise NotImplementedError
