"""The holder's end of a bundle: much small data for one requester, on one data connection.

Whatever waits goes into frames together, each item behind its length; an item that is not served is
answered by the reason. What was served lately is in memory; bundles.py is the other end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from edgepool.errors import DecodeError
from edgepool.model.record import SignedRecord
from edgepool.model.transfer import INLINE_BYTES, TransferRequest, confirmation_of
from edgepool.transport.lane import (
    FRAME_BYTES,
    ITEM_HEADER_BYTES,
    LAST,
    LaneKey,
    Sealer,
    put_item_header,
)
from edgepool.transport.serving import Sending, TransferSource
from edgepool.transport.smalldata import SmallData

MAX_ITEMS_OWED = 1024
"""A requester may wait for so many items of a bundle at a time."""
MAX_REASON_BYTES = 256
DECIDED_AT_ONCE = 32
"""So many items are decided on before the loop looks at what else there is."""
NOT_SMALL = "it is not whole, small data: ask for it alone"
"""Why something is not sent as an item of a bundle."""

Item = TransferSource | str
"""What is served, or the reason why it is not."""
_Outcome = tuple[TransferSource, int, str]
"""What was served, how many bytes of it were sent, and what failed."""


class Bundle(Sending[list[Item]]):
    """A bundle being served: what is wanted are items."""

    def __init__(self, key: LaneKey, ended: Callable[[Bundle], None], small: SmallData) -> None:
        """Data comes from `small` if it is there, else from its file."""
        super().__init__(key, ended)
        self._small = small
        self._items = 0
        self._content = memoryview(bytearray(FRAME_BYTES))
        self._filled = 0
        self._first = 0
        self._framed: list[_Outcome] = []
        self._owing: dict[int, TransferSource] = {}

    def expect(self, count: int) -> None:
        """So many more are asked for; what is decided about them comes by `send`."""
        self._asked += count

    def send(self, items: list[Item]) -> None:
        """Send these after those that came before."""
        for item in items:
            if isinstance(item, TransferSource):
                self._owing[id(item)] = item
        self._wanted.put(items)

    def settle(self) -> None:
        """Tell the owners of what was not sent that it is over."""
        owing, self._owing = self._owing, {}
        for source in owing.values():
            source.done(0, self.failure or "the requester ended the transfer early")

    # --- in the thread ------------------------------------------------------------------------

    def _send_wanted(self, sealer: Sealer) -> None:
        while (items := self._wanted.get()) is not None:
            for item in items:
                self._add(sealer, item)
            if self._wanted.empty() and self.owed == self._items:  # else more is about to be decided
                self._flush(sealer)

    def _add(self, sealer: Sealer, item: Item) -> None:
        """Put an item into the frame, behind those that are there, or into the next one."""
        if isinstance(item, str):
            self._put_refusal(sealer, item)
            return
        size_bytes = item.manifest.size_bytes
        if item.paced and item.pace is not None:
            self._flush(sealer)  # what is ready need not wait for the budget of this one
            item.pace.wait(size_bytes)
        data, failure = self._small.get(item.manifest), ""
        if data is None:
            data, failure = self._small.read(item.manifest, item.path)
        self._framed.append((item, len(data), failure))
        if failure:
            self._put_refusal(sealer, failure)
        else:
            start = self._make_room(sealer, size_bytes)
            self._content[start : start + size_bytes] = data
            self._put(start, size_bytes, refused=False)

    def _put_refusal(self, sealer: Sealer, reason: str) -> None:
        text = reason.encode()[:MAX_REASON_BYTES]
        start = self._make_room(sealer, len(text))
        self._content[start : start + len(text)] = text
        self._put(start, len(text), refused=True)

    def _make_room(self, sealer: Sealer, size_bytes: int) -> int:
        """Return where the content of the next item begins, for which there is room then."""
        if self._filled + ITEM_HEADER_BYTES + size_bytes > FRAME_BYTES:
            self._flush(sealer)
        return self._filled + ITEM_HEADER_BYTES

    def _put(self, start: int, size_bytes: int, refused: bool) -> None:
        put_item_header(self._content, start - ITEM_HEADER_BYTES, size_bytes, refused)
        self._filled = start + size_bytes
        self._items += 1

    def _flush(self, sealer: Sealer) -> None:
        """Send the frame, if there is anything in it."""
        if not self._filled:
            return
        assert self._connection is not None
        self._sending += self._items
        self._connection.sendall(sealer.seal(self._first, self._content[: self._filled], LAST))
        self._first, self._items, self._filled = self._sending, 0, 0
        framed, self._framed = self._framed, []
        with suppress(RuntimeError):  # the loop may be closed
            self._loop.call_soon_threadsafe(self._sent, framed)

    def _tell_rest(self) -> None:
        """What was not sent is told of at the end."""

    # --- on the loop again --------------------------------------------------------------------

    def _sent(self, framed: list[_Outcome]) -> None:
        for source, size_bytes, failure in framed:
            if self._owing.pop(id(source), None) is not None:
                source.moved(size_bytes)
                source.done(size_bytes, failure)
                if failure:
                    source.doubted(0)

    def _close_files(self) -> None:
        """Files are open only while they are read."""


class Deciding:
    """Has items of bundles decided on, a few at a time: votes need not wait for a thousand of them."""

    def __init__(self, decide: Callable[[TransferRequest], Item]) -> None:
        self._decide = decide
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Bundle, SignedRecord]] = deque()

    def take(self, bundle: Bundle, confirmations: tuple[SignedRecord, ...]) -> None:
        """Have more items of a bundle sent. DecodeError if a requester may not ask so."""
        if bundle.owed + len(confirmations) > MAX_ITEMS_OWED:
            raise DecodeError(f"requests for more than {MAX_ITEMS_OWED} items at a time")
        for confirmation in confirmations:
            confirmation_of(confirmation)
        bundle.expect(len(confirmations))
        if not self._waiting:
            self._loop.call_soon(self._decide_some)
        self._waiting += ((bundle, confirmation) for confirmation in confirmations)

    def _decide_some(self) -> None:
        """Decide on those that have waited for longest."""
        decided: dict[Bundle, list[Item]] = {}
        for _ in range(min(DECIDED_AT_ONCE, len(self._waiting))):
            bundle, confirmation = self._waiting.popleft()
            if not bundle.over:
                decided.setdefault(bundle, []).append(self._item(confirmation))
        for bundle, items in decided.items():
            bundle.send(items)
        if self._waiting:
            self._loop.call_soon(self._decide_some)

    def _item(self, confirmation: SignedRecord) -> Item:
        item = self._decide(TransferRequest(0, confirmation, b"", (), (), False, ()))
        if isinstance(item, str) or (item.has is None and item.manifest.size_bytes <= INLINE_BYTES):
            return item
        item.done(0, NOT_SMALL)
        return NOT_SMALL
