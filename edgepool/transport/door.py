"""The way in and out: accepting and dialling TLS connections, and judging who is there.

Until TLS has proved the other side, nothing of it reaches any decoder. The judgement is made in
the very call in which TLS completes, before a first byte of data is handed on.
"""

from __future__ import annotations

import _ssl
import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import cast

from edgepool.config import Limits
from edgepool.errors import LocalError
from edgepool.model.credential import NotProven
from edgepool.model.ids import format_address, parse_address
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.cutting import cut
from edgepool.transport.dial import OpenStream, open_direct
from edgepool.transport.greeting import TLS_HANDSHAKE, TakePlain, first_byte, read_greeting
from edgepool.transport.identity import Identity
from edgepool.transport.joindoor import JOIN_PROTOCOL, JoinDoor
from edgepool.transport.refusals import (
    BUSY,
    CHAIN,
    HANDSHAKE,
    NO_CERTIFICATE,
    THROTTLED,
    TOKEN,
    Counters,
    count,
    lost,
    of_handshake,
    refused,
)
from edgepool.transport.strangers import StrangerGate
from edgepool.transport.trust import TrustSet

_BACKLOG = 128
_ACCEPT_PAUSE_S = 0.1

Judge = Callable[[PeerIdentity, str], asyncio.BufferedProtocol | None]
"""Is given who is there and the ALPN protocol ('' if none); returns what takes over, or None."""


class Doorway(asyncio.BufferedProtocol):
    """Stands on a connection while TLS shakes hands, then hands it on or ends it.

    `admitted` is what took over, None if nothing did (yet). Once `abandoned`, nobody gets in.
    """

    def __init__(
        self, trust: TrustSet, counters: Counters, judge: Judge, joins: JoinDoor | None = None
    ) -> None:
        self.admitted: asyncio.BufferedProtocol | None = None
        self.abandoned = False
        self.judged = False
        self._trust = trust
        self._counters = counters
        self._judge = judge
        self._joins = joins
        self._identity: PeerIdentity | None = None

    @property
    def proved(self) -> bool:
        """Whether the other side has proved to be a member."""
        return self._identity is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS stands: find out who is there."""
        transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self.judged = True
        taker = None if self.abandoned else self._examine(transport)
        if taker is None:
            transport.abort()
            return
        self.admitted = taker
        transport.set_protocol(taker)
        taker.connection_made(transport)
        if self._identity is not None:
            self._trust.hold(
                self._identity, lambda why: self._cut(taker, transport, why), transport.is_closing
            )

    def _cut(self, taker: asyncio.BufferedProtocol, transport: asyncio.Transport, why: str) -> None:
        """End what was admitted: its ground is gone."""
        count(self._counters, lost(why))
        cut(taker, why)
        transport.abort()

    def _examine(self, transport: asyncio.Transport) -> asyncio.BufferedProtocol | None:
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        certificate, protocol = tls.getpeercert(binary_form=True), tls.selected_alpn_protocol() or ""
        if self._joins is not None and protocol == JOIN_PROTOCOL:
            host, *_ = transport.get_extra_info("peername") or ("",)
            return self._joins.connection(str(host), self._counters)
        if not certificate:
            # Only a registrar's context lets TLS stand without one, and only for who comes to join.
            count(self._counters, NO_CERTIFICATE)
            return None
        behind = _certificates_behind(tls)
        if len(behind) > 1 or any(not self._trust.is_root(der) for der in behind):
            count(self._counters, CHAIN)
            return None
        try:
            identity = self._trust.check(certificate)
        except NotProven as error:
            count(self._counters, refused(error.word))
            return None
        self._identity = identity
        return self._judge(identity, protocol)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Nothing is read here; this only satisfies the protocol."""
        return bytearray(max(sizehint, 1))

    def buffer_updated(self, nbytes: int) -> None:
        """What was read is thrown away."""


async def connect(
    doorway: Doorway,
    address: str,
    context: ssl.SSLContext,
    timeout_ms: int,
    open_stream: OpenStream = open_direct,
) -> None:
    """Dial `address` and shake hands; `doorway` then knows the outcome.

    Raises OSError, ValueError (an address that cannot be one) or TimeoutError if that fails.
    """
    async with asyncio.timeout(timeout_ms / 1000):
        connection = await open_stream(address)
        await asyncio.get_running_loop().create_connection(
            lambda: doorway,
            sock=connection,
            ssl=context,
            server_hostname="",
            ssl_handshake_timeout=timeout_ms / 1000,
        )


class Listener:
    """Accepts connections on one port, a bounded number of handshakes at a time.

    Most begin with TLS; `plain` says who takes those that begin with a greeting, by its name (greeting.py).
    """

    def __init__(self, identity: Identity, limits: Limits, counters: Counters, judge: Judge) -> None:
        self.addresses: tuple[str, ...] = ()
        self.plain: dict[bytes, TakePlain] = {}
        self._identity = identity
        self._limits = limits
        self._counters = counters
        self._judge = judge
        self._socket: socket.socket | None = None
        self._strangers = StrangerGate()
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: dict[asyncio.Task[None], None] = {}

    async def start(self, listen: str) -> None:
        """Listen on multiaddr `listen`; LocalError if that is not possible."""
        host, port, _ = parse_address(listen)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, where = found[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            # So that a restart need not wait; it does not let two programs share a port.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(where)
            self._socket.listen(_BACKLOG)
        except OSError as error:
            if self._socket is not None:
                self._socket.close()
            raise LocalError(f"cannot listen on {listen}: {advice(error)}") from None
        bound_host, bound_port = self._socket.getsockname()[:2]
        self.addresses = (format_address(reachable_host(bound_host), bound_port),)
        self._accepting = asyncio.create_task(self._accept(), name="edgepool accept")

    async def close(self) -> None:
        """Stop listening and give up all handshakes under way."""
        if self._socket is not None and self._socket.fileno() >= 0:
            # Or asyncio may still take a connection for the accept that is cancelled here, and complain.
            asyncio.get_running_loop().remove_reader(self._socket)
        tasks = [task for task in (self._accepting, *self._handshakes) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept(self) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, where = await loop.sock_accept(self._socket)
            except OSError as error:
                # The caller went away again, or there are no file descriptors for the moment.
                if error.errno != errno.ECONNABORTED:
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if not self._strangers.may_knock(where[0], loop.time()):
                connection.close()
                count(self._counters, THROTTLED)
                continue
            self.take(connection)

    def take(self, connection: socket.socket, judge: Judge | None = None) -> None:
        """Let a connection in as if it had come to the port; its owner is the listener from now on.

        `judge` stands in for the listener's own, for one that came by a way of its own.
        """
        if len(self._handshakes) >= self._limits.handshakes:
            # The oldest is the least likely to be honest: a handshake takes milliseconds.
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
            count(self._counters, BUSY)
        task = asyncio.create_task(self._greet(connection, judge or self._judge), name="edgepool handshake")
        self._handshakes[task] = None
        task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _greet(self, connection: socket.socket, judge: Judge) -> None:
        """Find out how a connection begins, and hand it to who knows what follows."""
        taken, reason = False, HANDSHAKE
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._limits.handshake_timeout_ms / 1000):
                tls = await first_byte(connection) == TLS_HANDSHAKE
                greeting = None if tls else await read_greeting(connection, self.plain)
            if greeting is not None:
                take, token = greeting
                taken, reason = take(connection, token), TOKEN
        except OSError:  # TimeoutError is one
            tls = False
        except BaseException:
            connection.close()
            raise
        if tls:
            await self._shake_hands(connection, judge)
        elif not taken:
            connection.close()
            count(self._counters, reason)

    async def _shake_hands(self, connection: socket.socket, judge: Judge) -> None:
        joins = self._identity.join_door
        if joins is not None and not joins.is_open:
            joins = None
        doorway = Doorway(self._identity.trust, self._counters, judge, joins)
        failure, host = HANDSHAKE, _host_of(connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: doorway,
                connection,
                ssl=self._identity.server_context if joins is None else joins.server_context,
                ssl_handshake_timeout=self._limits.handshake_timeout_ms / 1000,
            )
        except OSError as error:
            failure = of_handshake(error)
        finally:
            doorway.abandoned = True
        if doorway.proved:
            self._strangers.proved(host, asyncio.get_running_loop().time())
        if not doorway.judged:
            count(self._counters, failure)


def _host_of(connection: socket.socket) -> str:
    try:
        return str(connection.getpeername()[0])
    except (OSError, IndexError):
        return ""


def _certificates_behind(tls: ssl.SSLObject) -> list[bytes]:
    """Return the certificates (DER) that the other side has sent behind its own.

    A member sends its own and nothing else, but for OpenSSL, which adds the root of its issuer unasked.
    """
    if hasattr(tls, "get_unverified_chain"):  # from Python 3.13 on
        return list(tls.get_unverified_chain())[1:]
    chain = tls._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
    return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in chain[1:]]


def reachable_host(host: str) -> str:
    """Return `host`, or for a wildcard the address by which this machine goes out."""
    if host not in ("0.0.0.0", "::"):
        return host
    # A UDP socket that is connected sends nothing; it only asks the routing table.
    family = socket.AF_INET if host == "0.0.0.0" else socket.AF_INET6
    anywhere = "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((anywhere, 9))
        except OSError:
            return "127.0.0.1" if family == socket.AF_INET else "::1"
        return str(probe.getsockname()[0])


def advice(error: OSError) -> str:
    """Return what to do when a port cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return (
            "the port is in use; stop the other program, or set another port in 'listen' (0 takes a free one)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address; set one of its own in 'listen'"
    if error.errno == errno.EACCES:
        return "ports below 1024 need special rights; set a higher port in 'listen'"
    return f"{error.strerror}; set another address in 'listen'"
