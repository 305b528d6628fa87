"""Two registrars of one organisation: the second gets each authority that the first one has."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from commands import edgepool, told
from commands import until as asked_until
from test_certificates_live import until
from test_cli_run import running
from test_join import HOUR_MS, make_registrar
from test_org_rotate import WEEK_S, issuer, join, registrar_in, stage, waited_for

from edgepool import Peer
from edgepool.cli.rotate import says
from edgepool.config import load_peer_settings
from edgepool.errors import LocalError
from edgepool.gateway.gathering import authority_follower
from edgepool.gateway.handover import hand_over, take_over
from edgepool.gateway.newcomer import join_network
from edgepool.gateway.registrar import open_registrar
from edgepool.model.ids import PeerId
from edgepool.peer.certifier import OUTDATED
from edgepool.transport.joincode import read_code
from edgepool.transport.keyfiles import key_pem, read_private_key


async def test_the_next_authority_is_handed_to_the_second_registrar(tmp_path: Path) -> None:
    make_registrar(tmp_path)
    async with registrar_in(tmp_path) as (cloud, registrar), AsyncExitStack() as stack:
        code = (await registrar.invite(name="second", role="coordinator", valid_ms=HOUR_MS)).code
        second_at = tmp_path / "second"
        settings, joined = await join_network(read_code(code), second_at)
        second_id = joined.identity.peer
        first = tmp_path / "first.sealed"
        hand_over(cloud.settings, second_id, first)
        taken = take_over(second_at, first)
        assert (taken.root.fingerprint.hex(), taken.void) == (issuer(cloud), [])
        settings = load_peer_settings(second_at)
        key = settings.path(taken.folder) / "authority.key"
        assert (key.stat().st_mode | key.parent.stat().st_mode | first.stat().st_mode) & 0o077 == 0
        assert key.read_bytes() == (tmp_path / "authority/authority.key").read_bytes()
        assert key.read_bytes() not in first.read_bytes()
        with pytest.raises(LocalError, match="has that authority already"):
            take_over(second_at, first)

        member_at = await join(registrar, tmp_path, "mill")
        mill = await stack.enter_async_context(Peer.open(member_at))
        async with Peer.open(second_at) as second, open_registrar(second) as other:
            assert other is not None
            await until(lambda: len(cloud.connected()) == 2)
            await other.invite(name="unused", valid_ms=HOUR_MS)
            await registrar.rotation.begin(0, WEEK_S, False)
            await until(lambda: stage(registrar) == "renewing" and waited_for(registrar) == ["second"])
            await until(lambda: registrar.rotation.status().renewed == ["mill"])
            found = registrar.rotation.status()
            assert (issuer(mill), found.waiting[0].coordinator) == (found.next, True)
            assert "second (a registrar itself: 'edgepool org hand-over'" in says(found)
            await until(lambda: OUTDATED in second.certifier.problem)
            assert issuer(second) == found.old, "it is not renewed behind its owner's back"
            assert authority_follower(second.settings) == found.next
        next_ = tmp_path / "next.sealed"
        hand_over(load_peer_settings(tmp_path / "cloud"), second_id, next_)
        taken = take_over(second_at, next_)
        assert (taken.root.fingerprint.hex(), taken.void) == (found.next, ["unused"])
        second = await stack.enter_async_context(Peer.open(second_at))
        other = await stack.enter_async_context(open_registrar(second))
        assert other is not None
        await until(lambda: stage(registrar) == "done")
        assert {issuer(cloud), issuer(second)} == {found.next}
        assert authority_follower(second.settings) == ""
        late_at = await join(other, tmp_path, "late")
        late = await stack.enter_async_context(Peer.open(late_at))
        await until(lambda: {one.name for one in late.connected()} >= {"second"})
        assert issuer(late) == found.next


def seal_encrypted(folder: Path, to: str) -> Path:
    """Seal the authority as it is with its key under a passphrase."""
    path, sealed = folder / "authority/authority.key", folder / "locked.sealed"
    plain = path.read_bytes()
    path.write_bytes(key_pem(read_private_key(path, None, LocalError, ""), b"a passphrase"))
    hand_over(load_peer_settings(folder / "cloud"), PeerId(to), sealed)
    path.write_bytes(plain)
    return sealed


async def test_an_authority_is_for_one_peer_of_its_own_organisation(tmp_path: Path) -> None:
    make_registrar(tmp_path)
    (tmp_path / "other").mkdir()
    other = make_registrar(tmp_path / "other")
    sealed = tmp_path / "sealed"
    async with registrar_in(tmp_path) as (cloud, registrar):
        code = (await registrar.invite(name="second", role="coordinator", valid_ms=HOUR_MS)).code
        _, joined = await join_network(read_code(code), tmp_path / "second")
        mill_at = await join(registrar, tmp_path, "mill")
        hand_over(cloud.settings, joined.identity.peer, sealed)
        with pytest.raises(LocalError, match="exists already"):
            hand_over(cloud.settings, joined.identity.peer, sealed)
    locked = seal_encrypted(tmp_path, joined.identity.peer)
    with pytest.raises(
        LocalError, match=r"authority-[0-9a-f]{8}/authority.key is encrypted and no passphrase"
    ):
        take_over(tmp_path / "second", locked)
    raw, before = sealed.read_bytes(), (tmp_path / "second/edgepool.toml").read_bytes()
    sealed.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    for wrong in (raw[:-1] + bytes([raw[-1] ^ 1]), b"", raw + b"x", bytes(100_000)):
        sealed.write_bytes(wrong)
        with pytest.raises(LocalError, match="was not sealed for the peer"):
            take_over(tmp_path / "second", sealed)
    sealed.write_bytes(raw)
    with pytest.raises(LocalError, match="was not sealed for the peer"):
        take_over(other, sealed)
    with pytest.raises(LocalError, match="only a coordinator invites"):
        take_over(mill_at, sealed)
    async with Peer.open(other) as stranger:
        elsewhere = stranger.id
    sealed.unlink()
    hand_over(load_peer_settings(tmp_path / "cloud"), elsewhere, sealed)
    with pytest.raises(LocalError, match="does not know the root"):
        take_over(other, sealed)
    with pytest.raises(LocalError, match="name no authority"):
        hand_over(load_peer_settings(mill_at), PeerId(elsewhere), tmp_path / "none")
    assert (tmp_path / "second/edgepool.toml").read_bytes() == before
    assert not list((tmp_path / "second").glob("authority-*"))


def test_a_second_registrar_by_commands(tmp_path: Path) -> None:
    cloud, second, sealed = tmp_path / "cloud", tmp_path / "second", tmp_path / "sealed"
    edgepool("org", "init", tmp_path / "authority", "--name", "Works", "--coordinator", cloud)
    with running(cloud):
        code = edgepool("invite", cloud, "--name", "second", "--role", "coordinator").strip()
        edgepool("join", code, second)
        assert "is not linked now" in edgepool("org", "hand-over", cloud, "second", sealed, code=2)
        with running(second):
            links = lambda: [one["name"] for one in told("status", cloud)["links"]]  # noqa: E731
            asked_until(lambda: "second" in links())
            assert "take-over" in edgepool("org", "hand-over", cloud, "second", sealed)
            assert "is running" in edgepool("org", "take-over", second, sealed, code=2)
        assert "issues with root" in edgepool("org", "take-over", second, sealed)
    with running(second):
        code = edgepool("invite", second, "--name", "mill", "--machine-type", "Milling").strip()
        edgepool("join", code, tmp_path / "mill")
