"""What only the TLS road can be asked: certificates of strangers, and protocols by ALPN."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from msgspec.structs import replace
from roads import TlsRoad, frame_of
from tls_peers import TlsPeer, ended, free_port, make_settings, until

from edgepool.core.ledger.trust import UnitedTrust
from edgepool.model.ids import parse_address
from edgepool.model.pool import Member
from edgepool.peer.paths import found_elsewhere
from edgepool.transport.keptport import PORT_FILE
from edgepool.transport.tls import TlsTransport


async def test_a_stranger_who_takes_any_certificate_fails_on_its_own(tmp_path: Path) -> None:
    foreign = make_settings(tmp_path / "elsewhere", "mole")
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["edgepool-link/1"])
        for folder in (None, foreign.folder / "identity"):
            if folder is not None:
                context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
            reader, writer = await asyncio.open_connection(*a.where, ssl=context, server_hostname="")
            writer.write(frame_of(b"let me in"))
            assert await ended(reader)
            writer.close()
        await until(lambda: a.counters == {"refused_no_certificate": 1, "refused_foreign": 1})
        assert a.seen.events == []


@pytest.mark.parametrize("protocol", ["", "h2", "edgepool-transfer/1"])
async def test_a_protocol_that_is_not_spoken_is_refused(tmp_path: Path, protocol: str) -> None:
    road = TlsRoad(tmp_path)
    async with road.peer("a") as a:
        link = await road.raw(a, road.peer("b"), protocol)
        assert await link.ended()
        assert a.counters == {"refused_stranger": 1}


async def test_who_answers_in_the_place_of_another_is_linked_once_as_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not dialled in circles; when it is gone, whoever is there then is found."""
    monkeypatch.setattr("edgepool.transport.dialler.LONGEST_BACKOFF_S", 0.05)
    tries, dial = [], TlsTransport._dial

    async def counted(self: TlsTransport, member: Member, address: str) -> bool:
        tries.append(address)
        return await dial(self, member, address)

    monkeypatch.setattr(TlsTransport, "_dial", counted)
    road = TlsRoad(tmp_path)
    async with road.peer("a") as a:
        c = road.peer("c")
        async with road.peer("b") as b:
            where = b.transport.addresses
            a.transport.want(Member(c.peer, "c", "", where))
            await until(lambda: a.linked_to(b) and b.linked_to(a))
            before = len(tries)
            await until(lambda: len(tries) > before + 10)
            assert a.seen.events == [("up", b.peer)]
            assert b.seen.events == [("up", a.peer)]
            ((wanted, there),) = [(one.wanted.peer, one.there.peer) for one in a.transport.found.all()]
            assert (wanted, there) == (c.peer, b.peer)
            (told,) = found_elsewhere(a.transport, ["c"])
            assert where[0] in told
            assert b.peer in told
            # It dials as well: the newest connection is the link, on both sides, and nothing else changes.
            b.transport.want(a.member)
            a.transport.want(b.member)
            before = len(tries)
            await until(lambda: len(tries) > before + 10 and a.linked_to(b) and b.linked_to(a))
        async with road.peer("c", listen=where[0]) as c:
            await until(lambda: a.linked_to(c))
            assert found_elsewhere(a.transport, ["c"]) == []


async def test_who_may_not_come_in_is_not_linked_where_another_was_looked_for(tmp_path: Path) -> None:
    road = TlsRoad(tmp_path)
    async with road.peer("a") as a, road.peer("b") as b:
        c = road.peer("c")
        a.transport.want(Member(c.peer, "c", "", a.transport.addresses))
        await until(lambda: a.counters.get("refused_wrong_peer"))
        a.identity.trust.decide(UnitedTrust(revoked={b.peer: None}))
        a.transport.want(Member(c.peer, "c", "", b.transport.addresses))
        await until(lambda: a.counters.get("refused_revoked"))
        assert a.seen.events == []


async def test_a_port_that_is_left_to_the_system_is_kept_as_long_as_it_is_free(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "a")
    assert settings.listen.endswith("/tcp/0")
    async with TlsPeer(settings) as a:
        first = a.where
    async with TlsPeer(settings) as a:
        assert a.where == first
    with socket.create_server(first):
        async with TlsPeer(settings) as a:
            second = a.where
            assert second != first
    async with TlsPeer(settings) as a:
        assert a.where == second
    for unfit in (b"", b"none", b"99999", b"-1", b"0"):
        (settings.folder / PORT_FILE).write_bytes(unfit)
        async with TlsPeer(settings) as a:
            assert a.where[1] > 0
    fixed = replace(settings, listen=f"/ip4/127.0.0.1/tcp/{free_port()}")
    (settings.folder / PORT_FILE).unlink()
    async with TlsPeer(fixed) as a:
        assert a.where[1] == parse_address(fixed.listen)[1]
    assert not (settings.folder / PORT_FILE).exists()
