"""What strangers, thieves of tokens and greedy members get from a conduit: nothing, or their share."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_conduit import conduit_peer, inner_peer, kept, started
from tls_peers import NETWORK, TlsPeer, ended, free_port, make_settings, until

from edgepool.config import Limits
from edgepool.core.circuits import NOT_HERE, SHARE
from edgepool.core.ledger.trust import UnitedTrust
from edgepool.model.codec import Wire, encode
from edgepool.model.ids import format_address
from edgepool.model.lineage import follow
from edgepool.transport.conduitwire import (
    CIRCUIT_NAME,
    Ask,
    AskFormer,
    Beat,
    Declined,
    FormerKeys,
    FromConduit,
    Granted,
    Offered,
    Reserve,
    Reserved,
    from_conduit,
)
from edgepool.transport.dial import open_tcp
from edgepool.transport.door import Listener

SLOW_S = 30.0


@pytest.fixture(autouse=True)
def _nothing_left_over(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test may leave an asyncio complaint (a lost task or exception) behind."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.name == "asyncio"] == []


class Caller:
    """A member whose software we control byte by byte, on a connection to a conduit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def at(cls, conduit: TlsPeer, as_peer: TlsPeer) -> Caller:
        context = as_peer.identity.conduit_context
        return cls(*await asyncio.open_connection(*conduit.where, ssl=context, server_hostname=""))

    def say(self, word: Wire) -> None:
        self.raw(encode(word))

    def raw(self, body: bytes) -> None:
        self.writer.write(len(body).to_bytes(4, "big") + body)

    async def hear(self) -> FromConduit:
        async with asyncio.timeout(SLOW_S):
            size_bytes = int.from_bytes(await self.reader.readexactly(4), "big")
            return from_conduit(await self.reader.readexactly(size_bytes))

    def close(self) -> None:
        self.writer.transport.abort()


async def come(conduit: TlsPeer, token: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*conduit.where)
    writer.write(CIRCUIT_NAME + token)
    return reader, writer


async def test_a_stranger_gets_no_further_than_the_handshake(tmp_path: Path) -> None:
    mole = TlsPeer(make_settings(tmp_path / "elsewhere", "mole"))
    async with conduit_peer(tmp_path) as c:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["edgepool-conduit/1"])
        folder = mole.settings.folder / "identity"
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        reader, writer = await asyncio.open_connection(*c.where, ssl=context, server_hostname="")
        writer.write(b"\0\0\0\x01\x90")
        assert await ended(reader)
        writer.close()
        conduit = c.transport.conduit
        assert conduit is not None
        assert not conduit.table.reserved
        assert any(reason.startswith("refused") for reason in c.counters)


async def test_who_is_no_conduit_serves_nobody(tmp_path: Path) -> None:
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        b = inner_peer(tmp_path, "b", a)
        async with started(b):
            await until(lambda: a.counters.get("refused_stranger"), SLOW_S)
            assert not kept(b)
            assert b.transport.conduits.places()[0].reason


async def test_tokens_that_are_guessed_or_used_again_open_nothing(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path) as c:
        a, b = (TlsPeer(make_settings(tmp_path, name)) for name in "ab")
        mine, theirs = await Caller.at(c, a), await Caller.at(c, b)
        theirs.say(Reserve())
        assert await theirs.hear() == Reserved("")
        mine.say(Ask(7, b.peer))
        granted, offered = await mine.hear(), await theirs.hear()
        assert isinstance(granted, Granted)
        assert isinstance(offered, Offered)
        assert granted.number == 7
        assert offered.peer == a.peer
        assert offered.token != granted.token
        near_reader, near = await come(c, granted.token)
        for token in (granted.token, bytes(32), granted.token[::-1]):
            reader, writer = await come(c, token)
            assert await ended(reader)
            writer.close()
        far_reader, far = await come(c, offered.token)
        near.write(b"between us")
        assert await far_reader.readexactly(10) == b"between us"
        far.write(b"indeed")
        assert await near_reader.readexactly(6) == b"indeed"
        reader, writer = await come(c, offered.token)
        assert await ended(reader)
        assert c.counters == {"refused_token": 4}
        for end in (writer, near, far):
            end.close()
        mine.close()
        theirs.close()


async def test_a_circuit_to_which_one_side_does_not_come_is_given_up(tmp_path: Path) -> None:
    async with TlsPeer(
        make_settings(
            tmp_path,
            "conduit",
            conduit=conduit_peer(tmp_path).settings.conduit,
            limits=Limits(handshake_timeout_ms=1_500),
        )
    ) as c:
        a, b = (TlsPeer(make_settings(tmp_path, name)) for name in "ab")
        mine, theirs = await Caller.at(c, a), await Caller.at(c, b)
        theirs.say(Reserve())
        await theirs.hear()
        mine.say(Ask(0, b.peer))
        granted = await mine.hear()
        assert isinstance(granted, Granted)
        reader, writer = await come(c, granted.token)
        assert await ended(reader)
        await until(lambda: c.counters.get("lost_half_open") == 1, SLOW_S)
        assert c.transport.conduit is not None
        assert not c.transport.conduit.table.circuits
        writer.close()
        mine.close()
        theirs.close()


async def test_a_way_on_which_nothing_passes_is_given_up(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path, idle_timeout_ms=100) as c:
        a, b = (TlsPeer(make_settings(tmp_path, name)) for name in "ab")
        mine, theirs = await Caller.at(c, a), await Caller.at(c, b)
        theirs.say(Reserve())
        await theirs.hear()
        mine.say(Ask(0, b.peer))
        granted, offered = await mine.hear(), await theirs.hear()
        assert isinstance(granted, Granted)
        assert isinstance(offered, Offered)
        ends = [await come(c, token) for token in (granted.token, offered.token)]
        for reader, writer in ends:
            assert await ended(reader)
            writer.close()
        mine.close()
        theirs.close()


async def test_one_member_cannot_take_all_circuits(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path, circuits=8, circuits_per_peer=8) as c:
        greedy, other, target = (TlsPeer(make_settings(tmp_path, name)) for name in ("g", "o", "t"))
        calls = [await Caller.at(c, one) for one in (greedy, other, target)]
        calls[2].say(Reserve())
        await calls[2].hear()
        for number in range(12):
            calls[0].say(Ask(number, target.peer))
        answers = [await calls[0].hear() for _ in range(12)]
        assert sum(isinstance(answer, Granted) for answer in answers) == 4
        assert {answer.reason for answer in answers if isinstance(answer, Declined)} == {SHARE}
        calls[1].say(Ask(0, target.peer))
        assert isinstance(await calls[1].hear(), Granted)
        for call in calls:
            call.close()


async def test_when_all_places_are_taken_the_peer_says_why_it_has_none(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path, reservations=1) as c:
        b, late = inner_peer(tmp_path, "b", c), inner_peer(tmp_path, "late", c)
        async with started(b):
            await until(lambda: kept(b), SLOW_S)
            async with started(late):
                await until(lambda: "taken" in late.transport.conduits.places()[0].reason, SLOW_S)
                assert kept(b)


@pytest.mark.parametrize(
    "garbage", [b"\xc1", b"", bytes(1025), encode(Reserved("")), encode(Beat(1)) + b"\0"]
)
async def test_garbage_ends_the_connection_and_is_counted(tmp_path: Path, garbage: bytes) -> None:
    async with conduit_peer(tmp_path) as c:
        call = await Caller.at(c, TlsPeer(make_settings(tmp_path, "a")))
        call.raw(garbage)
        assert await ended(call.reader)
        assert c.counters == {"refused_garbage": 1}
        call.close()


async def test_a_member_may_not_open_connections_without_end(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path) as c:
        a = TlsPeer(make_settings(tmp_path, "a"))
        calls = [await Caller.at(c, a) for _ in range(6)]
        await until(lambda: c.counters.get("refused_busy") == 2, SLOW_S)
        for call in calls:
            call.close()


async def test_nobody_comes_through_a_conduit_to_use_a_peer_as_one(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path) as c:
        b, mole = inner_peer(tmp_path, "b", c), TlsPeer(make_settings(tmp_path, "mole"))
        async with started(b):
            await until(lambda: kept(b), SLOW_S)
            connection = await mole.transport.conduits.open(b.member.addresses[0])
            context = mole.identity.conduit_context
            reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname="")
            assert await ended(reader)
            assert b.counters == {"refused_nested": 1}
            writer.close()
        await mole.transport.close()


async def test_who_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path) as c:
        gone, a = inner_peer(tmp_path, "gone", c), TlsPeer(make_settings(tmp_path, "a"))
        with pytest.raises(OSError, match=NOT_HERE):
            await a.transport.conduits.open(gone.member.addresses[0])
        await a.transport.close()
        assert c.counters == {"refused_circuit": 1}


async def test_the_ways_of_a_member_that_is_revoked_are_cut_and_it_gets_no_other(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path) as c:
        a, b = inner_peer(tmp_path, "a", c), inner_peer(tmp_path, "b", c)
        async with started(a, b):
            a.transport.want(b.member)
            await until(lambda: a.linked_to(b) and b.linked_to(a), SLOW_S)
            # Only the conduit knows of it yet.
            c.identity.trust.decide(UnitedTrust(revoked={b.peer: None}))
            conduit = c.transport.conduit
            assert conduit is not None
            assert not conduit.table.circuits
            await until(lambda: not a.linked_to(b), SLOW_S)
            await until(lambda: c.counters.get("refused_revoked"), SLOW_S)
            assert set(conduit.table.reserved) == {a.peer}
            assert not kept(b)
            assert kept(a)


async def test_another_peer_in_the_place_of_the_one_that_was_asked_for_gets_no_link(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path) as c:
        b, thief = inner_peer(tmp_path, "b", c), TlsPeer(make_settings(tmp_path, "thief"))
        theirs = await Caller.at(c, TlsPeer(b.settings))
        theirs.say(Reserve())
        await theirs.hear()
        a = inner_peer(tmp_path, "a", c)
        async with started(a):
            a.transport.want(b.member)
            offered = await theirs.hear()
            assert isinstance(offered, Offered)
            # The conduit, or who has listened in, gives the token to another member.
            connection = await open_tcp(*c.where)
            await asyncio.get_running_loop().sock_sendall(connection, CIRCUIT_NAME + offered.token)
            listener = Listener(thief.identity, Limits(), {}, lambda *_: None)
            listener.take(connection)
            await until(lambda: a.counters.get("refused_wrong_peer"), SLOW_S)
            assert a.seen.events == []
            await listener.close()
        theirs.close()


async def test_who_sits_where_a_conduit_was_has_to_be_its_heir(tmp_path: Path) -> None:
    """A member that serves at that address gets no place's traffic, whatever it says of its keys."""
    at = format_address("127.0.0.1", free_port())
    async with conduit_peer(tmp_path, listen=at) as c:
        a, b = inner_peer(tmp_path, "a", c), inner_peer(tmp_path, "b", c)
    other = TlsPeer(make_settings(tmp_path, "other"))
    async with started(a, b), conduit_peer(tmp_path, "heir", listen=at) as heir:
        a.transport.want(b.member)
        conduit, own = heir.transport.conduit, heir.identity.signer
        assert conduit is not None
        for line in ((), (follow(other.identity.signer, own, NETWORK),)):
            conduit.keys.line = line
            refused = a.counters.get("refused_wrong_peer", 0), b.counters.get("refused_wrong_peer", 0)
            # The call under way may have begun with the line before.
            await until(lambda: a.counters.get("refused_wrong_peer", 0) > refused[0] + 1, SLOW_S)  # noqa: B023
            await until(lambda: b.counters.get("refused_wrong_peer", 0) > refused[1] + 1, SLOW_S)  # noqa: B023
            assert not conduit.table.reserved
            assert not kept(a)
        assert not conduit.table.passed
        conduit.keys.line = (follow(c.identity.signer, own, NETWORK),)
        await until(lambda: kept(a) and kept(b), SLOW_S)
        await until(lambda: a.linked_to(b) and b.linked_to(a), SLOW_S)
        assert a.transport.paths()[b.peer].conduit == "heir"
        assert a.transport.addresses == (f"{at}/p2p/{heir.peer}/p2p-circuit/p2p/{a.peer}",)


async def test_a_conduit_says_once_which_keys_it_had(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path) as c:
        asker = TlsPeer(make_settings(tmp_path, "asker"))
        caller = await Caller.at(c, asker)
        caller.say(AskFormer())
        assert await caller.hear() == FormerKeys(())
        caller.say(AskFormer())
        assert await ended(caller.reader)
        assert c.counters == {"refused_garbage": 1}
        caller.close()
