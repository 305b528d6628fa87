"""What only the TLS road can be asked: certificates of strangers, and protocols by ALPN."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from roads import TlsRoad, frame_of
from tls_peers import TlsPeer, ended, make_settings, until


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
