"""Circuits of libp2p: a gateway that accepts nothing from outside is reached through a member's relay."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace
from peer_cell import formed, make_coordinator, make_machine
from roads import Libp2pRoad
from tls_peers import NETWORK, TlsPeer, free_port, until

from edgepool import Peer
from edgepool.config import KnownPeer, Libp2pSettings, Limits, load_peer_settings
from edgepool.model.ids import format_address
from edgepool.model.lineage import follow
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
            assert a.transport.paths()[b.peer].conduit == "relay"
            kept = a.transport.libp2p.relays.places()  # type: ignore[union-attr]
            assert [(place.name, place.kept) for place in kept] == [("relay", True)]
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


async def test_who_sits_where_a_relay_was_has_to_be_its_heir(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    serving = Libp2pSettings(listen=format_address("127.0.0.1", free_port()), relay=True)
    async with road.peer("relay", libp2p=serving) as relay:
        hidden = Libp2pSettings(listen="", relays=(f"{relay.transport.addresses[0]}/p2p/{relay.peer}",))
    a, b = road.peer("a", libp2p=hidden), road.peer("b", libp2p=hidden)
    async with a, b, road.peer("heir", libp2p=serving) as heir:
        a.transport.want(member(b))
        keys, own, child = heir.transport.conduits.keys, heir.identity.signer, heir.transport.libp2p
        assert child is not None
        for line in ((), (follow(a.identity.signer, own, NETWORK),)):
            keys.line = line
            refused = a.counters.get("refused_wrong_peer", 0)
            # The call under way may have begun with the line before.
            await until(lambda: a.counters.get("refused_wrong_peer", 0) > refused + 1, PATIENCE_S)  # noqa: B023
            assert not any(place.kept for place in a.transport.libp2p.relays.places())
        keys.line = (follow(relay.identity.signer, own, NETWORK),)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        assert a.transport.paths()[b.peer].conduit == "heir"
        assert [place.peer for place in a.transport.libp2p.relays.places()] == [heir.peer]


async def test_data_moves_through_a_relay_that_cannot_read_it(tmp_path: Path) -> None:
    port = free_port()
    serving = Libp2pSettings(listen=format_address("127.0.0.1", port), relay=True)
    patient = Limits(handshake_timeout_ms=60_000, transfer_stall_ms=60_000)
    cloud_settings = replace(
        load_peer_settings(make_coordinator(tmp_path)), transport="both", libp2p=serving, limits=patient
    )
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(Peer(cloud_settings))
        relay = f"/ip4/127.0.0.1/tcp/{port}/noise/p2p/{cloud.id}"
        machines = []
        for name in ("m0", "m1"):
            settings = load_peer_settings(make_machine(tmp_path, name, cloud))
            hidden = replace(
                settings,
                listen="",
                transport="libp2p",
                libp2p=Libp2pSettings(listen="", relays=(relay,)),
                known_peers=(KnownPeer("cloud", relay),),
                limits=patient,
            )
            machines.append(await stack.enter_async_context(Peer(hidden)))
        await formed(cloud, [cloud, *machines])
        data = Random(7).randbytes(2_000_000)  # which cannot be packed
        await machines[0].publish("PTVA10212-01/model", data)
        ways = dict[tuple[bool, str, str], None]()

        def look(_: object) -> None:
            for peer in machines:
                ways.update({(one.outgoing, one.conduit, one.road): None for one in peer.status().transfers})

        fetched = await machines[1].fetch("PTVA10212-01/model", progress=look)
        assert await asyncio.to_thread(fetched.path.read_bytes) == data
        links = {link.name: link for link in machines[1].status().links}
        assert (links["m0"].road, links["m0"].conduit) == ("libp2p", "cloud")
        assert set(ways) == {(True, "cloud", "libp2p"), (False, "cloud", "libp2p")}
        assert [(one.name, one.kept) for one in machines[1].status().conduits] == [("cloud", True)]
        assert not machines[1].status().problems

        def passed() -> bool:
            relay = cloud.status().libp2p
            return relay is not None and relay.places == 2 and relay.passed_bytes > len(data)

        await until(passed, PATIENCE_S)
        assert (links["cloud"].road, links["cloud"].conduit) == ("libp2p", "")
