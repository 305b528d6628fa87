"""The requester's end of one transfer connection, and the transfers opened on it (see transfer.py)."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from edgepool.errors import DecodeError, EdgepoolError, Refused, RemoteError, Unavailable
from edgepool.model.codec import decode, encode
from edgepool.model.ids import PeerId
from edgepool.model.record import SignedRecord
from edgepool.model.transfer import (
    INLINE_BYTES,
    MAX_BASES,
    PACKED,
    PLAIN,
    SHARE_BYTES,
    BundleRequest,
    ChunkRequest,
    ItemRequest,
    ToHolder,
    ToRequester,
    TransferAccept,
    TransferEnd,
    TransferRequest,
    confirmation_of,
)
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.lane import LANE, LaneKey, ciphers

if TYPE_CHECKING:
    from edgepool.transport.transfer import TransferClient

ANSWER_BYTES = 3 * 1024 * 1024
"""An answer is never longer; the largest manifest has 65,536 hashes."""
IDLE_S = 20.0
"""A connection without a transfer is closed after this."""

_TO_REQUESTER: type[ToRequester] = ToRequester  # type: ignore[assignment]


class HolderConnection(asyncio.BufferedProtocol):
    """The requester's end of a connection to one holder."""

    def __init__(self, client: TransferClient, holder: PeerId, address: str) -> None:
        self.holder = holder
        self.address = address
        self.used_s = 0.0
        self._client = client
        self._stall_s = client.limits.transfer_stall_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer(ANSWER_BYTES)
        self._next = 0
        self._unsent: list[bytes] = []
        self._answers: dict[int, asyncio.Future[TransferAccept]] = {}
        self._asked_s: dict[int, float] = {}
        self._stall: asyncio.TimerHandle | None = None
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

    def ask_small(self, confirmation: SignedRecord) -> asyncio.Future[TransferAccept]:
        """Ask for data of at most INLINE_BYTES; see TransferClient.ask_small."""
        number, answer = self._asking()
        self.send(TransferRequest(number, confirmation, b"", (), (), True, ()))
        return answer

    async def open(
        self, confirmation: SignedRecord, manifest: bool, bases: tuple[bytes, ...]
    ) -> OpenTransfer:
        """Ask for data; see TransferClient.open."""
        number, answer = self._asking()
        share = secrets.token_bytes(SHARE_BYTES)
        confirmed = confirmation_of(confirmation)
        self.send(
            TransferRequest(
                number, confirmation, share, ciphers(), (PACKED, PLAIN), manifest, bases[:MAX_BASES]
            )
        )
        with_data = confirmed.size_bytes > INLINE_BYTES
        return await self._opening(number, answer, share, confirmed.root, bases, with_data)

    async def open_bundle(self) -> OpenTransfer:
        """Begin a bundle; see TransferClient.open_bundle."""
        number, answer = self._asking()
        share = secrets.token_bytes(SHARE_BYTES)
        self.send(BundleRequest(number, share, ciphers()))
        transfer = await self._opening(number, answer, share, b"", (), True)
        if transfer.key is None:
            raise RemoteError(self.holder, "its answer has no part of a key")
        return transfer

    async def _opening(
        self,
        number: int,
        answer: asyncio.Future[TransferAccept],
        share: bytes,
        root: bytes,
        bases: tuple[bytes, ...],
        with_data: bool,
    ) -> OpenTransfer:
        """Return the transfer once the holder has accepted it."""
        # The data connection is on its way while the holder thinks: that saves a round trip.
        dialled = _Dialled(self.open_stream()) if with_data else None
        try:
            accept = await answer
            if accept.base and accept.base not in bases:
                self.send(TransferEnd(number, False))
                raise RemoteError(self.holder, "its answer chooses a version that is not here")
            transfer = self._opened(number, accept, share, root)
            transfer.dialled, dialled = dialled, None
        except asyncio.CancelledError:
            self.send(TransferEnd(number, False))
            raise
        finally:
            if dialled is not None:
                dialled.discard()
            self._answers.pop(number, None)
            self._asked_s.pop(number, None)
        return transfer

    def _asking(self) -> tuple[int, asyncio.Future[TransferAccept]]:
        """Return the number of the next transfer, and what its answer will be."""
        number, self._next = self._next, self._next + 1
        self.used_s = self._asked_s[number] = self._loop.time()
        if self._stall is None:  # one for all that wait: a timer costs as much as an answer
            self._stall = self._loop.call_later(self._stall_s, self._check_answers)
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_S, self._close_if_idle)
        answer = self._answers[number] = self._loop.create_future()
        return number, answer

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
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        for transfer in list(self._open.values()):
            transfer.fail(error)

    def cut(self, reason: str) -> None:
        """End everything at once: the holder is trusted no more."""
        self.fail(Unavailable(f"the transfer from {self.holder} was cut: {reason}"))

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

    def _check_answers(self) -> None:
        """Fail if an answer is overdue; look again when the oldest that is waited for would be."""
        self._stall = None
        if not self._asked_s:
            return
        rest_s = next(iter(self._asked_s.values())) + self._stall_s - self._loop.time()
        if rest_s <= 0:
            self.fail(Unavailable(f"{self.holder} stalled: no answer to the request"))
        else:
            self._stall = self._loop.call_later(rest_s, self._check_answers)

    def _close_if_idle(self) -> None:
        self._timer = None
        if not self.idle:
            self.used_s = self._loop.time()
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
        answer = self._answers.pop(message.transfer, None)
        self._asked_s.pop(message.transfer, None)
        if isinstance(message, TransferAccept):
            if answer is not None and not answer.done():
                answer.set_result(message)
            return
        refused = Refused(message.reason, f"by holder {self.holder}")
        transfer = self._open.get(message.transfer)
        if answer is not None and not answer.done():
            answer.set_exception(refused)
        elif transfer is not None:
            transfer.fail(refused)


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

    def ask_items(self, confirmations: tuple[SignedRecord, ...]) -> None:
        """Ask for the data of these confirmations, in a bundle."""
        self.connection.used_s = asyncio.get_running_loop().time()
        self.connection.send(ItemRequest(self.number, confirmations))

    def end(self, whole: bool, wrong: int | None = None) -> None:
        """Nothing more is wanted; chunk `wrong` was not what it should be."""
        if self.dialled is not None:
            self.dialled.discard()
        if self.key is not None:
            self.connection.send(TransferEnd(self.number, whole, wrong))
            self.connection.forget(self.number)

    def fail(self, error: EdgepoolError) -> None:
        """The holder has ended the transfer, or is gone."""
        self.connection.forget(self.number)
        if not self.lost.done():
            self.lost.set_result(error)
