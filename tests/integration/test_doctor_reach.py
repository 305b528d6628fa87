"""The doctor tries other peers over real sockets, and leaves no trace there."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from test_conduit import conduit_peer, inner_peer, kept, started
from tls_peers import TlsPeer, make_settings, until

from edgepool.config import KnownPeer
from edgepool.gateway.app import ApiServer
from edgepool.gateway.examination import examine
from edgepool.gateway.reach import reach, reach_findings, try_places
from edgepool.gateway.setup import PeerPlan, free_ports, make_peer_folder
from edgepool.model.pool import Member
from edgepool.model.transfer import TransferRequest
from edgepool.peer.peer import Peer
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.certificates import load_identity
from edgepool.transport.dial import Way
from edgepool.transport.transfer_server import TransferServer

PEER = "12D3KooWPSjwuwUkYKvFUSk8zv5LVBxUcTVX3aSK5vqMmMeibTBL"


def no_transfers(_: PeerIdentity, __: TransferRequest, ___: Way) -> str:
    return "not now"


def serving(folder: Path, name: str, **more: object) -> TlsPeer:
    settings = make_settings(folder, name, **more)  # type: ignore[arg-type]
    peer = TlsPeer(settings)
    return TlsPeer(settings, TransferServer(no_transfers, settings.limits, peer.counters))


async def test_who_answers_is_told_from_who_does_not(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "mill")
    identity = load_identity(settings)
    async with serving(tmp_path, "lathe") as lathe, serving(tmp_path, "drill") as drill:
        absent = Member(identity.peer, "absent", "", (f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}",))
        moved = Member(drill.peer, "drill", "", lathe.member.addresses)
        renewed = Member(drill.peer, "lathe", "", lathe.member.addresses)
        tries = await reach(settings, identity, [lathe.member, absent, moved, renewed])
        assert [one.problem for one in tries] == [
            "",
            "nothing listens there",
            "another peer, lathe, answers there",
            "it answers under another key",
        ]
        assert "edgepool key rotate" in tries[-1].advice
        findings = reach_findings(tries[:3])
        assert [(one.check, one.level) for one in findings] == [
            ("reach", "ok"),
            ("reach absent", "warn"),
            ("reach drill", "warn"),
        ]
        assert lathe.counters == {}
        assert lathe.seen.events == []


async def test_peers_of_others_are_told_from_those_that_refuse_this_one(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "mill")
    identity = load_identity(settings)
    async with (
        serving(tmp_path, "lathe", authority=tmp_path / "others") as stranger,
        serving(tmp_path, "drill", network="other") as elsewhere,
    ):
        tries = await reach(settings, identity, [stranger.member, elsewhere.member])
    assert "not of this peer's authority" in tries[0].problem
    assert tries[1].problem == "its certificate is for network 'other', not 'plant-7'"
    # A peer with a good certificate that trusts another authority says no after this side is done.
    suspicious = TlsPeer(make_settings(tmp_path, "saw"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    own = tmp_path / "saw/identity"
    context.load_cert_chain(own / "certificate.pem", own / "key.pem")
    context.load_verify_locations(tmp_path / "others/authority.pem")
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    try:
        address = f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}"
        (one,) = await reach(settings, identity, [Member(suspicious.peer, "saw", "", (address,))])
    finally:
        server.close()
    assert "it refuses this peer's certificate" in one.problem


async def test_a_running_peer_is_asked_for_its_links(tmp_path: Path) -> None:
    known = KnownPeer("cloud", f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}/p2p/{PEER}")
    listen = f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}"
    plan = PeerPlan("mill", "plant", listen=listen, known_peers=(known,))
    make_peer_folder(tmp_path / "mill", plan, tmp_path / "authority")
    async with Peer.open(tmp_path / "mill") as peer:
        server = ApiServer(peer, tmp_path / "mill")
        await server.start()
        try:
            found = await examine(tmp_path / "mill")
        finally:
            await server.close()
    levels = {finding.check: finding.level for finding in found.findings}
    assert found.running
    assert found.count("fault") == 0
    assert (levels["port"], levels["link to cloud"]) == ("ok", "warn")
    assert "reach" not in levels


async def test_who_is_behind_a_conduit_is_reached_through_it_and_the_conduit_is_tried(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path, reservations=2) as c, serving(tmp_path, "open") as no_conduit:
        settings = inner_peer(tmp_path, "mill", c, no_conduit).settings
        identity = load_identity(settings)
        lathe, absent = inner_peer(tmp_path, "lathe", c), inner_peer(tmp_path, "absent", c)
        serving_lathe = TlsPeer(lathe.settings, TransferServer(no_transfers, lathe.settings.limits, {}))
        async with started(serving_lathe):
            await until(lambda: kept(serving_lathe), 30)
            tries = await reach(settings, identity, [serving_lathe.member, absent.member])
            assert [one.problem for one in tries] == ["", "that peer keeps no link to this conduit"]
            places = await try_places(settings, identity)
            assert [(place.conduit, place.kept) for place in places] == [("conduit", True), ("open", False)]
            assert places[0].round_trip_ms is not None
            assert "no conduit" in places[1].reason
            assert lathe.counters == {}
