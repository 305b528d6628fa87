"""A proof of membership holds for one certificate, one channel, one direction and one time, and no other."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edgepool.errors import DecodeError
from edgepool.model.channelproof import MembershipProof, check_proof, make_proof
from edgepool.model.codec import decode, encode
from edgepool.model.credential import (
    MAX_CERTIFICATE_BYTES,
    NotProven,
    Root,
    check_certificate,
    network_of,
    read_root,
)
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId
from edgepool.runtime.clock import SystemClock
from edgepool.transport.certificates import create_authority, issue_certificate

NETWORK = "plant"
MILL, HUB = Signer(sha256(b"mill")), Signer(sha256(b"hub"))
CHANNEL = sha256(b"one channel")
DAY_MS = 86_400_000


def to_der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def make_root(folder: Path) -> Root:
    create_authority(folder, "Test works")
    return read_root(to_der((folder / "authority.pem").read_bytes()))


def certificate(authority: Path, peer: PeerId = MILL.peer, **facts: Any) -> bytes:
    wanted = {"name": "mill", "network": NETWORK, "role": "machine", "machine_type": "Milling", **facts}
    return to_der(issue_certificate(authority, peer, **wanted))


def checked(proof: MembershipProof, root: Root, **facts: Any) -> Any:
    now_ms = SystemClock().now().wall_ms
    wanted = {"roots": [root], "network": NETWORK, "binding": CHANNEL, "prover": MILL.peer}
    return check_proof(proof, **{**wanted, "verifier": HUB.peer, "now_ms": now_ms, **facts})


def test_a_member_proves_who_it_is_on_its_channel(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    proof = make_proof(MILL, certificate(tmp_path), NETWORK, CHANNEL, HUB.peer)
    found = checked(decode(MembershipProof, encode(proof)), root)
    assert (found.peer, found.name, found.role, found.machine_type) == (
        MILL.peer,
        "mill",
        "machine",
        "Milling",
    )
    assert (found.organisation, found.root) == ("Test works", root.fingerprint)


def test_a_proof_holds_nowhere_else(tmp_path: Path) -> None:
    root, other = make_root(tmp_path / "own"), make_root(tmp_path / "other")
    own = certificate(tmp_path / "own")
    proof = make_proof(MILL, own, NETWORK, CHANNEL, HUB.peer)
    now_ms = SystemClock().now().wall_ms
    thief = Signer(sha256(b"thief"))
    stolen = make_proof(thief, own, NETWORK, CHANNEL, HUB.peer)
    cases: list[tuple[MembershipProof, dict[str, Any], str]] = [
        (proof, {"binding": sha256(b"another channel")}, "possession"),  # replayed
        (proof, {"verifier": MILL.peer}, "possession"),  # reflected
        (stolen, {}, "possession"),
        (stolen, {"prover": thief.peer}, "possession"),
        (proof, {"roots": [other]}, "foreign"),
        (proof, {"roots": []}, "foreign"),
        (proof, {"now_ms": now_ms + 400 * DAY_MS}, "expired"),
        (proof, {"now_ms": now_ms - DAY_MS}, "not_yet_valid"),
        (proof, {"network": "another plant"}, "wrong_network"),
    ]
    for shown, facts, word in cases:
        with pytest.raises(NotProven) as caught:
            checked(shown, root, **facts)
        assert caught.value.word == word, facts


def test_no_proof_is_longer_than_a_certificate_may_be() -> None:
    proof = MembershipProof(bytes(MAX_CERTIFICATE_BYTES + 1), bytes(64))
    with pytest.raises(DecodeError):
        decode(MembershipProof, encode(proof))


def odd_certificate(key: Ed25519PrivateKey, names: bytes) -> bytes:
    """Return a certificate that has signed itself, with alternative names (DER) as they are given."""
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test works")])
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=36_500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    if names:
        oid = x509.SubjectAlternativeName.oid
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, names), critical=False)
    return builder.sign(key, None).public_bytes(Encoding.DER)


@pytest.mark.parametrize("kind", range(9))
def test_names_of_whatever_kind_are_refused_and_raise_nothing_else(tmp_path: Path, kind: int) -> None:
    """A stranger shows such a certificate on the libp2p road before anything is known of it."""
    root = make_root(tmp_path)
    inside = bytes([0x80 | kind, 0]) if kind not in (0, 3, 4, 5) else bytes([0xA0 | kind, 2, 0x30, 0])
    der = odd_certificate(
        Ed25519PrivateKey.from_private_bytes(bytes(32)), bytes([0x30, len(inside)]) + inside
    )
    with pytest.raises(NotProven) as refused:
        check_certificate(der, [root], NETWORK, 0)
    assert refused.value.word in ("nameless", "unreadable")
    assert network_of(der) == ""


def test_a_root_has_one_form_and_one_fingerprint() -> None:
    """The bits that a signature leaves unused at its end are signed by nobody."""
    for seed in range(64):
        der = odd_certificate(Ed25519PrivateKey.from_private_bytes(sha256(b"%d" % seed)), b"")
        assert read_root(der).der == der
        altered = der[:-65] + b"\x01" + der[-64:]
        try:
            x509.load_der_x509_certificate(altered).verify_directly_issued_by(
                x509.load_der_x509_certificate(altered)
            )
        except Exception:
            continue  # the library refuses it by itself
        with pytest.raises(DecodeError, match="altered"):
            read_root(altered)
