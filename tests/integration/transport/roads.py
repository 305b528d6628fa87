"""The roads on which the conformance suite runs: how each makes peers, and is spoken to byte by byte."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Protocol

from tls_peers import Recorder, TlsPeer, free_port, make_settings

from edgepool.config import Libp2pSettings, Limits
from edgepool.model.channelproof import MembershipProof
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId, format_address, on_tcp, parse_address
from edgepool.model.pool import Member
from edgepool.runtime.ports import LinkHandler, PeerIdentity, Transport
from edgepool.transport.memory import MemoryNetwork, MemoryTransport
from edgepool.transport.proofdoor import ProofDoor


class RoadPeer(Protocol):
    """A transport with its recorder and its counters; an async context manager that starts and closes it."""

    peer: PeerId
    certificate: PeerIdentity
    counters: dict[str, int]
    seen: Recorder
    transport: Transport

    @property
    def member(self) -> Member: ...

    def linked_to(self, *others: RoadPeer) -> bool: ...

    async def start(self, handler: LinkHandler | None = None) -> RoadPeer: ...

    async def __aenter__(self) -> RoadPeer: ...

    async def __aexit__(self, *_: object) -> None: ...


class RawLink(Protocol):
    """The connection of a member whose software we control: it has been let in, and sends what it likes."""

    def write(self, data: bytes) -> None: ...

    async def read(self, size_bytes: int) -> bytes:
        """Return the next `size_bytes`, or what there was before the end."""
        ...

    async def ended(self) -> bool:
        """Wait until the other side has ended the connection."""
        ...

    def stop_reading(self) -> None: ...

    def abort(self) -> None: ...


class Road:
    """Makes peers of one kind under `folder`. The same name is the same peer: a second life of it."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def peer(self, name: str, *, limits: Limits | None = None, **settings: Any) -> Any:
        """Return a RoadPeer, not yet started."""
        raise NotImplementedError

    def stranger(self, name: str) -> Any:
        """Return a peer with a certificate of another authority."""
        raise NotImplementedError

    def standing_address(self) -> dict[str, Any]:
        """Return settings with which a peer is found where it was in its former life."""
        return {}

    def listening_at(self, host: str, port: int) -> dict[str, Any]:
        """Return settings with which a peer listens at a numeric host and a TCP port."""
        raise NotImplementedError

    def where(self, peer: Any) -> tuple[str, int]:
        """Return the TCP host and port on which a peer listens."""
        raise NotImplementedError

    async def raw(self, at: Any, as_peer: Any) -> RawLink:
        """Connect to a peer as a member, up to where a link begins."""
        raise NotImplementedError


class MemoryPeer:
    def __init__(
        self, network: MemoryNetwork, name: str, limits: Limits | None, role: str, kind: str
    ) -> None:
        self.peer = Signer(name.encode().ljust(32)[:32]).peer
        self.certificate = PeerIdentity(self.peer, name, role, kind)
        self.counters: dict[str, int] = {}
        self.seen = Recorder()
        self.transport = MemoryTransport(network, self.certificate, limits, self.counters)

    @property
    def member(self) -> Member:
        certificate = self.certificate
        return Member(self.peer, certificate.name, certificate.machine_type, self.transport.addresses)

    def linked_to(self, *others: RoadPeer) -> bool:
        return all(other.peer in self.seen.linked for other in others)

    async def start(self, handler: LinkHandler | None = None) -> MemoryPeer:
        await self.transport.start(handler or self.seen)
        return self

    async def __aenter__(self) -> MemoryPeer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.transport.close()


class MemoryRoad(Road):
    name = "memory"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.network = MemoryNetwork()

    def peer(self, name: str, *, limits: Limits | None = None, **settings: Any) -> MemoryPeer:
        role, kind = settings.get("role", "machine"), settings.get("machine_type", "")
        return MemoryPeer(self.network, name, limits, role, kind)


class TlsRawLink:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def read(self, size_bytes: int) -> bytes:
        try:
            return await self._reader.readexactly(size_bytes)
        except asyncio.IncompleteReadError as error:
            return error.partial

    async def ended(self) -> bool:
        try:
            while await self._reader.read(65536):
                pass
        except OSError:
            pass
        self._writer.close()
        return True

    def stop_reading(self) -> None:
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def abort(self) -> None:
        self._writer.transport.abort()


class TlsRoad(Road):
    name = "tls"

    def peer(self, name: str, *, limits: Limits | None = None, **settings: Any) -> TlsPeer:
        return TlsPeer(make_settings(self.folder, name, limits=limits, **settings))

    def stranger(self, name: str) -> TlsPeer:
        return TlsPeer(make_settings(self.folder / "elsewhere", name))

    def standing_address(self) -> dict[str, Any]:
        return self.listening_at("127.0.0.1", free_port())

    def listening_at(self, host: str, port: int) -> dict[str, Any]:
        return {"listen": format_address(host, port)}

    def where(self, peer: TlsPeer) -> tuple[str, int]:
        return peer.where

    async def raw(self, at: TlsPeer, as_peer: TlsPeer, protocol: str = "edgepool-link/1") -> TlsRawLink:
        context = as_peer.identity.link_context
        context.set_alpn_protocols([protocol] if protocol else [])
        return TlsRawLink(*await asyncio.open_connection(*at.where, ssl=context, server_hostname=""))


class ChildRawLink:
    """A link's stream that a member opened over its own child, with the proof done, and then left to us."""

    def __init__(self, peer: TlsPeer) -> None:
        self.peer = peer
        self.reader = asyncio.StreamReader(limit=2**20)
        self.protocol = asyncio.StreamReaderProtocol(self.reader)
        self.stream: Any = None

    def write(self, data: bytes) -> None:
        self.stream.write(data)

    async def read(self, size_bytes: int) -> bytes:
        try:
            return await self.reader.readexactly(size_bytes)
        except asyncio.IncompleteReadError as error:
            return error.partial

    async def ended(self) -> bool:
        try:
            while await self.reader.read(65536):
                pass
        except OSError:
            pass
        return True

    def stop_reading(self) -> None:
        self.stream.pause_reading()

    def abort(self) -> None:
        self.stream.abort()


class _CarelessDoor(ProofDoor):
    """Proves its own membership, and takes whoever is at the other end for what it wants."""

    def examine(self, proof: MembershipProof) -> PeerIdentity:
        return PeerIdentity(PeerId(""), "", "machine", "")


class _Handover(asyncio.BufferedProtocol):
    """Takes a stream over from the proof door and gives what arrives to a plain protocol."""

    def __init__(self, link: ChildRawLink) -> None:
        self._link = link
        self._buffer = bytearray(65536)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link.stream = transport
        self._link.protocol.connection_made(transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._link.protocol.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> None:
        self._link.reader.feed_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.protocol.connection_lost(exc)


class Libp2pRoad(TlsRoad):
    name = "libp2p"

    def peer(self, name: str, *, limits: Limits | None = None, **settings: Any) -> TlsPeer:
        return super().peer(name, limits=limits, transport="libp2p", **settings)

    def stranger(self, name: str) -> TlsPeer:
        return TlsPeer(make_settings(self.folder / "elsewhere", name, transport="libp2p"))

    def listening_at(self, host: str, port: int) -> dict[str, Any]:
        return {"libp2p": Libp2pSettings(listen=format_address(host, port))}

    def where(self, peer: TlsPeer) -> tuple[str, int]:
        host, port, _ = parse_address(on_tcp(peer.transport.addresses[0]))
        return host, port

    async def raw(self, at: TlsPeer, as_peer: TlsPeer, protocol: str = "/edgepool/link/1") -> ChildRawLink:
        link = ChildRawLink(as_peer)
        road = as_peer.transport.libp2p
        assert road is not None
        door = _CarelessDoor(
            as_peer.identity, as_peer.counters, protocol, True, lambda *_: _Handover(link), 20_000
        )
        await road.connect(door, at.peer, at.transport.addresses[0])
        if link.stream is None:
            link.reader.feed_eof()
        return link


def frame_of(body: bytes) -> bytes:
    """Return a frame as it is on the wire."""
    return len(body).to_bytes(4, "big") + body


ROADS: dict[str, type[Road]] = {"memory": MemoryRoad, "tls": TlsRoad, "libp2p": Libp2pRoad}
