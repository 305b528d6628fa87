"""An organisation's root rotates with overlap: members renew to the next one, then the old one goes."""

from __future__ import annotations

import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from test_certificates_live import code_for, registrar_at, until

from edgepool import Peer
from edgepool.gateway.newcomer import join_network
from edgepool.gateway.pools import form_fixed_pools
from edgepool.gateway.registrar import open_registrar
from edgepool.model.credential import read_root
from edgepool.model.trust import AdmitRoot, RetireRoot
from edgepool.transport.certificates import create_authority
from edgepool.transport.identity import BACKDATE_MS


async def test_members_renew_to_their_organisations_next_root_and_the_old_one_goes(tmp_path: Path) -> None:
    async with registrar_at(tmp_path, valid_s=3600) as (cloud, registrar):
        await join_network(await code_for(registrar, pool="cell"), tmp_path / "mill")
        async with Peer.open(tmp_path / "mill") as mill:
            await until(lambda: cloud.pools and cloud.pools[0].chain in mill.chains)
            old = mill._identity.certificate.root
            (first,) = mill._identity.trust.roots
            # A root's times are whole seconds, and the next one is the younger.
            await until(lambda: time.time() * 1000 > first.valid_from_ms + BACKDATE_MS + 1_000)
            # The next root, as 'edgepool org init' makes it: of the same name, and admitted.
            create_authority(tmp_path / "next", "Test works")
            pem = (tmp_path / "next/authority.pem").read_bytes()
            root = read_root(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
            await cloud.trusting.change(AdmitRoot("Test works", root.der))
            await until(lambda: root.fingerprint in {one.fingerprint for one in mill._identity.trust.roots})
    settings = tmp_path / "cloud/edgepool.toml"
    settings.write_text(settings.read_text().replace('"../authority"', '"../next"'))
    async with Peer.open(tmp_path / "cloud") as cloud, open_registrar(cloud):
        await form_fixed_pools(cloud)
        async with Peer.open(tmp_path / "mill") as mill:
            await until(lambda: cloud._identity.certificate.root == root.fingerprint)
            await until(lambda: mill._identity.certificate.root == root.fingerprint)
            for peer in (cloud, mill):  # each has heard that the other's certificate is a new one
                await until(lambda: [one.root for one in peer.connected()] == [root.fingerprint])  # noqa: B023
            await cloud.trusting.change(RetireRoot(old, 1))
            await until(lambda: all(one.fingerprint != old for one in mill._identity.trust.roots))
            assert cloud.connected(), "nobody's link has ended"
