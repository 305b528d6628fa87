"""The parent's side of the libp2p child: starts it, watches it, starts it again, and carries its streams."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

from edgepool.config import Limits
from edgepool.errors import DecodeError, LocalError
from edgepool.model.codec import decode, encode
from edgepool.model.ids import PeerId, parse_address
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.libp2p_child.messages import (
    CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    Accepted,
    Beat,
    Beating,
    Begin,
    Counted,
    Credit,
    Data,
    Dial,
    Disconnect,
    Finish,
    Found,
    FromChild,
    ListenFailed,
    Listening,
    Met,
    Opened,
    Placed,
    Proven,
    Publish,
    Reset,
    ToChild,
)
from edgepool.transport.libp2p_stream import AnotherPeer, ChildBroken, ChildStream
from edgepool.transport.refusals import REASONS, Counters, count

BEAT_S = 1.0
"""How often the child is asked whether it is well."""
DEAD_AFTER_S = 15.0
"""A child that has not answered for so long is killed and started again: it hangs."""
START_S = 60.0
"""How long a child may take to import its libraries on a busy machine."""
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 30.0
STEADY_S = 60.0
"""A child that has lived for so long is started again without a wait."""
RECYCLE_AFTER = 20_000
"""After so many inbound connections, each of which leaks some 12 KiB, an idle child is started anew."""
RESTARTED = "restarted_libp2p"
CHILD = ("-P", "-m", "edgepool.transport.libp2p_child")
"""How Python is told to run the child."""
MAX_STREAMS = 4096
"""More streams than the child can have from others, by its own bounds."""
MAX_NEWS_BYTES = 1024 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChildState:
    """What the child has and uses, as it said last; `restarts` counts its lives but the first.

    The last three are what it does as a relay, see Beating.
    """

    running: bool = False
    restarts: int = 0
    resident_bytes: int = 0
    connections: int = 0
    streams: int = 0
    accepted: int = 0
    places: int = 0
    circuits: int = 0
    passed_bytes: int = 0


class ChildProcess:
    """A libp2p child that is kept alive. `accept` is given each stream that another peer opens.

    `accept(stream, protocol)` returns the protocol that takes it, or None to refuse it.
    """

    def __init__(
        self,
        begin: Begin,
        limits: Limits,
        counters: Counters,
        accept: Callable[[ChildStream, str], asyncio.BaseProtocol | None],
        changed: Callable[[], None],
        memory_bytes: int,
    ) -> None:
        self.addresses: tuple[str, ...] = ()
        self.state = ChildState()
        self.streams: dict[int, ChildStream] = {}
        self.found: Callable[[PeerId, str], None] = lambda peer, address: None
        self.placed: Callable[[PeerId, str], None] = lambda relay, refusal: None
        self._begin = begin
        self._limits = limits
        self._counters = counters
        self._accept = accept
        self._changed = changed
        self._memory_bytes = memory_bytes
        self._opening: dict[int, tuple[PeerId, asyncio.Future[ChildStream]]] = {}
        self._next_number = 2
        self._socket: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Future[None] | None = None
        self._over = asyncio.Event()
        self._heard_at_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self, listen: tuple[str, ...] = ()) -> None:
        """Start the child; wait until it listens, rather at `listen`. LocalError, in a sentence, if not."""
        if find_spec("libp2p") is None:
            raise LocalError("transport over libp2p needs an extra: install edgepool[libp2p]")
        await self._start_once(listen)
        self._task = asyncio.create_task(self._keep_alive(), name="edgepool libp2p child")

    async def open_stream(self, peer: PeerId, address: str, protocol: str, timeout_ms: int) -> ChildStream:
        """Open a stream to a peer, to `begin` at once; OSError if not, AnotherPeer if that is there."""
        number = self._next_number
        self._next_number += 2
        opening: asyncio.Future[ChildStream] = asyncio.get_running_loop().create_future()
        self._opening[number] = (peer, opening)
        self.say(Dial(number, peer, address, protocol, timeout_ms))
        try:
            return await opening
        except asyncio.CancelledError:
            if number in self.streams:
                self.streams[number].abort()
            else:
                self.say(Reset(number, ""))
            raise
        finally:
            self._opening.pop(number, None)

    def prove(self, peer: PeerId) -> None:
        """Tell the child that a peer is a member."""
        self.say(Proven(peer))

    def disconnect(self, peer: PeerId) -> None:
        """Have all connections with a peer ended."""
        self.say(Disconnect(peer))

    def publish(self, topic: str, data: bytes) -> None:
        """Have something told to all members that have subscribed to a topic, if events are on.

        News may be lost: what a child that hangs would let pile up here is not said.
        """
        if self._socket is not None and self._socket.get_write_buffer_size() < MAX_NEWS_BYTES:
            self.say(Publish(topic, data))

    def say(self, message: ToChild) -> None:
        """Send the child a message, if there is one."""
        if self._socket is not None and not self._socket.is_closing():
            body = encode(message)
            self._socket.write(header(len(body)) + body)

    async def close(self) -> None:
        """End the child; all streams are over then."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._end("this peer is closing")

    # --- its lives ----------------------------------------------------------------------------

    async def _start_once(self, listen: tuple[str, ...] = ()) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            self._over.clear()
            self._listening = loop.create_future()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *CHILD),
                *(str(theirs.fileno()), str(os.getpid())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if not name.startswith("EDGEPOOL_")},
                stdout=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            raise LocalError(f"the libp2p child cannot be started: {error.strerror}") from None
        finally:
            theirs.close()
        self._socket, _ = await loop.create_connection(lambda: _FromChild(self), sock=ours)
        listen = listen or self.addresses or self._begin.listen
        self.say(
            Begin(
                self._begin.seed,
                listen,
                self._begin.protocols,
                self._begin.handshakes,
                self._begin.connections,
                self._begin.handshake_timeout_ms,
                self._begin.keepalive_ms,
                self._begin.memory_bytes,
                self._begin.events,
                self._begin.relay,
            )
        )
        try:
            async with asyncio.timeout(START_S):
                await self._listening
        except TimeoutError:
            await self._end("it did not start")
            raise LocalError(f"the libp2p child did not start within {START_S:g} s") from None
        except BaseException:
            await self._end("it did not start")
            raise
        self._heard_at_s = loop.time()
        self.state = ChildState(True, self.state.restarts)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = FIRST_BACKOFF_S
        while True:
            began_s = loop.time()
            reason = await self._watch()
            await self._end(reason)
            count(self._counters, RESTARTED)
            logger.warning("the libp2p child is started again: %s", reason)
            if loop.time() - began_s >= STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            while True:
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
                self.state = ChildState(False, self.state.restarts + 1)
                try:
                    await self._start_once()
                    break
                except LocalError as error:
                    logger.warning("%s", error)
            self._changed()

    async def _watch(self) -> str:
        """Ask the child how it is until it is not well; return what is wrong."""
        loop = asyncio.get_running_loop()
        beats = 0
        while True:
            self.say(Beat(beats))
            beats += 1
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._over.wait()
                return "it ended by itself"
            except TimeoutError:
                pass
            if loop.time() - self._heard_at_s > DEAD_AFTER_S:
                return "it does not answer"
            if self._memory_bytes and self.state.resident_bytes > self._memory_bytes:
                return f"it used {self.state.resident_bytes >> 20} MiB of memory"
            if self.state.accepted >= RECYCLE_AFTER and not self.streams:
                return f"it has served {self.state.accepted} connections and is idle"

    async def _end(self, reason: str) -> None:
        """Kill the child, if it lives, and lose all streams."""
        if self._socket is not None:
            self._socket.abort()
        if self._process is not None:
            if self._process.returncode is None:
                _kill(self._process.pid)
            await self._process.wait()
        self._lose_all(reason)

    def _lose_all(self, reason: str) -> None:
        for stream in list(self.streams.values()):
            stream.lose(ConnectionResetError(f"the libp2p child: {reason}"))
        for _, opening in self._opening.values():
            if not opening.done():
                opening.set_exception(ConnectionResetError(f"the libp2p child: {reason}"))
        if self._listening is not None and not self._listening.done():
            self._listening.set_exception(LocalError("the libp2p child ended while it started"))

    # --- what it says -------------------------------------------------------------------------

    def lost(self) -> None:
        """Its end of the socket is closed."""
        self._over.set()
        self._lose_all("it ended")

    def heard(self, message: FromChild) -> None:
        """It said something."""
        self._heard_at_s = asyncio.get_running_loop().time()
        match message:
            case Data(number, data):
                if number in self.streams:
                    self.streams[number].data(data)
            case Credit(number, size_bytes):
                if number in self.streams:
                    self.streams[number].credit(size_bytes)
            case Finish(number):
                if number in self.streams:
                    self.streams[number].finish()
            case Reset(number, reason):
                self._reset(number, reason)
            case Opened(number, relay):
                self._opened(number, relay)
            case Met(number, peer):
                self._not_opened(number, AnotherPeer(peer))
            case Accepted(number, peer, protocol, relay):
                self._accepted(ChildStream(self, number, peer, relay), number, protocol)
            case Found(peer, address):
                self.found(peer, address)
            case Counted(reason):
                if reason not in REASONS:
                    raise ChildBroken(f"it counts '{reason}'")
                count(self._counters, reason)
            case Beating():
                has = {name: getattr(message, name) for name in Beating.__struct_fields__ if name != "count"}
                self.state = ChildState(running=True, restarts=self.state.restarts, **has)
            case Placed(relay, refusal):
                self.placed(relay, refusal)
            case Listening(addresses):
                for address in addresses:
                    parse_address(address)
                self.addresses = addresses
                if self._listening is not None and not self._listening.done():
                    self._listening.set_result(None)
            case ListenFailed(address, number):
                if self._listening is not None and not self._listening.done():
                    self._listening.set_exception(ListeningFailed(address, number))

    def _opened(self, number: int, relay: PeerId) -> None:
        peer, opening = self._opening.get(number, (None, None))
        if peer is None or opening is None or opening.done():
            self.say(Reset(number, ""))
            return
        # Registered at once: its first bytes may be in the next message.
        stream = self.streams[number] = ChildStream(self, number, peer, relay)
        opening.set_result(stream)

    def _not_opened(self, number: int, error: OSError) -> None:
        _, opening = self._opening.get(number, (None, None))
        if opening is not None and not opening.done():
            opening.set_exception(error)

    def _reset(self, number: int, reason: str) -> None:
        self._not_opened(number, ConnectionRefusedError(reason))
        if number in self.streams:
            stream = self.streams[number]
            stream.lose(ConnectionResetError(reason) if reason else None)

    def _accepted(self, stream: ChildStream, number: int, protocol: str) -> None:
        if number % 2 == 0 or number in self.streams or len(self.streams) >= MAX_STREAMS:
            raise ChildBroken(f"it opens stream {number}, beside {len(self.streams)}")
        taker = None if self._closing else self._accept(stream, protocol)
        if taker is None:
            self.say(Reset(number, ""))
            return
        self.streams[number] = stream
        stream.begin(taker)


class ListeningFailed(LocalError):
    """The child cannot listen at `address`; `number` is the system's errno."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__(f"cannot listen on {address}: {os.strerror(number)}")
        self.address = address
        self.number = number


class _FromChild(asyncio.BufferedProtocol):
    """Reads the child's messages."""

    def __init__(self, process: ChildProcess) -> None:
        self._child = process
        self._frames = FrameBuffer(MAX_MESSAGE_BYTES)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.space(max(sizehint, CHUNK_BYTES))

    def buffer_updated(self, nbytes: int) -> None:
        self._frames.received(nbytes)
        try:
            while (frame := self._frames.next_frame()) is not None:
                message: FromChild = decode(FromChild, frame)  # type: ignore[arg-type]
                self._child.heard(message)
        except (DecodeError, ChildBroken) as error:
            # It is killed and started again; what it says until then is not heard.
            logger.error("the libp2p child breaks its rules: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._child.lost()


def _kill(pid: int) -> None:
    """Kill a child that nobody has waited for; asyncio's own kill() would wait for one that has just died."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
