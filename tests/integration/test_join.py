"""A gateway joins with nothing but a code: by commands in processes of their own, and every no there is."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import edgepool
from test_cli_run import running
from tls_peers import TlsPeer, ended, free_port, make_settings, until

from edgepool import Peer
from edgepool.config import ConfigError, FixedPool, load_peer_settings
from edgepool.errors import LocalError, Refused, RemoteError, Unavailable
from edgepool.gateway.app import ApiServer
from edgepool.gateway.client import ApiClient
from edgepool.gateway.newcomer import join_network
from edgepool.gateway.pools import form_fixed_pools
from edgepool.gateway.registrar import Registrar, open_registrar
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import format_address, parse_address, split_address
from edgepool.transport import joindoor, joining
from edgepool.transport.certificates import create_authority
from edgepool.transport.framing import header
from edgepool.transport.joincode import JoinCode, read_code, write_code
from edgepool.transport.joindoor import JOIN_PROTOCOL, JOIN_SERVER_NAME
from edgepool.transport.joining import AnswerLost, ask_to_join

HOUR_MS = 3_600_000


def make_registrar(folder: Path, serve_conduit: bool = False) -> Path:
    """Make an authority and the folder of a coordinator that invites with it and keeps a pool of its own."""
    create_authority(folder / "authority", "Test works")
    plan = PeerPlan(
        "cloud",
        "plant",
        "coordinator",
        listen=format_address("127.0.0.1", free_port()),
        fixed_pools=(FixedPool(name="cell", members=("cloud",)),),
        authority_folder="../authority",
        serve_conduit=serve_conduit,
    )
    make_peer_folder(folder / "cloud", plan, folder / "authority")
    return folder / "cloud"


@asynccontextmanager
async def opened(place: Path, told: list[str] | None = None) -> AsyncIterator[tuple[Peer, Registrar]]:
    """Open the registrar in a folder; `told` gets what it tells."""
    async with (
        Peer.open(place) as cloud,
        open_registrar(cloud, (told if told is not None else []).append) as registrar,
    ):
        assert registrar is not None
        await form_fixed_pools(cloud)
        yield cloud, registrar


async def code_for(registrar: Registrar, name: str = "mill-4", **more: Any) -> JoinCode:
    return read_code((await registrar.invite(name=name, **{"valid_ms": HOUR_MS, **more})).code)


def in_next_roster(cloud: Peer, name: str) -> Callable[[], bool]:
    (pool,) = cloud.pools
    return lambda: any(one.name == name for one in cloud.chain_state(pool.chain).next_roster)


def anonymous(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


async def knock(
    cloud: Peer, protocol: str = JOIN_PROTOCOL, name: str = JOIN_SERVER_NAME
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port, _ = parse_address(cloud.addresses[0])
    return await asyncio.open_connection(host, port, ssl=anonymous(protocol), server_hostname=name)


def files_in(folder: Path) -> list[str]:
    """What is in a folder: nothing hidden may be left over, either."""
    return sorted(path.name for path in folder.iterdir())


def refused(cloud: Peer, reason: str) -> int:
    return cloud.status().totals.refused.get(reason, 0)


# --- joining --------------------------------------------------------------------------------------


def test_two_commands_and_a_code_make_a_gateway_a_member(tmp_path: Path) -> None:
    cloud, mill = tmp_path / "cloud", tmp_path / "mill-4"
    begin = ["org", "init", tmp_path / "authority", "--name", "Mould Works", "--pool", "cell"]
    assert "--pool is for the coordinator" in edgepool(*begin, code=2)
    assert "--pool cell" in edgepool(*begin, "--coordinator", cloud)
    with running(cloud):
        for _ in range(50):
            if json.loads(edgepool("status", cloud, "--json"))["chains"]:
                break
        wish = ["--name", "mill-4", "--machine-type", "Milling", "--pool", "cell"]
        code = edgepool("invite", cloud, *wish).strip()
        assert (len(code.split()), code.isalnum()) == (1, True)
        altered = code[:20] + ("A" if code[20] != "A" else "B") + code[21:]
        assert "copy it again" in edgepool("join", altered, mill, code=2)
        done = json.loads(edgepool("join", code, mill, "--json"))
        assert (done["name"], done["role"], done["network"]) == ("mill-4", "machine", "Mould Works")
        assert code not in edgepool("invite", cloud, "--list", "--json")
        assert "used by another gateway" in edgepool("join", code, tmp_path / "thief", code=1)
        assert not (tmp_path / "thief").exists()
        assert "exists already" in edgepool("join", code, mill, code=2)
        with running(mill):
            for _ in range(50):
                (one,) = json.loads(edgepool("invite", cloud, "--list", "--json"))
                if one["admitted"]:
                    break
            assert (one["admitted"], one["state"], one["peer"]) == (True, "used", done["id"])
            for _ in range(50):
                if json.loads(edgepool("status", mill, "--json"))["chains"]:
                    break
            (pool,) = json.loads(edgepool("member", "list", mill, "--json"))
            assert "mill-4" in json.dumps(pool)
    assert "(nothing listens there)" in edgepool("join", code, tmp_path / "late", code=1)
    assert files_in(tmp_path) == ["authority", "cloud", "mill-4"]
    assert (mill.stat().st_mode | (mill / "identity/key.pem").stat().st_mode) & 0o077 == 0


async def test_a_pool_promised_before_a_restart_is_kept_after_it(tmp_path: Path) -> None:
    place, told = make_registrar(tmp_path), list[str]()
    async with opened(place) as (_, registrar):
        code = await code_for(registrar, pool="cell", machine_type="Milling")
        settings, joined = await join_network(code, tmp_path / "mill-4")
        assert (settings.machine_type, joined.pool) == ("Milling", "cell")
    async with opened(place, told) as (cloud, registrar), Peer.open(tmp_path / "mill-4"):
        await until(in_next_roster(cloud, "mill-4"))
        await until(lambda: registrar.invitations()[0].admitted)
    assert told == ["mill-4 is admitted to pool 'cell'"]


async def test_an_answer_that_was_lost_is_fetched_again_with_the_same_key(tmp_path: Path) -> None:
    async with opened(make_registrar(tmp_path)) as (cloud, registrar):
        door = cloud.join_door
        assert door is not None
        code = await code_for(registrar)
        honest = registrar.answer

        async def cut_off(request: joindoor.JoinRequest, leaf_hash: bytes) -> joindoor.Admission:
            admission = await honest(request, leaf_hash)
            for guest in list(door._guests):
                guest.abort()
            return admission

        door.open(registrar.admitting.root.der, cut_off)
        with pytest.raises(AnswerLost, match="run the same command again"):
            await join_network(code, tmp_path / "mill-4")
        assert [one.state for one in registrar.invitations()] == ["used"]
        assert not (tmp_path / "mill-4").exists()
        registrar.open()
        settings, first = await join_network(code, tmp_path / "mill-4")
        assert load_peer_settings(tmp_path / "mill-4") == settings
        with pytest.raises(Refused, match="used by another gateway"):
            await join_network(code, tmp_path / "mill-5")
        assert first.identity.peer == registrar.invitations()[0].peer


async def test_the_same_key_gets_the_same_certificate(tmp_path: Path) -> None:
    async with opened(make_registrar(tmp_path)) as (_, registrar):
        code = await code_for(registrar, role="witness")
        signer = Signer(bytes(32))
        one, _ = await ask_to_join(code, signer, lambda host: format_address(host, 1))
        two, _ = await ask_to_join(code, signer, lambda host: format_address(host, 1))
        assert one == two
        assert one.identity.role == "witness"


# --- every no -------------------------------------------------------------------------------------


async def test_each_refusal_has_a_sentence_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(make_registrar(tmp_path)) as (cloud, registrar):
        new = tmp_path / "new"
        code = await code_for(registrar)
        for wrong in (replace(code, secret=bytes(16)), replace(code, invitation=bytes(6))):
            with pytest.raises(Refused, match="does not know this invitation"):
                await join_network(wrong, new)
        with pytest.raises(RemoteError, match="not of the authority that this code is for"):
            await join_network(replace(code, fingerprint=bytes(16)), new)
        await registrar.revoke(code.invitation.hex())
        with pytest.raises(Refused, match="was revoked"):
            await join_network(code, new)
        short = await code_for(registrar, valid_ms=1_000)
        short_until_ms = registrar.invitations()[-1].expires_ms
        monkeypatch.setattr(registrar, "_now_ms", lambda: short_until_ms)
        with pytest.raises(Refused, match="has expired"):
            await join_network(short, new)
        gone = format_address("127.0.0.1", free_port())
        with pytest.raises(Unavailable, match="cannot be reached"):
            await join_network(replace(code, addresses=(gone,)), new)
        with pytest.raises(LocalError, match="--listen"):
            await join_network(code, new, "everywhere")
        (new / "things").mkdir(parents=True)
        with pytest.raises(LocalError, match="exists already"):
            await join_network(code, new)
        assert files_in(tmp_path) == ["authority", "cloud", "new"]
        assert refused(cloud, "refused_garbage") == 0


async def test_a_clock_that_is_far_off_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Earlier(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Earlier:
            return cls(2001, 1, 1, tzinfo=tz)

    async with opened(make_registrar(tmp_path)) as (_, registrar):
        code = await code_for(registrar)
        monkeypatch.setattr(joining.datetime, "datetime", Earlier)
        with pytest.raises(LocalError, match="the clock of this machine says 2001-01-01"):
            await join_network(code, tmp_path / "new")
        monkeypatch.undo()
        assert [one.state for one in registrar.invitations()] == ["open"]


async def test_a_signature_for_another_registrar_is_worth_nothing(tmp_path: Path) -> None:
    place = make_registrar(tmp_path)
    leaf = ssl.PEM_cert_to_DER_cert((place / "identity/certificate.pem").read_text())
    async with opened(place) as (_, registrar):
        code = await code_for(registrar)
        signer, where = Signer(bytes(32)), "/ip4/10.0.0.4/tcp/1"
        request = joindoor.JoinRequest(code.invitation, code.secret, signer.peer, where, bytes(64))
        elsewhere = joindoor.request_statement(code.fingerprint, bytes(32), request)
        signature = signer.sign(joindoor.SIGNING_DOMAIN, elsewhere)
        forged = joindoor.JoinRequest(code.invitation, code.secret, signer.peer, where, signature)
        assert (await registrar.answer(forged, sha256(leaf))).refusal == "unknown"
        assert [one.state for one in registrar.invitations()] == ["open"]


async def test_nothing_secret_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    place, told = make_registrar(tmp_path), list[str]()
    async with opened(place, told) as (_, registrar):
        code = await code_for(registrar)
        await join_network(code, tmp_path / "mill-4")
        everything = caplog.text + " ".join(told) + repr(registrar.invitations()) + repr(code)
        for secret in (code.secret.hex(), repr(code.secret), write_code(code)):
            assert secret not in everything
            assert secret.encode() not in (place / "invitations.json").read_bytes()


async def test_who_may_invite_and_what(tmp_path: Path) -> None:
    place = make_registrar(tmp_path)
    async with opened(place) as (cloud, registrar):
        server = ApiServer(cloud, place, registrar=registrar)
        await server.start()
        async with ApiClient.of(place) as client:
            made = await client.invite(name="mill-4", pool="cell", valid_ms=HOUR_MS)
            assert (await client.revoke(made.invitation.id)).state == "revoked"
            assert [one.state for one in await client.invitations()] == ["revoked"]
            for wish, fault in (
                ({"name": ""}, "the name"),
                ({"name": "m", "role": "boss"}, "is not a role"),
                ({"name": "m", "pool": "shell"}, "no chain 'shell'"),
                ({"name": "m", "valid_ms": 40 * 24 * HOUR_MS}, "30 days"),
            ):
                with pytest.raises(LocalError, match=fault):
                    await client.invite(**{"valid_ms": HOUR_MS, **wish})
        await server.close()
    plain = make_settings(tmp_path, "plain")
    async with Peer(plain) as peer, open_registrar(peer) as nobody:
        assert nobody is None
        (plain.folder / "edgepool.toml").write_text("")
        server = ApiServer(peer, plain.folder)
        await server.start()
        async with ApiClient.of(plain.folder) as client:
            with pytest.raises(LocalError, match="this peer invites nobody"):
                await client.invite(name="m", valid_ms=HOUR_MS)
        await server.close()


async def test_the_authority_must_be_the_one_that_the_coordinator_trusts(tmp_path: Path) -> None:
    place = make_registrar(tmp_path)
    create_authority(tmp_path / "other", "Elsewhere")
    settings = place / "edgepool.toml"
    whole = settings.read_text()
    settings.write_text(whole.replace("../authority", "../other"))
    async with Peer.open(place) as cloud:
        with pytest.raises(ConfigError, match="another authority"):
            async with open_registrar(cloud):
                pass
    settings.write_text(whole.replace('role = "coordinator"', 'role = "witness"'))
    with pytest.raises(ConfigError, match="only a coordinator"):
        load_peer_settings(place)


# --- the door -------------------------------------------------------------------------------------


async def test_a_stranger_who_does_not_come_to_join_gets_nothing(tmp_path: Path) -> None:
    async with opened(make_registrar(tmp_path)) as (cloud, _):
        for protocol, name in (
            ("edgepool-link/1", ""),
            ("edgepool-transfer/1", ""),
            (JOIN_PROTOCOL, ""),
            (JOIN_PROTOCOL, "other.edgepool"),
            ("edgepool-link/1", JOIN_SERVER_NAME),
        ):
            before = refused(cloud, "refused_no_certificate")
            reader, writer = await knock(cloud, protocol, name)
            writer.write(header(5) + b"hello")
            assert await ended(reader)
            writer.close()
            await until(lambda before=before: refused(cloud, "refused_no_certificate") == before + 1)  # type: ignore[misc]
        assert set(cloud.status().totals.refused) == {"refused_no_certificate"}


async def test_an_ordinary_peer_has_no_such_door(tmp_path: Path) -> None:
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        code = JoinCode(a.transport.addresses, bytes(16), bytes(6), bytes(16))
        with pytest.raises(RemoteError, match="it admits nobody"):
            await join_network(code, tmp_path / "new")
        await until(lambda: a.counters == {"refused_no_certificate": 1})


@pytest.mark.parametrize(
    "request_bytes",
    [
        header(joindoor.MAX_FRAME_BYTES + 1),
        header(100) + bytes(100),
        header(4) + encode([b"", b""]) + bytes(20_000),
        bytes(40_000),
    ],
)
async def test_what_is_no_request_ends_the_connection(tmp_path: Path, request_bytes: bytes) -> None:
    async with opened(make_registrar(tmp_path)) as (cloud, _):
        reader, writer = await knock(cloud)
        writer.write(request_bytes)
        assert await ended(reader)
        writer.close()
        await until(lambda: refused(cloud, "refused_garbage") >= 1)


async def test_a_slow_one_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joindoor, "REQUEST_TIMEOUT_S", 0.1)
    async with opened(make_registrar(tmp_path)) as (cloud, _):
        reader, writer = await knock(cloud)
        writer.write(header(100) + b"a")
        assert await ended(reader)
        writer.close()
        assert cloud.join_door is not None
        await until(lambda: not cloud.join_door._guests)  # type: ignore[union-attr]


async def test_few_at_once_and_few_in_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joindoor, "MAX_AT_ONCE", 2)
    monkeypatch.setattr(joindoor, "REQUEST_TIMEOUT_S", 60.0)
    monkeypatch.setattr(joindoor, "MAX_ATTEMPTS", 3)
    async with opened(make_registrar(tmp_path)) as (cloud, registrar):
        waiting = [await knock(cloud) for _ in range(2)]
        for reader, _ in waiting:
            assert await reader.readexactly(4)
        code = await code_for(registrar)
        with pytest.raises(Unavailable, match="it may be busy"):
            await join_network(code, tmp_path / "mill-4")
        assert refused(cloud, "refused_busy") == 1
        for _, writer in waiting:
            writer.transport.abort()
        await until(lambda: not cloud.join_door._guests)  # type: ignore[union-attr]
        await join_network(code, tmp_path / "mill-4")
        with pytest.raises(Unavailable, match="try again in a minute"):
            await join_network(code, tmp_path / "mill-5")
        assert refused(cloud, "refused_paused") == 1
        assert files_in(tmp_path) == ["authority", "cloud", "mill-4"]


async def test_links_go_on_while_the_door_is_open(tmp_path: Path) -> None:
    async with opened(make_registrar(tmp_path)) as (cloud, registrar):
        await join_network(await code_for(registrar), tmp_path / "mill-4")
        async with Peer.open(tmp_path / "mill-4") as mill:
            await until(lambda: [one.name for one in cloud.connected()] == ["mill-4"])
            await until(lambda: [one.role for one in mill.connected()] == ["coordinator"])


def test_the_help_names_the_next_step(tmp_path: Path) -> None:
    told = edgepool("org", "init", tmp_path / "authority", "--name", "Mould Works")
    assert "edgepool init" in told
    assert "edgepool invite" in told
    assert "exists already" in edgepool(
        "org", "init", tmp_path / "authority", "--name", "Mould Works", code=2
    )
    assert subprocess.list2cmdline(["edgepool", "join"]) in edgepool("invite", "--help")


async def test_a_gateway_that_accepts_nothing_joins_with_a_code_and_is_reached(tmp_path: Path) -> None:
    async with opened(make_registrar(tmp_path, serve_conduit=True)) as (cloud, registrar):
        code = await code_for(registrar, pool="cell")
        settings, _ = await join_network(code, tmp_path / "mill-4", outbound=True)
        assert settings.listen == ""
        assert settings.conduits == (f"{cloud.addresses[0]}/p2p/{cloud.id}",)
        async with Peer.open(tmp_path / "mill-4") as mill:
            await until(lambda: in_next_roster(cloud, "mill-4")())
            await until(lambda: [place.kept for place in mill.status().conduits] == [True])
            assert split_address(mill.addresses[0]).conduit == cloud.id
