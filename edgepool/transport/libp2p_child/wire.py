"""Connections as py-libp2p's layers want them: buffered reads, no shared ports, places that are given back.

Three of py-libp2p's own habits are left out. It shares its port with whoever asks (SO_REUSEPORT), so that
two programs answer at one address. Its `read_exactly` gives up after 100 reads, so that a slow sender breaks
a connection; here a read of n bytes ends only with n bytes or the end. And the place of an inbound connection
is never given back, since its handler waits for the end of the host; here it ends with the connection.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from edgepool.transport.refusals import BUSY, HANDSHAKE

BACKLOG = 128
_RECEIVE_BYTES = 64 * 1024
_ACCEPT_PAUSE_S = 0.1


class AnotherPeer(Exception):
    """Where somebody was dialled `peer` is, as Noise has proved."""

    def __init__(self, peer: str) -> None:
        super().__init__("another peer is there")
        self.peer = peer


class BufferedConnection(ReadWriteCloser):
    """A TCP connection whose reads are exact. `secured` is set once Noise has proved the other side."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.secured = trio.Event()
        self.closed = trio.Event()
        self._stream = stream
        self._buffer = bytearray()
        self._writing = trio.Lock()
        try:
            self._remote: tuple[str, int] | None = stream.socket.getpeername()[:2]
        except OSError:
            self._remote = None

    async def read(self, n: int | None = None) -> bytes:
        """Return exactly `n` bytes, fewer only at the end; without `n`, what there is."""
        wanted = 1 if n is None else n
        while len(self._buffer) < wanted:
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError("the connection broke", transport="tcp") from error
            if not data:
                break
            self._buffer += data
        taken = bytes(self._buffer[: len(self._buffer) if n is None else n])
        del self._buffer[: len(taken)]
        if not taken and wanted:
            raise ConnectionClosedError("the other side closed the connection", transport="tcp")
        return taken

    async def write(self, data: bytes) -> None:
        """Write all of `data`."""
        try:
            async with self._writing:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("the connection broke", transport="tcp") from error

    async def close(self) -> None:
        """End the connection at once."""
        self.closed.set()
        await trio.aclose_forcefully(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the other side's host and port."""
        return self._remote


class Tcp(ITransport):
    """Dials and accepts TCP connections. `count` is told for which reason one was turned away."""

    def __init__(self, handshakes: int, count: Callable[[str], None]) -> None:
        self.accepted = 0
        self.listen_errno = 0
        self._handshakes = handshakes
        self._count = count

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Connect; the caller sets the timeout."""
        host, port = host_and_port(maddr)
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise OpenConnectionError(str(error)) from error
        return RawConnection(BufferedConnection(stream), True)

    def create_listener(self, handler_function: Callable[[ReadWriteCloser], Awaitable[None]]) -> IListener:
        """Return a listener whose connections `handler_function` takes."""
        return Listener(self, handler_function, self._handshakes, self._count)

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Say whether this is an address of plain TCP."""
        names = [protocol.name for protocol in maddr.protocols()]
        return names[1:2] == ["tcp"] and names[2:] in ([], ["p2p"])

    def can_listen(self, maddr: Multiaddr) -> bool:
        """Say whether this is an address of plain TCP."""
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        """Return the names of what is dialled."""
        return ["tcp"]


class Listener(IListener):
    """Accepts on sockets that were bound before; a bounded number of handshakes at a time."""

    def __init__(
        self,
        tcp: Tcp,
        handler: Callable[[ReadWriteCloser], Awaitable[None]],
        handshakes: int,
        count: Callable[[str], None],
    ) -> None:
        self._tcp = tcp
        self._handler = handler
        self._most = handshakes
        self._count = count
        self._under_way: dict[BufferedConnection, trio.CancelScope] = {}
        self._socket: trio.socket.SocketType | None = None
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def listen(self, maddr: Multiaddr) -> None:
        """Listen; OpenConnectionError if not, with the reason in the transport's `listen_errno`."""
        host, port = host_and_port(maddr)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            # So that a restart need not wait; it does not let two programs share a port.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await self._socket.bind((host, port))
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            self._tcp.listen_errno = error.errno or 0
            raise OpenConnectionError(str(error)) from error
        trio.lowlevel.spawn_system_task(self._accept)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """Return where it listens."""
        if self._socket is None:
            return ()
        host, port = self._socket.getsockname()[:2]
        return (Multiaddr(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"),)

    async def close(self) -> None:
        """Stop listening, and end what is under way."""
        self._scope.cancel()
        if self._socket is not None:
            await self._stopped.wait()
            self._socket.close()

    async def _accept(self) -> None:
        assert self._socket is not None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    while True:
                        try:
                            connection, _ = await self._socket.accept()
                        except OSError:
                            # The caller went away again, or there are no file descriptors for the moment.
                            await trio.sleep(_ACCEPT_PAUSE_S)
                            continue
                        self._tcp.accepted += 1
                        nursery.start_soon(self._take, BufferedConnection(trio.SocketStream(connection)))
        finally:
            self._stopped.set()

    async def _take(self, connection: BufferedConnection) -> None:
        self._make_room()
        refused = False
        try:
            with trio.CancelScope() as scope:
                self._under_way[connection] = scope
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_with, connection, nursery.cancel_scope)
                    nursery.start_soon(self._forget_once_secured, connection)
                    await self._handler(connection)
                    nursery.cancel_scope.cancel()
            refused = connection not in self._under_way and not connection.secured.is_set()
        finally:
            self._under_way.pop(connection, None)
            with trio.CancelScope(shield=True):
                await connection.close()
        if not connection.secured.is_set() and not refused:
            self._count(HANDSHAKE)

    async def _end_with(self, connection: BufferedConnection, scope: trio.CancelScope) -> None:
        """End the handler with its connection, so that its place is free again."""
        await connection.closed.wait()
        scope.cancel()

    async def _forget_once_secured(self, connection: BufferedConnection) -> None:
        await connection.secured.wait()
        self._under_way.pop(connection, None)

    def _make_room(self) -> None:
        if len(self._under_way) >= self._most:
            # The oldest is the least likely to be honest: a handshake takes milliseconds.
            oldest = next(iter(self._under_way))
            self._under_way.pop(oldest).cancel()
            self._count(BUSY)


def host_and_port(maddr: Multiaddr) -> tuple[str, int]:
    """Return the host and port of an address of plain TCP."""
    kind, host, tcp, port, *_ = str(maddr).strip("/").split("/")
    if kind not in ("ip4", "ip6", "dns", "dns4", "dns6") or tcp != "tcp":
        raise OpenConnectionError(f"'{maddr}' is no address of TCP")
    return host, int(port)
