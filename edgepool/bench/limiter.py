"""Slow links without rights: a proxy on loopback that passes bytes on at a rate, whatever they are.

Where a machine forbids network namespaces, each holder stands behind one of these. TLS passes through
it unseen. It cannot lose packets, and it counts what TCP carries, without headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

PIECE_BYTES = 64 * 1024
BURST_S = 0.02


class TokenBucket:
    """Lets `bytes_per_s` through, and as many as `BURST_S` brings at once; all times in seconds."""

    def __init__(self, bytes_per_s: float, clock: Callable[[], float]) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._burst = bytes_per_s * BURST_S
        self._tokens = self._burst
        self._since_s = clock()

    def wait_s(self, size_bytes: int) -> float:
        """Take `size_bytes` and return how long to wait before they may go."""
        now_s = self._clock()
        self._tokens = min(self._burst, self._tokens + (now_s - self._since_s) * self._rate)
        self._since_s = now_s
        self._tokens -= size_bytes
        return max(0.0, -self._tokens / self._rate)


class Limiter:
    """Proxies on loopback, each with one rate for all that comes back through it."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def before(self, host: str, port: int, bytes_per_s: float) -> int:
        """Return the port of a proxy before that one, which sends back at a rate at most."""
        bucket = TokenBucket(bytes_per_s, asyncio.get_running_loop().time)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                back, forth = await asyncio.open_connection(host, port, limit=PIECE_BYTES)
                for task in (_pass(reader, forth, None), _pass(back, writer, bucket)):
                    made = asyncio.create_task(task)
                    self._tasks.add(made)
                    made.add_done_callback(self._tasks.discard)
                return
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=PIECE_BYTES)
        self._servers.append(server)
        found: int = server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """End all proxies and what goes through them."""
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bucket: TokenBucket | None
) -> None:
    """Pass on until the end; the end of one side is the end of the other."""
    try:
        with suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                if bucket is not None and (wait_s := bucket.wait_s(len(piece))):
                    await asyncio.sleep(wait_s)
                writer.write(piece)
                await writer.drain()
    finally:
        writer.close()
