"""A bare echo over asyncio's TLS 1.3: what 1 KB there and back takes at least."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import perf_counter
from typing import Any

from edgepool.bench.bare import ECHO_BYTES, EchoClient, EchoServer
from edgepool.bench.figures import percentile
from edgepool.bench.transfer.side import Where
from edgepool.config import load_peer_settings
from edgepool.errors import Unavailable
from edgepool.transport.identity import load_identity


class Sender:
    """Sends back every 1 KB that it gets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: asyncio.Server | None = None

    async def open(self, host: str, path: Path) -> Where:
        """Listen; the file does not matter."""
        context = load_identity(load_peer_settings(self._folder)).server_context
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(EchoServer, host, 0, ssl=context)
        return {"port": self._server.sockets[0].getsockname()[1]}

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()


class Receiver:
    """Asks and takes the answer, on one connection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client: EchoClient | None = None

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Connect to the first of them."""
        context = load_identity(load_peer_settings(self._folder)).link_context
        _, self._client = await asyncio.get_running_loop().create_connection(
            EchoClient, senders[0]["host"], senders[0]["port"], ssl=context, server_hostname=""
        )

    async def receive(self, trips: int = 1, **_: Any) -> dict[str, Any]:
        """Ask so often, one after the other; tell 'p50_s'."""
        assert self._client is not None
        data = bytes(range(256)) * (ECHO_BYTES // 256)
        took_s = []
        for _number in range(trips):
            start_s = perf_counter()
            answer = await self._client.ask(data)
            took_s.append(perf_counter() - start_s)
            if answer != data:
                raise Unavailable("other bytes came back than were sent")
        return {"p50_s": percentile(took_s, 50)}

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None and self._client.transport is not None:
            self._client.transport.abort()
