"""The door of the libp2p road: both prove their membership, or nothing behind it is reached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgepool.config import Limits, PeerSettings
from edgepool.core.ledger.trust import UnitedTrust
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.channelproof import MAX_PROOF_BYTES, MembershipProof, make_proof
from edgepool.model.codec import decode, encode
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.identity import Identity, load_identity
from edgepool.transport.libp2p import Libp2pRoad
from edgepool.transport.proofdoor import ChannelHello, ProofDoor, channel_binding


class Said:
    """Stands for the child: what it is told."""

    def __init__(self) -> None:
        self.members: list[PeerId] = []

    def prove(self, peer: PeerId) -> None:
        self.members.append(peer)

    def disconnect(self, peer: PeerId) -> None:
        self.members = [one for one in self.members if one != peer]


def test_whom_the_road_holds_no_more_is_no_member_for_its_child_either(tmp_path: Path) -> None:
    """Else a revocation would not reach somebody who has proved itself long ago."""
    identity = member(tmp_path, "a")
    road: Libp2pRoad = object.__new__(Libp2pRoad)
    child = Said()
    road.process = child  # type: ignore[assignment]
    road._identity, road._limits, road._proven = identity, Limits(links=2), {}
    peers = [replace(identity.certificate, peer=PeerId(name)) for name in ("p0", "p1", "p2")]
    for one in (peers[0], peers[1], peers[0], peers[2]):
        road._prove(one)
    assert list(road._proven) == ["p0", "p2"], "who has proved itself last stays"
    assert set(child.members) == {"p0", "p2"}
    identity.trust.decide(UnitedTrust(revoked={PeerId("p0"): None, PeerId("p1"): None}))
    assert set(child.members) == {"p2"}


PROTOCOL = "/edgepool/link/1"


@pytest.fixture
def members(tmp_path: Path) -> tuple[Identity, Identity]:
    return member(tmp_path, "a"), member(tmp_path, "b")


def member(folder: Path, name: str, network: str = "plant") -> Identity:
    settings: PeerSettings = make_peer_folder(folder / name, PeerPlan(name, network), folder / "authority")
    return load_identity(settings)


class Taker(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.heard = b""
        self._buffer = bytearray(7)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.heard += bytes(self._buffer[:nbytes])


class Channel:
    """One end of a stream whose other end a test holds; `peer` is who is there."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...

    def take(self) -> bytes:
        written, self.written = self.written, b""
        return written


class Side:
    def __init__(self, identity: Identity, other: PeerId, opened_here: bool) -> None:
        self.counters: dict[str, int] = {}
        self.admitted: list[PeerIdentity] = []
        self.taker = Taker()
        self.channel = Channel(other)
        self.door = ProofDoor(identity, self.counters, PROTOCOL, opened_here, self._admit, 60_000)
        self.door.connection_made(self.channel)  # type: ignore[arg-type]

    def _admit(self, identity: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol:
        self.admitted.append(identity)
        return self.taker

    def hear(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.channel.aborted:
            protocol = self.door if self.door.admitted is None else self.taker
            space = memoryview(protocol.get_buffer(len(view)))
            size = min(len(space), len(view))
            space[:size] = view[:size]
            protocol.buffer_updated(size)
            view = view[size:]


def frames(data: bytes) -> list[bytes]:
    buffer = FrameBuffer(MAX_PROOF_BYTES + 64)
    buffer.space(len(data))[: len(data)] = data
    buffer.received(len(data))
    return list(iter(buffer.next_frame, None))


def framed(value: object) -> bytes:
    body = encode(value)
    return header(len(body)) + body


async def test_two_members_prove_themselves_and_what_is_behind_goes_to_who_takes_over(
    members: tuple[Identity, Identity],
) -> None:
    a, b = members
    opener, acceptor = Side(a, b.peer, True), Side(b, a.peer, False)
    assert not acceptor.channel.written, "who accepts speaks only when spoken to"
    acceptor.hear(opener.channel.take())
    opener.hear(acceptor.channel.take())
    acceptor.hear(opener.channel.take() + b"the first frames")
    assert [identity.name for identity in (*opener.admitted, *acceptor.admitted)] == ["b", "a"]
    assert acceptor.taker.heard == b"the first frames"
    assert opener.counters == acceptor.counters == {}


async def test_the_opener_shows_its_certificate_to_a_proven_member_alone(tmp_path: Path) -> None:
    a, stranger = member(tmp_path, "a"), member(tmp_path / "elsewhere", "b")
    opener, acceptor = Side(a, stranger.peer, True), Side(stranger, a.peer, False)
    acceptor.hear(opener.channel.take())
    opener.hear(acceptor.channel.take())
    assert opener.channel.aborted
    assert not opener.channel.written
    assert opener.admitted == []
    assert opener.counters == {"refused_foreign": 1}


def reflected(_: Identity, opener: Side, own: bytes) -> bytes:
    return own


def of_another_channel(b: Identity, opener: Side, own: bytes) -> bytes:
    hello = ChannelHello(bytes(32))
    wrong = channel_binding(PROTOCOL, opener.channel.peer, b.peer, bytes(32), hello.nonce)
    proof = make_proof(b.signer, b.certificate_der, b.network, wrong, opener.channel.peer)
    return framed(hello) + framed(proof)


def of_the_other_direction(b: Identity, opener: Side, own: bytes) -> bytes:
    mine = decode(ChannelHello, frames(own)[0])
    hello, me = ChannelHello(bytes(32)), PeerId(opener.door._identity.peer)
    turned = channel_binding(PROTOCOL, b.peer, me, hello.nonce, mine.nonce)
    return framed(hello) + framed(make_proof(b.signer, b.certificate_der, b.network, turned, me))


def of_another_protocol(b: Identity, opener: Side, own: bytes) -> bytes:
    mine = decode(ChannelHello, frames(own)[0])
    hello, me = ChannelHello(bytes(32)), PeerId(opener.door._identity.peer)
    other = channel_binding("/edgepool/query/1", me, b.peer, mine.nonce, hello.nonce)
    return framed(hello) + framed(make_proof(b.signer, b.certificate_der, b.network, other, me))


def not_a_proof(_: Identity, opener: Side, own: bytes) -> bytes:
    return framed(ChannelHello(bytes(32))) + framed([b"x", bytes(64)])


def too_long(_: Identity, opener: Side, own: bytes) -> bytes:
    return framed(ChannelHello(bytes(32))) + b"\x00\x00\xff\xff" + bytes(100)


def frames_at_once(_: Identity, opener: Side, own: bytes) -> bytes:
    return framed(MembershipProof(b"c", bytes(64)))


@pytest.mark.parametrize(
    "answer",
    [
        reflected,
        of_another_channel,
        of_the_other_direction,
        of_another_protocol,
        not_a_proof,
        too_long,
        frames_at_once,
    ],
)
async def test_whatever_else_is_answered_lets_nobody_in(
    members: tuple[Identity, Identity], answer: Callable[[Identity, Side, bytes], bytes]
) -> None:
    a, b = members
    opener = Side(a, b.peer, True)
    opener.hear(answer(b, opener, opener.channel.take()) * 2)
    assert opener.channel.aborted
    assert opener.admitted == []
    assert sum(opener.counters.values()) == 1


async def test_who_is_revoked_later_is_cut_at_once(members: tuple[Identity, Identity]) -> None:
    a, b = members
    opener, acceptor = Side(a, b.peer, True), Side(b, a.peer, False)
    acceptor.hear(opener.channel.take())
    opener.hear(acceptor.channel.take())
    a.trust.decide(UnitedTrust(revoked={b.peer: None}))
    assert opener.channel.aborted
    assert opener.counters == {"lost_revoked": 1}


async def test_the_certificate_of_somebody_else_lets_nobody_in(
    members: tuple[Identity, Identity], tmp_path: Path
) -> None:
    a, b = members
    thief = member(tmp_path, "thief")
    opener = Side(a, thief.peer, True)
    mine = decode(ChannelHello, frames(opener.channel.take())[0])
    hello = ChannelHello(bytes(32))
    binding = channel_binding(PROTOCOL, a.peer, thief.peer, mine.nonce, hello.nonce)
    opener.hear(
        framed(hello) + framed(make_proof(thief.signer, b.certificate_der, b.network, binding, a.peer))
    )
    assert opener.counters == {"refused_possession": 1}
    assert opener.admitted == []
