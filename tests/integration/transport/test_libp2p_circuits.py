"""Circuits of libp2p: a gateway that accepts nothing from outside is reached through a relay that is a member."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from roads import Libp2pRoad
from tls_peers import TlsPeer, free_port, until

from edgepool.config import Libp2pSettings
from edgepool.model.ids import format_address
from edgepool.model.pool import Member

if find_spec("libp2p") is None:
    pytest.skip("the extra libp2p is not installed", allow_module_level=True)

PATIENCE_S = 60.0


def member(peer: TlsPeer) -> Member:
    """Return a gateway as others know it: by its circuits alone."""
    circuits = tuple(address for address in peer.transport.addresses if "/p2p-circuit" in address)
    assert circuits
    return Member(peer.peer, peer.settings.name, "", circuits)


async def test_gateways_are_reached_through_a_relay_and_come_back_when_it_does(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    serving = Libp2pSettings(listen=format_address("127.0.0.1", free_port()), relay=True)
    relay = await road.peer("relay", libp2p=serving).start()
    hidden = Libp2pSettings(listen="", relays=(f"{relay.transport.addresses[0]}/p2p/{relay.peer}",))
    async with (
        road.peer("a", libp2p=hidden) as a,
        road.peer("b", libp2p=hidden) as b,
        road.peer("c", listen="") as c,
    ):
        try:
            for peer, others in ((a, (b,)), (c, (a, b))):
                for other in others:
                    peer.transport.want(member(other))
            await until(lambda: a.linked_to(b, c) and b.linked_to(a, c) and c.linked_to(a, b), PATIENCE_S)
            assert a.transport.paths()[b.peer].conduit
            assert c.transport.paths()[a.peer].road == "libp2p"
            for i in range(50):
                assert a.transport.send(b.peer, bytes([i]) * 20_000)
            await until(lambda: len(b.seen.frames) == 50, PATIENCE_S)
            assert [frame[0] for _, frame in b.seen.frames] == list(range(50))
            # One circuit of a peer ends, and its others stand.
            downs = c.seen.events.count(("down", b.peer))
            a.transport.close_link(c.peer, "misbehaved")
            await until(lambda: ("down", a.peer) in c.seen.events, PATIENCE_S)
            assert a.linked_to(b)
            assert c.seen.events.count(("down", b.peer)) == downs
            assert relay.seen.events == []
        finally:
            await relay.transport.close()
        await until(lambda: not a.linked_to(b), PATIENCE_S)
        async with road.peer("relay", libp2p=serving):
            await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)


async def test_a_relay_serves_members_alone(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    async with road.peer("relay", libp2p=Libp2pSettings(relay=True)) as relay:
        where = f"{relay.transport.addresses[0]}/p2p/{relay.peer}"
        async with (
            road.peer("a", libp2p=Libp2pSettings(listen="", relays=(where,))) as a,
            road.stranger("s") as s,
        ):
            s.transport.want(member(a))
            stream = None
            with pytest.raises(OSError):
                # Straight to the relay's hop protocol, without having proved anything there.
                stream = await s.transport.libp2p.process.open_stream(  # type: ignore[union-attr]
                    a.peer,
                    where.replace("/noise", "") + f"/p2p-circuit/p2p/{a.peer}",
                    "/edgepool/link/1",
                    20_000,
                )
            assert stream is None
            await until(lambda: relay.counters.get("refused_circuit"), PATIENCE_S)
            assert a.seen.events == []
