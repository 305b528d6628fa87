"""The in-memory transport keeps the promises of the port, so that what runs on it runs on sockets."""

from __future__ import annotations

import asyncio

from edgepool.config import Limits
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.runtime.ports import PeerIdentity, Transport
from edgepool.transport.memory import MemoryNetwork, MemoryTransport


class Recorder:
    def __init__(self) -> None:
        self.log: list[tuple[str, object]] = []
        self.came_back = asyncio.Event()

    def link_up(self, identity: PeerIdentity) -> None:
        if self.log:
            self.came_back.set()
        self.log.append(("up", identity.name))

    def link_down(self, peer: PeerId, reason: str) -> None:
        self.log.append(("down", reason))

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        self.log.append(("frame", frame))


class Peer:
    def __init__(self, network: MemoryNetwork, name: str, limits: Limits | None = None) -> None:
        peer = Signer(name.encode().ljust(32)).peer
        self.seen = Recorder()
        self.transport = MemoryTransport(network, PeerIdentity(peer, name, "machine", ""), limits)
        self.port: Transport = self.transport
        self.id = peer
        self.member = Member(peer, name, "", self.transport.addresses)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def linked(limits: Limits | None = None) -> tuple[MemoryNetwork, Peer, Peer]:
    network = MemoryNetwork()
    a, b = Peer(network, "a", limits), Peer(network, "b")
    await a.port.start(a.seen)
    await b.port.start(b.seen)
    a.port.want(b.member)
    await turns()
    return network, a, b


async def test_a_link_stands_once_for_both_whoever_wants_it_and_whoever_starts_first() -> None:
    network = MemoryNetwork()
    a, b = Peer(network, "a"), Peer(network, "b")
    a.port.want(b.member)
    a.port.want(a.member)
    await a.port.start(a.seen)
    await turns()
    assert a.seen.log == []
    await b.port.start(b.seen)
    b.port.want(a.member)
    await turns()
    assert a.seen.log == [("up", "b")]
    assert b.seen.log == [("up", "a")]


async def test_frames_keep_their_order_and_never_arrive_within_send() -> None:
    _, a, b = await linked()
    for i in range(100):
        assert a.port.send(b.id, b"%d" % i)
    assert b.seen.log == [("up", "a")]
    await turns()
    assert b.seen.log[1:] == [("frame", b"%d" % i) for i in range(100)]


async def test_outboxes_are_bounded_and_drops_are_counted() -> None:
    _, a, b = await linked(Limits(outbox_bytes=65536, frame_bytes=65536))
    sent = [a.port.send(b.id, bytes(10_000)) for _ in range(10)]
    assert sent == [True] * 6 + [False] * 4
    assert not a.port.send(b.id, bytes(65537))
    assert not a.port.send(PeerId("nobody"), b"")
    assert a.transport.counters == {"dropped_outbox": 4, "dropped_frame_too_long": 1, "dropped_no_link": 1}
    await turns()
    assert len(b.seen.log) == 7
    assert a.port.send(b.id, bytes(10_000))


async def test_a_cut_link_loses_what_is_under_way_and_heals() -> None:
    network, a, b = await linked()
    a.port.send(b.id, b"lost")
    network.cut(a.id, b.id)
    await turns()
    assert b.seen.log == [("up", "a"), ("down", "the link was cut")]
    assert not a.port.send(b.id, b"lost too")
    a.port.want(b.member)
    await turns()
    assert len(a.seen.log) == 2
    network.heal(b.id, a.id)
    await turns()
    assert a.port.send(b.id, b"again")
    await turns()
    assert b.seen.log[2:] == [("up", "a"), ("frame", b"again")]
