"""A bare copy over TCP alone, hashed as it comes: what a slow or bad link gives at best to one connection."""

from __future__ import annotations

import ssl
from typing import Any

from edgepool.bench.transfer import bare
from edgepool.transport.identity import Identity


class Sender(bare.Sender):
    """Sends the file without TLS."""

    def context(self, identity: Identity) -> ssl.SSLContext | None:
        """Return nothing: it is plain."""
        return None


class Receiver(bare.Receiver):
    """Receives the file without TLS, over a new connection each time: dialling belongs to the copy."""

    async def receive(self, keep: bool = False, **_: Any) -> dict[str, Any]:
        """Connect, and receive all."""
        await self.dial()
        return await super().receive(keep)

    def context(self, identity: Identity) -> ssl.SSLContext | None:
        """Return nothing: it is plain."""
        return None
