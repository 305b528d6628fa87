"""The requester's end of a bundle: much small data from one holder, in few messages and large frames.

Every item is hashed, and is right only if the manifest made of it has the confirmed root; so manifests need
not travel. What is not right, or of an unusual manifest, is not handed on: ask for it alone, which also
says whose fault it is. transfer_bundle.py is the other end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from edgepool.errors import DecodeError, EdgepoolError, Refused, RemoteError, Unavailable
from edgepool.model.ids import PeerId
from edgepool.model.record import SignedRecord, TransmissionConfirmation
from edgepool.model.transfer import INLINE_BYTES, MAX_ITEMS, confirmation_of
from edgepool.model.twin import Manifest, small_manifest
from edgepool.transport.lane import (
    FRAME_BYTES,
    HEADER_BYTES,
    LAST,
    SEAL_BYTES,
    LaneKey,
    items_of,
    read_header,
)
from edgepool.transport.receiving import Receiving
from edgepool.transport.serving import Pace
from edgepool.transport.transfer import TransferClient
from edgepool.transport.transfer_bundle import MAX_ITEMS_OWED
from edgepool.transport.transfer_connection import OpenTransfer

ASK_ITEMS = MAX_ITEMS
ASK_BYTES = 60 * 1024
"""One message asks for so many items, in so many bytes of confirmations, at most."""
FIRST_ITEMS = 128
"""So many may be owed at first, then as many more as have come: the holder begins to send at once."""

Keep = Callable[[int, Manifest, memoryview], None]
"""Takes the data of an item, already checked, in a thread; the data is only valid during the call."""


class BundleReceiver(Receiving):
    """Takes the items that one holder sends, in the order in which they are asked for.

    In its thread each item that is right is handed to `keep`. On the event loop `arrived(outcomes)` is
    called with what became of items, in order: None, or why it did not come; `ended(error)` once, after that.
    """

    def __init__(
        self,
        holder: PeerId,
        connection: socket.socket,
        key: LaneKey,
        wanted: Sequence[TransmissionConfirmation],
        stall_s: float,
        pace: Callable[[int], Pace] | None,
        keep: Keep,
        arrived: Callable[[list[EdgepoolError | None]], None],
        ended: Callable[[Exception | None], None],
    ) -> None:
        super().__init__(holder, connection, key, stall_s, ended)
        self.expected = 0
        self._wanted = wanted
        self._pace = pace
        self._keep = keep
        self._arrived = arrived
        self._next = 0
        self._sealed = memoryview(bytearray(FRAME_BYTES + SEAL_BYTES))
        self._content = memoryview(bytearray(FRAME_BYTES))
        self._start()

    @property
    def asked(self) -> int:
        """How many items are asked for and have not come."""
        return self.expected - self._next

    # --- in the thread ------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Receive the next frame, and hand its items on."""
        self._fill(self._header, patient=True)
        header = bytes(self._header[:HEADER_BYTES])
        index, length, flags = read_header(header)
        if index != self._next or flags != LAST or not length:
            raise DecodeError(f"a frame of {length} bytes that is not the next one of the bundle")
        sealed, content = self._sealed[: length + SEAL_BYTES], self._content[:length]
        self._fill(sealed)
        self._opener.open(header, sealed, content)
        outcomes: list[EdgepoolError | None] = []
        for item, refused in items_of(content):
            if not self.asked:
                raise DecodeError("more items than were asked for")
            outcomes.append(self._take(self._next, item, refused))
            self._next += 1
        self._loop.call_soon_threadsafe(self._arrived, outcomes)
        return True

    def _take(self, index: int, item: memoryview, refused: bool) -> EdgepoolError | None:
        """Check an item and keep it; return why it did not come."""
        if refused:
            return Refused(str(item[:256], "utf-8", "replace"), f"by holder {self._holder}")
        if self._pace is not None and (pace := self._pace(index)).limits:
            pace.wait(len(item))
        confirmed = self._wanted[index]
        manifest = small_manifest(item) if len(item) == confirmed.size_bytes else None
        if manifest is None or manifest.root != confirmed.root:
            return RemoteError(self._holder, "an item of a bundle is not what was confirmed")
        self._keep(index, manifest, item)
        return None

    def _tell_rest(self) -> None:
        """Each frame is told of at once."""


class _Fetching:
    """One bundle on its way: asks for more items as some come."""

    def __init__(self, transfer: OpenTransfer, confirmations: Sequence[SignedRecord]) -> None:
        self.outcomes: list[EdgepoolError | None] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transfer = transfer
        self._confirmations = confirmations
        self._asked = 0

    def arrived(self, receiver: BundleReceiver, outcomes: list[EdgepoolError | None]) -> None:
        """Take note of what came."""
        self.outcomes += outcomes
        if len(self.outcomes) < len(self._confirmations):
            self.ask(receiver)
        elif not self.done.done():
            self.done.set_result(None)

    def ask(self, receiver: BundleReceiver) -> None:
        """Ask for as many as may be owed."""
        confirmations, came = self._confirmations, len(self.outcomes)
        window = min(MAX_ITEMS_OWED, FIRST_ITEMS + came)
        if 2 * (self._asked - came) > window:
            return  # later, for more at a time: a message costs as much as several items
        while self._asked < len(confirmations):
            end = self._asked
            size_bytes = confirmations[end].size_bytes
            while end < len(confirmations) and end - self._asked < ASK_ITEMS and size_bytes <= ASK_BYTES:
                end += 1
                size_bytes += confirmations[end].size_bytes if end < len(confirmations) else 0
            if end - came > window:
                return
            receiver.expected = end
            self._transfer.ask_items(tuple(confirmations[self._asked : end]))
            self._asked = end


async def fetch_bundle(
    client: TransferClient,
    holder: PeerId,
    addresses: Sequence[str],
    confirmations: Sequence[SignedRecord],
    keep: Keep,
    pace: Callable[[int], Pace] | None = None,
) -> dict[int, EdgepoolError]:
    """Fetch the data of these confirmations, each of at most INLINE_BYTES, from one holder.

    Returns, by place, why something was not handed to `keep`: all that did not come if the holder was lost.
    Raises Refused, RemoteError or Unavailable if nothing could be asked for, and what `keep` raised.
    """
    wanted = [confirmation_of(one) for one in confirmations]
    assert wanted
    assert all(one.size_bytes <= INLINE_BYTES for one in wanted)
    transfer = await client.open_bundle(holder, addresses)
    assert transfer.key is not None
    fetching = _Fetching(transfer, confirmations)
    try:
        connection = await transfer.connect()
        ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        receiver = BundleReceiver(
            holder,
            connection,
            transfer.key,
            wanted,
            client.limits.transfer_stall_ms / 1000,
            pace,
            keep,
            arrived=lambda outcomes: fetching.arrived(receiver, outcomes),
            ended=ended.set_result,
        )
        try:
            fetching.ask(receiver)
            waits = (fetching.done, ended, transfer.lost)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            receiver.stop()
            await asyncio.wait((ended,))  # then all is told of that has come, and nothing more is kept
    finally:
        transfer.end(fetching.done.done())
    outcomes = fetching.outcomes
    failures = {index: failure for index, failure in enumerate(outcomes) if failure is not None}
    if not fetching.done.done():
        error = ended.result() or (transfer.lost.result() if transfer.lost.done() else None)
        if error is not None and not isinstance(error, (Refused, RemoteError, Unavailable)):
            raise error  # from `keep`
        lost = error or Unavailable(f"{holder} ended the transfer early")
        failures |= dict.fromkeys(range(len(outcomes), len(wanted)), lost)
    return failures
