"""Multicast DNS in the child, on loopback: peers find each other, and lies there cost an attempt."""

from __future__ import annotations

import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
from msgspec.structs import replace
from peer_cell import make_coordinator, make_machine
from roads import Libp2pRoad
from tls_peers import NETWORK, TlsPeer, until

from edgepool import Peer
from edgepool.config import Libp2pSettings, load_peer_settings
from edgepool.model.ids import on_tcp
from edgepool.model.lineage import follow
from edgepool.model.pool import Member

if find_spec("libp2p") is None:
    pytest.skip("the extra libp2p is not installed", allow_module_level=True)

GROUP, PORT = "224.0.0.251", 5353
PATIENCE_S = 60.0
LOOKING = Libp2pSettings(mdns=True)


def on_loopback() -> socket.socket:
    """Return a socket that speaks to the group on loopback."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    return made


def has_multicast() -> bool:
    """Say whether a datagram to the group comes back on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ears, on_loopback() as mouth:
        try:
            ears.bind((GROUP, 0))
            member = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
            ears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            ears.settimeout(5)
            mouth.sendto(b"x", (GROUP, ears.getsockname()[1]))
            return ears.recv(10) == b"x"
        except OSError:
            return False


if not has_multicast():
    pytest.skip("this machine has no multicast on loopback", allow_module_level=True)


def nameless(peer: TlsPeer) -> Member:
    """Return a peer of which nothing but its id is known."""
    return Member(peer.peer, peer.settings.name, "", ())


async def test_peers_find_each_other_whoever_comes_first_and_again_after_a_restart(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    async with road.peer("a", libp2p=LOOKING) as a, road.peer("b", libp2p=LOOKING) as b:
        a.transport.want(nameless(b))
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        process = b.transport.libp2p.process  # type: ignore[union-attr]
        os.kill(process._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        await until(lambda: process.state.restarts == 1 and process.state.running, PATIENCE_S)
        async with road.peer("c", libp2p=LOOKING) as c:
            c.transport.want(nameless(b))
            await until(lambda: c.linked_to(b) and b.linked_to(c), PATIENCE_S)


async def test_who_has_changed_its_key_is_found_by_the_former_one(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    former = road.peer("b")
    b = road.peer("b under its next key", libp2p=LOOKING)
    b.transport.conduits.keys.line = (follow(former.identity.signer, b.identity.signer, NETWORK),)
    async with road.peer("a", libp2p=LOOKING) as a, b:
        a.transport.want(nameless(former))
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)


async def test_who_is_not_asked_for_is_not_found(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    async with (
        road.peer("a", libp2p=LOOKING) as a,
        road.peer("b") as silent,
        road.peer("c", libp2p=LOOKING) as c,
    ):
        a.transport.want(nameless(silent))
        c.transport.want(nameless(a))
        await until(lambda: c.linked_to(a), PATIENCE_S)
        assert not a.linked_to(silent)


async def test_a_lie_about_where_somebody_is_does_no_more_than_cost_an_attempt(tmp_path: Path) -> None:
    from edgepool.transport.libp2p_child.mdnswords import answer

    road = Libp2pRoad(tmp_path)
    async with (
        road.peer("a", libp2p=LOOKING) as a,
        road.peer("b") as b,
        road.stranger("s") as stranger,
    ):
        a.transport.want(nameless(b))
        lie = f"{on_tcp(stranger.transport.addresses[0])}/p2p/{b.peer}"
        true = f"{on_tcp(b.transport.addresses[0])}/p2p/{b.peer}"
        with on_loopback() as mouth:
            for said in (lie, true):

                def tried(said: str = said) -> bool:
                    mouth.sendto(b"\0\0garbage" * 9, (GROUP, PORT))
                    mouth.sendto(answer("x" * 32, [said]), (GROUP, PORT))
                    return bool(a.counters.get("refused_foreign")) if said is lie else a.linked_to(b)

                await until(tried, PATIENCE_S)
        assert a.transport.paths()[b.peer].road == "libp2p"
        assert stranger.seen.events == []


async def test_a_gateway_that_knows_nothing_but_its_coordinators_id_finds_it(tmp_path: Path) -> None:
    cloud_settings = replace(load_peer_settings(make_coordinator(tmp_path)), transport="both", libp2p=LOOKING)
    async with Peer(cloud_settings) as cloud:
        settings = load_peer_settings(make_machine(tmp_path, "m0", cloud, known=False))
        async with Peer(replace(settings, transport="libp2p", libp2p=LOOKING)) as machine:
            await until(lambda: [one.name for one in machine.connected()] == ["cloud"], PATIENCE_S)
