"""The life of the child: from Begin, over a host that listens, to the end of the socket."""

from __future__ import annotations

import logging
import os
import resource
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from libp2p.custom_types import TProtocol
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from edgepool.model.codec import decode
from edgepool.model.ids import PeerId
from edgepool.transport.framing import FrameBuffer
from edgepool.transport.libp2p_child.carrier import Carrier, ParentSocket, words
from edgepool.transport.libp2p_child.events import Events
from edgepool.transport.libp2p_child.host import Connections
from edgepool.transport.libp2p_child.mdns import Mdns
from edgepool.transport.libp2p_child.messages import (
    MAX_MESSAGE_BYTES,
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
    ListenFailed,
    Listening,
    LookAround,
    Placed,
    Proven,
    Publish,
    Reserve,
    Reset,
    ToChild,
)
from edgepool.transport.refusals import NO_PLACE

_READ_BYTES = 256 * 1024


def run(descriptor: int) -> None:
    """Run until the parent's end of the socket is closed."""
    # Per-frame log lines cost more than the frames; what matters is counted.
    logging.disable(logging.CRITICAL)
    trio.run(_main, socket.socket(fileno=descriptor))


async def _main(parent: socket.socket) -> None:
    parent.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(parent))
    reader = Reader(stream)
    begin = await reader.next()
    if not isinstance(begin, Begin):
        return
    if begin.memory_bytes:
        _limit_memory(begin.memory_bytes)
    await Child(reader, ParentSocket(stream), begin).run()


class Reader:
    """Reads the parent's messages."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._frames = FrameBuffer(MAX_MESSAGE_BYTES)

    async def next(self) -> ToChild | None:
        """Return the next message, None at the end."""
        while True:
            frame = self._frames.next_frame()
            if frame is not None:
                message: ToChild = decode(ToChild, frame)  # type: ignore[arg-type]
                return message
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                return None
            self._frames.space(len(data))[: len(data)] = data
            self._frames.received(len(data))


class Child:
    """Does what the parent says until it says no more."""

    def __init__(self, reader: Reader, parent: ParentSocket, begin: Begin) -> None:
        self._reader = reader
        self._parent = parent
        self._begin = begin
        self._connections = Connections(begin, self._count)
        self._carrier = Carrier(parent.tell, self._connections.open_stream)
        self._events = Events(self._connections) if begin.events else None
        self._counted: trio.MemorySendChannel[str]
        self._counted, self._to_count = trio.open_memory_channel(1024)

    async def run(self) -> None:
        """Listen, and obey."""
        host = self._connections.host
        for protocol in self._begin.protocols:
            host.set_stream_handler(TProtocol(protocol), self._carrier.accept)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(background_trio_service(self._connections.swarm))
            if self._events is not None:
                await stack.enter_async_context(self._events.running())
            if not await self._listen():
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connections.keep_bounded)
                nursery.start_soon(self._tell_counts)
                await self._obey(nursery)
                # The parent is gone, or has what it waited for: nothing is left to be polite about.
                os._exit(0)

    async def _listen(self) -> bool:
        swarm, tcp = self._connections.swarm, self._connections.tcp
        for address in self._begin.listen:
            if not await swarm.listen(Multiaddr(address)):
                await self._parent.tell(ListenFailed(address, tcp.listen_errno))
                return False
        found = [str(where) for listener in swarm.listeners.values() for where in listener.get_addrs()]
        await self._parent.tell(Listening(tuple(found)))
        return True

    async def _obey(self, nursery: trio.Nursery) -> None:
        carrier = self._carrier
        while (message := await self._reader.next()) is not None:
            match message:
                case Data():
                    carrier.data(message)
                case Credit():
                    carrier.credit(message)
                case Finish():
                    carrier.finish(message)
                case Reset():
                    carrier.reset(message)
                case Dial():
                    nursery.start_soon(carrier.dial, message)
                case Proven(peer):
                    self._connections.prove(peer)
                    if self._events is not None:
                        nursery.start_soon(self._events.admit, peer)
                case Publish(topic, data):
                    if self._events is not None:
                        await self._events.publish(topic, data)
                case LookAround(host, addresses):
                    me = str(self._connections.swarm.get_peer_id())
                    nursery.start_soon(Mdns(me, host, addresses, self._found, self._count).run)
                case Reserve(peer):
                    nursery.start_soon(self._reserve, peer)
                case Disconnect(peer):
                    nursery.start_soon(self._connections.disconnect, peer)
                case Beat(count):
                    nursery.start_soon(self._answer, count)
                case Begin():
                    return

    async def _answer(self, count: int) -> None:
        swarm, carrier = self._connections.swarm, self._carrier
        accepted = self._connections.tcp.accepted
        connections = swarm.get_total_connections()
        relay = self._connections.circuits.passing()
        answer = Beating(count, resident_bytes(), connections, len(carrier.streams), accepted, *relay)
        await self._parent.tell(answer)

    async def _found(self, peer: str, address: str) -> None:
        await self._parent.tell(Found(PeerId(peer), address))

    async def _reserve(self, relay: str) -> None:
        refusal = ""
        try:
            await self._connections.circuits.reserve(relay, "")
        except Exception as error:
            self._count(NO_PLACE)
            refusal = words(error)
        await self._parent.tell(Placed(PeerId(relay), refusal))

    def _count(self, reason: str) -> None:
        try:
            self._counted.send_nowait(reason)
        except trio.WouldBlock:
            pass  # counters are for people; a flood need not be exact

    async def _tell_counts(self) -> None:
        async for reason in self._to_count:
            await self._parent.tell(Counted(reason))


def resident_bytes() -> int:
    """Return what this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _limit_memory(memory_bytes: int) -> None:
    """Bound the address space to what is mapped now and `memory_bytes` more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
