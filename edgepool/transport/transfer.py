"""The requester's side of transfers: connections to holders, on which transfers are opened.

A connection is made under mutual TLS 1.3 and kept for the next transfer, for a while. The holder's side is in
transfer_server.py, the data itself in lane.py; fetching.py draws from many holders at once.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, cast

from edgepool.config import Limits
from edgepool.errors import DecodeError, EdgepoolError, Refused, RemoteError, Unavailable
from edgepool.model.codec import decode, encode
from edgepool.model.ids import PeerId, split_address
from edgepool.model.record import SignedRecord
from edgepool.model.transfer import (
    INLINE_BYTES,
    MAX_BASES,
    PACKED,
    PLAIN,
    SHARE_BYTES,
    ChunkRequest,
    ToHolder,
    ToRequester,
    TransferAccept,
    TransferEnd,
    TransferRefusal,
    TransferRequest,
    confirmation_of,
)
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.dial import OpenStream, open_direct
from edgepool.transport.door import Doorway, connect
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.identity import TRANSFER_PROTOCOL, Identity
from edgepool.transport.lane import LANE, LaneKey, ciphers

ANSWER_BYTES = 3 * 1024 * 1024
"""An answer is never longer; the largest manifest has 65,536 hashes."""
IDLE_S = 20.0
"""A connection without a transfer is closed after this."""
MAX_CONNECTIONS = 64
"""So many connections are kept; the one that is idle for longest is closed for a new one."""

_TO_REQUESTER: type[ToRequester] = ToRequester  # type: ignore[assignment]


class TransferClient:
    """Opens transfers; one connection to each holder serves them all."""

    def __init__(self, identity: Identity, limits: Limits, open_stream: OpenStream = open_direct) -> None:
        self.limits = limits
        self.identity = identity
        self.open_stream = open_stream
        self._connections: dict[PeerId, HolderConnection] = {}
        self._dialling: dict[PeerId, asyncio.Lock] = {}

    async def open(
        self,
        holder: PeerId,
        addresses: Sequence[str],
        confirmation: SignedRecord,
        manifest: bool = True,
        bases: tuple[bytes, ...] = (),
    ) -> OpenTransfer:
        """Ask `holder` for the data of a confirmation; `bases` are versions of it that are here.

        Raises Refused (by the holder), RemoteError (it broke the protocol) or Unavailable (not reached,
        stalled).
        """
        known = self._connections.get(holder)
        if known is not None and known.usable:
            try:
                return await known.open(confirmation, manifest, bases)
            except Unavailable:
                if known.usable:
                    raise
        connection = await self._connect(holder, addresses)
        return await connection.open(confirmation, manifest, bases)

    def conduit_to(self, holder: PeerId) -> PeerId | None:
        """Return the conduit that the connection to `holder` goes through; None if it is direct or none."""
        connection = self._connections.get(holder)
        return None if connection is None else split_address(connection.address).conduit

    def cut(self, peer: PeerId, reason: str) -> None:
        """End the connection to `peer`, and all transfers on it, at once."""
        connection = self._connections.get(peer)
        if connection is not None:
            connection.fail(Unavailable(f"{peer} was cut off: {reason}"))

    async def close(self) -> None:
        """End all connections."""
        for connection in list(self._connections.values()):
            connection.fail(Unavailable("this peer is closing"))

    async def _connect(self, holder: PeerId, addresses: Sequence[str]) -> HolderConnection:
        """Return a connection to `holder`; several who want one at a time share it."""
        lock = self._dialling.setdefault(holder, asyncio.Lock())
        try:
            async with lock:
                known = self._connections.get(holder)
                if known is not None and known.usable:
                    return known
                return await self._dial(holder, addresses)
        finally:
            if not lock.locked():
                self._dialling.pop(holder, None)

    async def _dial(self, holder: PeerId, addresses: Sequence[str]) -> HolderConnection:
        """Try the addresses in turn until one is the holder's."""
        reasons: list[str] = []
        for address in addresses:
            connection = HolderConnection(self, holder, address)
            reason = await self._try(connection, address, holder)
            if not reason:
                self._keep(connection)
                return connection
            reasons.append(f"{address}: {reason}")
        raise Unavailable(
            f"{holder} was not reached to fetch data ({'; '.join(reasons) or 'no address is known'})"
        )

    async def _try(self, connection: HolderConnection, address: str, holder: PeerId) -> str:
        """Dial one address; return why that did not lead to `holder`, or ''."""

        def judge(found: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
            return connection if found.peer == holder and protocol == TRANSFER_PROTOCOL else None

        doorway = Doorway(self.identity.trust, {}, judge)
        timeout_ms = self.limits.handshake_timeout_ms
        try:
            if split_address(address).peer not in (None, holder):
                return "it is another peer's"
            context = self.identity.transfer_context
            await connect(doorway, address, context, timeout_ms, self.open_stream)
        except TimeoutError:
            return "no answer in time"
        except (OSError, ValueError, DecodeError) as error:
            return str(error)
        finally:
            doorway.abandoned = True
        return "" if doorway.admitted is connection else "somebody else answers there"

    def _keep(self, connection: HolderConnection) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            idle = [one for one in self._connections.values() if one.idle]
            if idle:
                min(idle, key=lambda one: one.used_s).fail(Unavailable("its place was needed"))
        self._connections[connection.holder] = connection

    def lost(self, connection: HolderConnection) -> None:
        """A connection is gone."""
        if self._connections.get(connection.holder) is connection:
            del self._connections[connection.holder]


class HolderConnection(asyncio.BufferedProtocol):
    """The requester's end of a connection to one holder."""

    def __init__(self, client: TransferClient, holder: PeerId, address: str) -> None:
        self.holder = holder
        self.address = address
        self.used_s = 0.0
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer(ANSWER_BYTES)
        self._next = 0
        self._unsent: list[bytes] = []
        self._answers: dict[int, asyncio.Future[TransferAccept]] = {}
        self._open: dict[int, OpenTransfer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._failure: EdgepoolError | None = None

    @property
    def usable(self) -> bool:
        """Whether transfers can be opened on it."""
        return self._failure is None and self._transport is not None and not self._transport.is_closing()

    @property
    def idle(self) -> bool:
        """Whether there is no transfer on it."""
        return not self._open and not self._answers

    async def open(
        self, confirmation: SignedRecord, manifest: bool, bases: tuple[bytes, ...]
    ) -> OpenTransfer:
        """Ask for data; see TransferClient.open."""
        number, self._next = self._next, self._next + 1
        share = secrets.token_bytes(SHARE_BYTES)
        answer: asyncio.Future[TransferAccept] = self._loop.create_future()
        self._answers[number] = answer
        self.used_s = self._loop.time()
        stall = self._loop.call_later(self._client.limits.transfer_stall_ms / 1000, self._stalled, answer)
        confirmed = confirmation_of(confirmation)
        self.send(
            TransferRequest(
                number, confirmation, share, ciphers(), (PACKED, PLAIN), manifest, bases[:MAX_BASES]
            )
        )
        # The data connection is on its way while the holder thinks: that saves a round trip.
        dialled = _Dialled(self.open_stream()) if confirmed.size_bytes > INLINE_BYTES else None
        try:
            accept = await answer
            if accept.base and accept.base not in bases:
                self.send(TransferEnd(number, False))
                raise RemoteError(self.holder, "its answer chooses a version that is not here")
            transfer = self._opened(number, accept, share, confirmed.root)
            transfer.dialled, dialled = dialled, None
        except asyncio.CancelledError:
            self.send(TransferEnd(number, False))
            raise
        finally:
            stall.cancel()
            if dialled is not None:
                dialled.discard()
            self._answers.pop(number, None)
            if self.idle and self._failure is None and self._timer is None:
                self._timer = self._loop.call_later(IDLE_S, self._close_if_idle)
        return transfer

    def send(self, message: ToHolder) -> None:
        """Send a message, if the connection still stands; those of one turn of the loop go together."""
        body = encode(message)
        self._unsent += (header(len(body)), body)
        if len(self._unsent) == 2:
            if len(self._answers) > 1:
                self._loop.call_soon(self._flush)
            else:
                self._flush()

    def _flush(self) -> None:
        unsent, self._unsent = b"".join(self._unsent), []
        if self._transport is not None and self._failure is None:
            self._transport.write(unsent)

    def forget(self, number: int) -> None:
        """A transfer has ended."""
        self._open.pop(number, None)
        if self.idle and self._failure is None:
            self.used_s = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_later(IDLE_S, self._close_if_idle)

    def fail(self, error: EdgepoolError) -> None:
        """End the connection; everything that waits on it fails with `error`."""
        if self._failure is not None:
            return
        self._failure = error
        self._client.lost(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        for transfer in list(self._open.values()):
            transfer.fail(error)

    def _opened(self, number: int, accept: TransferAccept, share: bytes, root: bytes) -> OpenTransfer:
        key = None
        if accept.share:
            if (
                accept.cipher not in ciphers()
                or accept.encoding not in (PACKED, PLAIN)
                or len(accept.share) != SHARE_BYTES
            ):
                self.send(TransferEnd(number, False))
                raise RemoteError(
                    self.holder, "its answer chooses a cipher or an encoding that was not offered"
                )
            terms = [self._client.identity.network, self.holder, self._client.identity.peer, number, root]
            key = LaneKey(accept.cipher, (share, accept.share), terms)
        transfer = OpenTransfer(self, number, accept, key)
        if key is not None:
            self._open[number] = transfer
        return transfer

    def _stalled(self, answer: asyncio.Future[TransferAccept]) -> None:
        if not answer.done():
            self.fail(Unavailable(f"{self.holder} stalled: no answer to the request"))

    def _close_if_idle(self) -> None:
        self._timer = None
        if not self.idle:
            return
        rest_s = self.used_s + IDLE_S - self._loop.time()
        if rest_s <= 0:
            self.fail(Unavailable("the connection was idle"))
        else:
            self._timer = self._loop.call_later(rest_s, self._close_if_idle)

    async def open_stream(self) -> socket.socket:
        """Open another stream to where the holder was reached. Raises OSError, ValueError, DecodeError."""
        async with asyncio.timeout(self._client.limits.handshake_timeout_ms / 1000):
            return await self._client.open_stream(self.address)

    # --- for asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The holder is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take answers."""
        self._frames.received(nbytes)
        try:
            while (frame := self._frames.next_frame()) is not None:
                self._take(decode(_TO_REQUESTER, frame))
        except DecodeError as error:
            self.fail(RemoteError(self.holder, f"its answer to a transfer request is {error}"))

    def eof_received(self) -> None:
        """The holder has closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of everything on this connection."""
        why = f" ({exc})" if exc else ""
        self.fail(Unavailable(f"{self.holder} ended the transfer early{why}"))

    def _take(self, message: ToRequester) -> None:
        answer, transfer = self._answers.get(message.transfer), self._open.get(message.transfer)
        if isinstance(message, TransferRefusal):
            refused = Refused(message.reason, f"by holder {self.holder}")
            if answer is not None and not answer.done():
                answer.set_exception(refused)
            elif transfer is not None:
                transfer.fail(refused)
        elif answer is not None and not answer.done():
            answer.set_result(message)


class _Dialled:
    """A stream that is being opened, and closed again if nobody takes it."""

    def __init__(self, opening: Coroutine[Any, Any, socket.socket]) -> None:
        self._task = asyncio.get_running_loop().create_task(opening)
        self._taken = False

    async def take(self) -> socket.socket:
        """Return the stream; raises what opening it raised."""
        connection = await self._task
        self._taken = True
        return connection

    def discard(self) -> None:
        """It is not needed, unless it was taken."""
        if not self._taken:
            self._task.cancel()
            self._task.add_done_callback(_close_opened)


def _close_opened(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


@dataclass(eq=False)
class OpenTransfer:
    """A transfer that a holder has accepted: small data is in `accept.data`, larger comes over a lane.

    `lost` is set to the reason if the holder ends it, or is gone.
    """

    connection: HolderConnection
    number: int
    accept: TransferAccept
    key: LaneKey | None
    dialled: _Dialled | None = None

    def __post_init__(self) -> None:
        self.lost: asyncio.Future[EdgepoolError] = asyncio.get_running_loop().create_future()

    async def connect(self) -> socket.socket:
        """Open the data connection, once. Raises Unavailable if that fails."""
        assert self.key is not None
        try:
            connection = await (self.dialled or _Dialled(self.connection.open_stream())).take()
        except (OSError, ValueError, DecodeError) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise Unavailable(f"no data connection to {self.connection.holder}: {why}") from None
        try:
            await asyncio.get_running_loop().sock_sendall(connection, LANE + self.key.token)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise Unavailable(f"no data connection to {self.connection.holder}: {error}") from None
            raise
        return connection

    def ask(self, first: int, count: int) -> None:
        """Ask for `count` chunks from `first` on."""
        self.connection.used_s = asyncio.get_running_loop().time()
        self.connection.send(ChunkRequest(self.number, first, count))

    def end(self, whole: bool) -> None:
        """Nothing more is wanted."""
        if self.dialled is not None:
            self.dialled.discard()
        if self.key is not None:
            self.connection.send(TransferEnd(self.number, whole))
            self.connection.forget(self.number)

    def fail(self, error: EdgepoolError) -> None:
        """The holder has ended the transfer, or is gone."""
        self.connection.forget(self.number)
        if not self.lost.done():
            self.lost.set_result(error)
