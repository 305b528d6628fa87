"""Opening a byte stream to an address: the one seam between where a peer is and how it is reached.

Links and transfers ask for a connected socket and do not know what lies between. What is behind it (TLS, or a
data stream) proves who is at the other end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from edgepool.model.ids import PeerId, split_address

OpenStream = Callable[[str], Awaitable[socket.socket]]
"""Opens a stream to a multiaddr; returns a connected, non-blocking TCP socket that its caller owns.

Raises OSError (which TimeoutError is), ValueError or DecodeError if that fails.
"""


class Way(NamedTuple):
    """How a stream goes: through which conduit (None: directly), and whether that is a relay of libp2p's."""

    conduit: PeerId | None = None
    libp2p: bool = False


DIRECT = Way()


async def open_direct(address: str) -> socket.socket:
    """Connect to a multiaddr without a conduit. It takes as long as the system tries: set a timeout."""
    found = split_address(address)
    if found.libp2p:
        raise OSError(0, "Noise is spoken there, not TLS")
    if found.conduit is not None:
        raise OSError(0, "it is reached through a conduit only")
    return await open_tcp(found.host, found.port)


async def open_tcp(host: str, port: int) -> socket.socket:
    """Connect to a host's port; each of its addresses is tried in turn."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError(0, f"'{host}' has no address")
    for family, kind, protocol, _, where in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(connection, where)
            return connection
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
    raise failure
