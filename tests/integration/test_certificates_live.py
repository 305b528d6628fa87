"""The life of certificates with real peers: renewed in time, lapsed, and brought back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from test_join import make_registrar

from edgepool import Peer
from edgepool.config import load_peer_settings
from edgepool.errors import Refused, Unavailable
from edgepool.gateway import registrar as gateway_registrar
from edgepool.gateway.newcomer import join_network
from edgepool.gateway.pools import form_fixed_pools
from edgepool.gateway.registrar import Registrar, open_registrar
from edgepool.model.certifying import CertificateRequest
from edgepool.model.crypto import Signer, sha256
from edgepool.peer import certifier
from edgepool.transport import trust
from edgepool.transport.joincode import JoinCode, read_code

PATIENCE_S = 45.0
HOUR_MS = 3_600_000


async def until(reached: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other peers' hands
            await asyncio.sleep(0.02)


@asynccontextmanager
async def registrar_at(folder: Path, valid_s: int) -> AsyncIterator[tuple[Peer, Registrar]]:
    place = make_registrar(folder)
    text = (place / "edgepool.toml").read_text()
    settings = text.replace("[authority]", f"[authority]\ncertificate_valid_s = {valid_s}", 1)
    assert settings != text
    (place / "edgepool.toml").write_text(settings)
    async with Peer.open(place) as cloud, open_registrar(cloud) as registrar:
        assert registrar is not None
        await form_fixed_pools(cloud)
        yield cloud, registrar


async def code_for(registrar: Registrar, name: str = "mill", pool: str = "") -> JoinCode:
    return read_code((await registrar.invite(name=name, pool=pool, valid_ms=HOUR_MS)).code)


def seen_until_ms(at: Peer, name: str) -> int:
    return next((one.valid_until_ms for one in at.connected() if one.name == name), 0)


async def test_a_certificate_is_renewed_in_time_and_no_link_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certifier, "FIRST_RETRY_S", 0.5)
    # Long before it lapses, and as often as it likes.
    monkeypatch.setattr(certifier, "RENEW_AT", 0.38)
    monkeypatch.setattr(gateway_registrar, "RENEW_EVERY_S", 0.0)
    monkeypatch.setattr(trust, "LAPSE_GRACE_MS", 0)
    async with registrar_at(tmp_path, valid_s=7) as (cloud, registrar):
        await join_network(await code_for(registrar, pool="cell"), tmp_path / "mill")
        async with Peer.open(tmp_path / "mill") as mill:
            await until(lambda: seen_until_ms(cloud, "mill"))
            first_ms = seen_until_ms(cloud, "mill")
            lost: list[object] = []
            watching = asyncio.create_task(_note_lost(mill, lost))
            await until(lambda: seen_until_ms(cloud, "mill") > first_ms)
            await until(lambda: time.time() * 1000 > first_ms + 1_500)
            assert not lost
            watching.cancel()
            assert mill.certifier.problem == ""
            shown = mill.status().certificate
            assert shown is not None
            assert shown.valid_until_ms == mill._identity.valid_until_ms > first_ms
            assert all(link.certificate_until_ms > first_ms for link in cloud.status().links)
            assert mill.metrics()["edgepool_certificate_renewal_failed"] == 0
            kept = mill._identity.certificate
        again = load_peer_settings(tmp_path / "mill")
        async with Peer.open(again) as mill:
            assert mill._identity.certificate.valid_until_ms >= kept.valid_until_ms
            await until(lambda: seen_until_ms(cloud, "mill"))


async def _note_lost(peer: Peer, lost: list[object]) -> None:
    from edgepool.peer.values import LinkChanged

    async for event in peer.watch():
        if isinstance(event, LinkChanged) and not event.up:
            lost.append(event)


async def test_a_link_ends_when_its_certificate_has_lapsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "LAPSE_GRACE_MS", 0)
    monkeypatch.setattr(certifier, "RENEW_AT", 100.0)
    async with registrar_at(tmp_path, valid_s=8) as (cloud, registrar):
        await join_network(await code_for(registrar), tmp_path / "mill")
        async with Peer.open(tmp_path / "mill"):
            await until(lambda: seen_until_ms(cloud, "mill"))
            await until(lambda: cloud.status().totals.refused.get("lost_lapsed"))
            await until(lambda: cloud.status().totals.refused.get("refused_expired"))
            assert not cloud.connected()


async def test_a_registrar_certifies_its_own_members_keys_that_are_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with registrar_at(tmp_path, valid_s=3600) as (cloud, registrar):
        await join_network(await code_for(registrar), tmp_path / "mill")
        async with Peer.open(tmp_path / "mill") as mill:
            await until(lambda: seen_until_ms(cloud, "mill"))
            (member,) = cloud.connected()
            stranger = Signer(sha256(b"stranger")).peer
            answer = await registrar.certify(member, CertificateRequest(stranger, bytes(64)))
            assert (answer.certificate, answer.refusal) == (b"", "the new key has not signed the request")
            # Whoever asks all the time is told so before its request costs anything.
            answer = await registrar.certify(member, CertificateRequest(stranger, bytes(64)))
            assert "every 2 s" in answer.refusal
            before_ms = mill._identity.valid_until_ms
            await asyncio.sleep(2)  # a member is certified so often, to whole seconds
            await mill.certifier.renew()
            assert mill._identity.valid_until_ms > before_ms
            monkeypatch.setattr(gateway_registrar, "RENEW_EVERY_S", 600.0)
            with pytest.raises(Refused, match="every 600 s"):
                await mill.certifier.renew()
            mill._identities.clear()
            with pytest.raises(Unavailable, match="no coordinator of"):
                await mill.certifier.renew()
