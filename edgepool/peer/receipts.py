"""What a fetch leaves on a chain: a receipt of what came from whom, and complaints of who sent wrong data.

They are written behind the fetch, which does not wait for them: the data is there whether or not a quorum
answers just now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgepool.errors import EdgepoolError
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import MAX_SHARES, Body, Complaint, DataOffer, Share, TransferReceipt

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

MAX_WAITING = 256
"""So many records may be on their way; what would be more waits until one stands."""
MAX_COMPLAINTS = 1024
"""So many complaints are remembered, so that the same one is not made again."""
CLOSE_S = 2.0

logger = logging.getLogger(__name__)


class Receipts:
    """Writes receipts and complaints of one peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._writing: set[asyncio.Task[None]] = set()
        self._complained: dict[tuple[PeerId, bytes], None] = {}

    async def receipt(
        self, chain: ChainId, offer: DataOffer, shares: Mapping[PeerId, int], duration_ms: int
    ) -> None:
        """Write that the data of an offer came, from these holders."""
        largest = sorted(shares, key=lambda holder: (-shares[holder], holder))[:MAX_SHARES]
        stated = tuple(Share(holder, shares[holder]) for holder in sorted(largest))
        receipt = TransferReceipt(
            offer.key, offer.version, offer.root, offer.size_bytes, stated, max(0, duration_ms)
        )
        await self._write(chain, receipt)

    async def complain(
        self, chain: ChainId, offer: DataOffer, holder: PeerId, chunk: int, confirmation: bytes
    ) -> None:
        """Write that a holder sent a wrong chunk; once for each holder and root."""
        if (holder, offer.root) in self._complained:
            return
        self._complained[holder, offer.root] = None
        if len(self._complained) > MAX_COMPLAINTS:
            del self._complained[next(iter(self._complained))]
        await self._write(chain, Complaint(offer.key, offer.root, chunk, holder, confirmation))

    async def close(self) -> None:
        """Wait a moment for what is on its way."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=CLOSE_S)
        for task in self._writing:
            task.cancel()
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _write(self, chain: ChainId, body: Body) -> None:
        while len(self._writing) >= MAX_WAITING:
            await asyncio.wait(self._writing, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._submit(chain, body), name="edgepool receipt")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _submit(self, chain: ChainId, body: Body) -> None:
        try:
            await self._peer.submit(body, chain=chain)
        except EdgepoolError as error:
            logger.warning("what a fetch leaves on chain %s does not stand there: %s", chain[:8], error)
