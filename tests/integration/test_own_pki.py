"""A lapsed gateway comes back with a code, and a firm's own PKI, which is OpenSSL here, certifies a key."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_certificates_live import code_for, registrar_at, until

from edgepool import Peer
from edgepool.config import load_peer_settings
from edgepool.errors import ConfigError, LocalError, Refused
from edgepool.gateway.newcomer import join_network
from edgepool.gateway.renewing import install_files, renew_folder, write_request
from edgepool.gateway.setup import PeerPlan
from edgepool.model.trust import RevokePeer
from edgepool.transport.certificates import issue_certificate
from edgepool.transport.identity import load_identity

OPENSSL = shutil.which("openssl")
HOUR_MS = 3_600_000


async def test_a_gateway_that_was_off_while_its_certificate_lapsed_comes_back_with_a_code(
    tmp_path: Path,
) -> None:
    async with registrar_at(tmp_path, valid_s=3600) as (cloud, registrar):
        await join_network(await code_for(registrar), tmp_path / "mill")
        before = load_identity(load_peer_settings(tmp_path / "mill"))
        facts = {"name": "mill", "network": "plant", "role": "machine", "machine_type": ""}
        lapsed = issue_certificate(tmp_path / "authority", before.peer, **facts, valid_s=-1)
        (tmp_path / "mill/identity/certificate.pem").write_bytes(lapsed)
        with pytest.raises(ConfigError, match="expired on"):
            Peer.open(tmp_path / "mill")
        with pytest.raises(Refused, match="the code is for name 'drill'"):
            await renew_folder(tmp_path / "mill", await code_for(registrar, name="drill"))
        found = await renew_folder(tmp_path / "mill", await code_for(registrar))
        assert (found.peer, found.name) == (before.peer, "mill")
        async with Peer.open(tmp_path / "mill") as mill:
            await until(lambda: [one.name for one in mill.connected()] == ["cloud"])

        # Who is revoked does not come back that way.
        await cloud.trusting.change(RevokePeer(before.peer))
        await until(lambda: before.peer in cloud.trusting.revoked)
        with pytest.raises(Refused, match="key of this gateway was revoked"):
            await renew_folder(tmp_path / "mill", await code_for(registrar))


@pytest.mark.skipif(OPENSSL is None, reason="there is no openssl on this machine")
def test_a_firms_own_pki_certifies_a_key(tmp_path: Path) -> None:
    def openssl(*arguments: object) -> None:
        command = [str(OPENSSL), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)

    # As docs/certificates.md shows it.
    openssl(
        *("req", "-x509", "-newkey", "rsa:3072", "-nodes", "-keyout", "root.key", "-out", "root.pem"),
        *("-days", 3650, "-subj", "/O=Firm/CN=Firm Root", "-addext", "basicConstraints=critical,CA:TRUE"),
    )
    request, settings = write_request(tmp_path / "mill-5", PeerPlan("mill-5", "plant", "machine", "Milling"))
    openssl(
        *("x509", "-req", "-in", request, "-CA", "root.pem", "-CAkey", "root.key"),
        *("-copy_extensions", "copy", "-days", 365, "-out", "mill-5.pem"),
    )
    found = install_files(tmp_path / "mill-5", tmp_path / "mill-5.pem", tmp_path / "root.pem")
    assert (found.name, found.role, found.machine_type) == ("mill-5", "machine", "Milling")
    assert found.organisation == "Firm"
    assert load_identity(settings).peer == found.peer

    # What does not fit is refused, and what was there stays.
    request, _ = write_request(tmp_path / "mill-6", PeerPlan("mill-6", "plant", "machine", "Milling"))
    with pytest.raises(LocalError, match="another key"):
        install_files(tmp_path / "mill-6", tmp_path / "mill-5.pem", tmp_path / "root.pem")
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "b.key", "-out", "b.pem"),
        *("-days", 10, "-subj", "/O=Other/CN=Other"),
    )
    with pytest.raises(LocalError, match="has not issued"):
        install_files(tmp_path / "mill-5", tmp_path / "mill-5.pem", tmp_path / "b.pem")
    openssl(
        *("x509", "-req", "-in", request, "-CA", "root.pem", "-CAkey", "root.key"),
        *("-days", 365, "-out", "nameless.pem"),
    )
    with pytest.raises(LocalError, match="no URI"):
        install_files(tmp_path / "mill-6", tmp_path / "nameless.pem", tmp_path / "root.pem")
    assert load_identity(settings).peer == found.peer
