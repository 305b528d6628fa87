"""Multicast DNS for the child, on IPv4: asks who is on the local network, and says that this peer is.

py-libp2p's own is not used: it stops its loop for seconds, and speaks on all interfaces.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable

import trio

from edgepool.transport.libp2p_child.mdnswords import MAX_DATAGRAM_BYTES, NoDns, answer, question, read
from edgepool.transport.refusals import MDNS

GROUP, PORT = "224.0.0.251", 5353
FIRST_S, LONGEST_S = 1.0, 60.0
"""After so long it asks again, and then after twice as long each time up to the longest."""
ANSWER_EVERY_S = 1.0
"""So often it answers at most, whoever asks how often (RFC 6762, 6)."""
AGAIN_S = 30.0
"""After so long a network that could not be used is tried again."""

TELL_AGAIN_S = 30.0
TELL_EVERY_S = 0.05
"""The same answer is told once in so long, and any at most so often, however the group is flooded."""
MAX_TOLD = 256
_IP_MULTICAST_ALL = 49

Found = Callable[[str, str], Awaitable[None]]


class Mdns:
    """Looks around on the network of one interface. `found` is told (peer id, multiaddr) of each answer.

    `host` is the interface's IPv4 address; `addresses` are this peer's multiaddrs with /p2p/PEER, if any.
    """

    def __init__(
        self, me: str, host: str, addresses: tuple[str, ...], found: Found, count: Callable[[str], None]
    ) -> None:
        self._me = me
        self._host = host
        # The name is to be ours and to say nothing, so it is random.
        self._answer = answer(secrets.token_hex(16), addresses) if addresses else b""
        self._found = found
        self._count = count
        self._answered_at_s = -ANSWER_EVERY_S
        self._told_at_s: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Look around until cancelled."""
        while True:
            try:
                with _joined(self._host) as socket_:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._ask, socket_)
                        nursery.start_soon(self._listen, socket_)
            except* OSError:
                self._count(MDNS)
            await trio.sleep(AGAIN_S)

    async def _ask(self, socket_: trio.socket.SocketType) -> None:
        pause_s = FIRST_S
        await self._tell(socket_)
        while True:
            await socket_.sendto(question(), (GROUP, PORT))
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_S)

    async def _listen(self, socket_: trio.socket.SocketType) -> None:
        while True:
            datagram, _ = await socket_.recvfrom(MAX_DATAGRAM_BYTES + 1)
            try:
                heard = read(datagram)
            except NoDns:
                continue
            if heard.asks:
                await self._tell(socket_)
            for peer, address in heard.found:
                if peer != self._me and self._is_news((peer, address)):
                    await self._found(peer, address)
                    await trio.sleep(TELL_EVERY_S)

    def _is_news(self, found: tuple[str, str]) -> bool:
        now_s = trio.current_time()
        if now_s - self._told_at_s.get(found, -TELL_AGAIN_S) < TELL_AGAIN_S:
            return False
        self._told_at_s.pop(found, None)
        if len(self._told_at_s) >= MAX_TOLD:
            del self._told_at_s[next(iter(self._told_at_s))]
        self._told_at_s[found] = now_s
        return True

    async def _tell(self, socket_: trio.socket.SocketType) -> None:
        now_s = trio.current_time()
        if self._answer and now_s - self._answered_at_s >= ANSWER_EVERY_S:
            self._answered_at_s = now_s
            await socket_.sendto(self._answer, (GROUP, PORT))


def _joined(host: str) -> trio.socket.SocketType:
    """Return a socket of the group on the interface with address `host`; OSError if that cannot be."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        # Others on this machine speak multicast DNS as well, and all are to hear it.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((GROUP, PORT))
        interface = socket.inet_aton(host)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + interface)
        # Or what comes by other interfaces, for other programs, would be heard, too.
        made.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    except OSError:
        made.close()
        raise
    return trio.socket.from_stdlib_socket(made)
