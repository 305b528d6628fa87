"""Keys, certificates and the authority: what is accepted, and the one sentence for what is not."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgepool.config import PeerSettings
from edgepool.errors import ConfigError, LocalError, RemoteError
from edgepool.model.crypto import sha256, verify
from edgepool.model.ids import PeerId
from edgepool.transport.certificates import (
    create_authority,
    create_key,
    identity_of,
    issue_certificate,
    load_identity,
)

NETWORK = "plant 7/öst"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_authority(tmp_path / "authority", "Test works")
    return tmp_path


def issue(folder: Path, peer: PeerId, authority: str = "authority", **changes: Any) -> bytes:
    facts: dict[str, Any] = {
        "name": "mill-1",
        "network": NETWORK,
        "role": "machine",
        "machine_type": "milling",
        **changes,
    }
    return issue_certificate(folder / authority, peer, **facts)


def set_up(folder: Path, **changes: Any) -> PeerSettings:
    """Make a peer that is right in everything but `changes` to its certificate."""
    peer = create_key(folder / "identity/key.pem")
    (folder / "identity/certificate.pem").write_bytes(issue(folder, peer, **changes))
    (folder / "identity/authority.pem").write_bytes((folder / "authority/authority.pem").read_bytes())
    return PeerSettings(name="mill-1", network=NETWORK, machine_type="milling", folder=folder)


def to_der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def test_one_key_is_peer_id_signer_and_certificate_key(folder: Path) -> None:
    settings = set_up(folder)
    identity = load_identity(settings)
    assert identity.peer == identity.signer.peer == identity.certificate.peer
    assert identity.certificate.name == "mill-1"
    assert identity.certificate.machine_type == "milling"
    assert identity.certificate.organisation == "Test works"
    root = (folder / "authority/authority.pem").read_bytes()
    assert identity.certificate.root == sha256(to_der(root))
    assert verify(identity.peer, "test", [1], identity.signer.sign("test", [1]))
    days = (identity.valid_until_ms / 1000 - datetime.datetime.now().timestamp()) / 86400
    assert 364 < days < 366
    for context in (identity.server_context, identity.link_context, identity.transfer_context):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert len(context.get_ca_certs()) == 1


def test_a_certificate_says_who_and_for_what(folder: Path) -> None:
    peer = create_key(folder / "key.pem")
    certificate = x509.load_pem_x509_certificate(issue(folder, peer))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://plant%207%2F%C3%B6st/machine/mill-1"
    ]
    subject = {attribute.oid: attribute.value for attribute in certificate.subject}
    assert subject == {
        NameOID.COMMON_NAME: "mill-1",
        NameOID.ORGANIZATION_NAME: "Test works",
        NameOID.ORGANIZATIONAL_UNIT_NAME: "milling",
    }
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_before_utc < datetime.datetime.now(datetime.UTC)


def test_private_keys_are_the_owners_alone(folder: Path) -> None:
    create_key(folder / "new/identity/key.pem")
    for path in (folder / "new/identity/key.pem", folder / "authority/authority.key"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_is_overwritten(folder: Path) -> None:
    create_key(folder / "key.pem")
    before = (folder / "key.pem").read_bytes()
    with pytest.raises(LocalError, match="exists already"):
        create_key(folder / "key.pem")
    with pytest.raises(LocalError, match="exists already"):
        create_authority(folder / "authority", "Other works")
    assert (folder / "key.pem").read_bytes() == before
    (folder / "authority/authority.key").unlink()
    with pytest.raises(LocalError, match="exists already"):
        create_authority(folder / "authority", "Other works")
    assert not (folder / "authority/authority.key").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"role": "boss"}, "'boss' is not a role"),
        ({"name": ""}, "the name '' must be"),
        ({"name": "x" * 65}, "must be 1 to 64"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "ö" * 64}, "does not fit into a certificate"),
        ({"network": ""}, "the network '' must be"),
        ({"valid_days": 0}, "not 0"),
        ({"valid_days": 10**6}, "not 1000000"),
        ({"machine_type": "m" * 65}, "the machine type .* must be 1 to 64"),
        ({"authority": "nowhere"}, "cannot be read"),
    ],
)
def test_unfit_certificates_are_not_issued(folder: Path, changes: dict[str, Any], complaint: str) -> None:
    peer = create_key(folder / "key.pem")
    with pytest.raises(LocalError, match=complaint):
        issue(folder, peer, **changes)


def test_an_authority_with_another_key_or_an_open_one_issues_nothing(folder: Path) -> None:
    peer = create_key(folder / "key.pem")
    (folder / "authority/authority.key").chmod(0o644)
    with pytest.raises(LocalError, match="chmod 600"):
        issue(folder, peer)
    (folder / "authority/authority.key").write_bytes((folder / "key.pem").read_bytes())
    (folder / "authority/authority.key").chmod(0o600)
    with pytest.raises(LocalError, match="is not the key of"):
        issue(folder, peer)


def _remove_key(folder: Path) -> None:
    (folder / "identity/key.pem").unlink()


def _open_key(folder: Path) -> None:
    (folder / "identity/key.pem").chmod(0o640)


def _other_kind_of_key(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "identity/key.pem").write_bytes(pem)


def _encrypted_key(folder: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (folder / "identity/key.pem").write_bytes(pem)


def _broken_key(folder: Path) -> None:
    (folder / "identity/key.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nMC4C\n")


def _foreign_key(folder: Path) -> None:
    create_key(folder / "other.pem")
    (folder / "identity/key.pem").write_bytes((folder / "other.pem").read_bytes())


def _broken_certificate(folder: Path) -> None:
    (folder / "identity/certificate.pem").write_bytes(b"nothing")


def _foreign_authority(folder: Path) -> None:
    create_authority(folder / "other", "Test works")
    (folder / "identity/authority.pem").write_bytes((folder / "other/authority.pem").read_bytes())


def _leaf_as_authority(folder: Path) -> None:
    own = folder / "identity"
    (own / "authority.pem").write_bytes((own / "certificate.pem").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_remove_key, "key.pem does not exist"),
        (_open_key, "chmod 600"),
        (_other_kind_of_key, r"another kind \(EC\)"),
        (_encrypted_key, "is encrypted and no passphrase is configured"),
        (_broken_key, "not a private key in PEM"),
        (_foreign_key, "is not the certificate of"),
        (_broken_certificate, "not a certificate in PEM"),
        (_foreign_authority, "was not signed by the authority"),
        (_leaf_as_authority, "not the certificate of an authority"),
    ],
)
def test_an_identity_that_would_fail_on_the_wire_is_refused_at_once(
    folder: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    settings = set_up(folder)
    spoil(folder)
    with pytest.raises(ConfigError, match=complaint):
        load_identity(settings)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"network": "plant 8"}, "network 'plant 8', not 'plant 7/öst'"),
        ({"name": "mill-2"}, "for name 'mill-2', but the settings say 'mill-1'"),
        ({"role": "witness"}, "for role 'witness'"),
        ({"machine_type": ""}, "for machine_type ''"),
    ],
)
def test_settings_that_contradict_the_certificate_are_refused(
    folder: Path, changes: dict[str, Any], complaint: str
) -> None:
    settings = set_up(folder, **changes)
    with pytest.raises(ConfigError, match=complaint):
        load_identity(settings)


@pytest.mark.parametrize(
    ("days_from_now", "complaint"), [((-20, -10), "expired on"), ((10, 20), "not valid before")]
)
def test_a_certificate_out_of_its_time_is_refused(
    folder: Path, days_from_now: tuple[int, int], complaint: str
) -> None:
    settings = set_up(folder)
    now = datetime.datetime.now(datetime.UTC)
    start, end = (now + datetime.timedelta(days=days) for days in days_from_now)
    pem = forge(folder, lambda builder: builder.not_valid_before(start).not_valid_after(end))
    (folder / "identity/certificate.pem").write_bytes(pem)
    with pytest.raises(ConfigError, match=complaint):
        load_identity(settings)


def forge(
    folder: Path,
    time: Callable[[x509.CertificateBuilder], x509.CertificateBuilder] | None = None,
    uris: tuple[str, ...] = ("spiffe://plant%207%2F%C3%B6st/machine/mill-1",),
    key: Any = None,
) -> bytes:
    """Return a certificate that issue_certificate would not make, signed by the authority."""
    root = x509.load_pem_x509_certificate((folder / "authority/authority.pem").read_bytes())
    root_key = serialization.load_pem_private_key((folder / "authority/authority.key").read_bytes(), None)
    if key is None:
        if not (folder / "identity/key.pem").exists():
            create_key(folder / "identity/key.pem")
        pem = (folder / "identity/key.pem").read_bytes()
        key = serialization.load_pem_private_key(pem, None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mill-1")]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        time(builder)
        if time
        else builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    )
    assert isinstance(root_key, Ed25519PrivateKey)
    return builder.sign(root_key, None).public_bytes(serialization.Encoding.PEM)


def test_a_peers_certificate_tells_its_identity(folder: Path) -> None:
    peer = create_key(folder / "key.pem")
    found = identity_of(to_der(issue(folder, peer, name="cell/ü %41", role="witness")), NETWORK)
    assert found.peer == peer
    assert (found.name, found.role, found.machine_type) == ("cell/ü %41", "witness", "milling")
    with pytest.raises(RemoteError, match="for network") as caught:
        identity_of(to_der(issue(folder, peer)), "another network")
    assert caught.value.peer == peer


@pytest.mark.parametrize(
    ("uris", "complaint"),
    [
        ((), "no URI"),
        (("https://plant/machine/mill-1",), "no URI"),
        (("spiffe://plant/machine",), "no URI"),
        (("spiffe://plant/machine/mill-1/x",), "no URI"),
        (("spiffe://plant/machine/",), "no URI"),
        (("spiffe://plant/machine/" + "m" * 65,), "no URI"),
        (("spiffe://plant/machine/a%0Ab",), "no URI"),
        (("spiffe://plant/machine/%6dill-1",), "no URI"),
        (("spiffe://plant/machine/a", "spiffe://plant/machine/b"), "no URI"),
        (("spiffe://plant/boss/mill-1",), "unknown role 'boss'"),
    ],
)
def test_a_certificate_that_names_nobody_we_know_is_refused(
    folder: Path, uris: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(RemoteError, match=complaint):
        identity_of(to_der(forge(folder, uris=uris)), "plant")


def test_a_certificate_with_another_kind_of_key_is_refused(folder: Path) -> None:
    other = to_der(forge(folder, key=ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(RemoteError, match="not an Ed25519 key"):
        identity_of(other, NETWORK)
    for junk in (b"", b"0", other[:-10], b"\x30\x82\xff\xff"):
        with pytest.raises(RemoteError):
            identity_of(junk, NETWORK)
