"""How a connection that does not begin with TLS begins: a name of 8 bytes, then a token of 32.

A token is a secret that both sides have agreed on over a connection under TLS before. It names one stream, is
good once, and proves nothing to anybody who does not know it. Whoever begins otherwise is sent away.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping

TLS_HANDSHAKE = 0x16
"""The first byte of every TLS connection (RFC 8446, 5.1); no name begins with it."""
NAME_BYTES = 8
TOKEN_BYTES = 32

TakePlain = Callable[[socket.socket, bytes], bool]
"""Is given a connection and the token that it began with; False if the token is not known.

The connection is the taker's if it says True, and has nothing read from it but the greeting.
"""


async def first_byte(connection: socket.socket) -> int:
    """Return the first byte that waits on a non-blocking connection, and leave it there; -1 at the end."""
    while True:
        try:
            waiting = connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            await _readable(connection)
            continue
        return waiting[0] if waiting else -1


async def read_greeting(
    connection: socket.socket, takers: Mapping[bytes, TakePlain]
) -> tuple[TakePlain, bytes] | None:
    """Read a greeting and not a byte more; return who is to take the connection, and the token, or None."""
    taker = takers.get(await _read(connection, NAME_BYTES))
    if taker is None:
        return None
    token = await _read(connection, TOKEN_BYTES)
    return (taker, token) if len(token) == TOKEN_BYTES else None


async def _read(connection: socket.socket, size_bytes: int) -> bytes:
    loop = asyncio.get_running_loop()
    found = b""
    while len(found) < size_bytes:
        piece = await loop.sock_recv(connection, size_bytes - len(found))
        if not piece:
            break
        found += piece
    return found


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, tell)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
