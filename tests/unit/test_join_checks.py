"""Whom a newcomer believes before it says its secret, and that its key stays when it must."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgepool.errors import LocalError, RemoteError
from edgepool.gateway.newcomer import _own_key
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.transport.certificates import create_authority, issue_certificate
from edgepool.transport.joincode import JoinCode, fingerprint_of
from edgepool.transport.joining import _own_certificate, check_registrar

WHERE = "/ip4/10.0.0.1/tcp/4001"
REGISTRAR = Signer(bytes(32)).peer


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def make_root(folder: Path) -> bytes:
    create_authority(folder, "Test works")
    return der((folder / "authority.pem").read_bytes())


def leaf(authority: Path, role: str = "coordinator", peer: PeerId = REGISTRAR) -> bytes:
    return issue_certificate(authority, peer, name="cloud", network="plant", role=role, machine_type="")


def code_for(root: bytes) -> JoinCode:
    return JoinCode((WHERE,), fingerprint_of(root), bytes(6), bytes(16))


def test_a_coordinator_of_the_code_s_authority_is_believed(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    registrar, network, _ = check_registrar(code_for(root), WHERE, root, der(leaf(tmp_path)))
    assert (registrar.peer, registrar.name, network) == (REGISTRAR, "cloud", "plant")


def test_nobody_else_is(tmp_path: Path) -> None:
    root, other = make_root(tmp_path / "own"), make_root(tmp_path / "other")
    coordinator, foreign = der(leaf(tmp_path / "own")), der(leaf(tmp_path / "other"))
    for shown, certificate, sentence in (
        (other, foreign, "not of the authority that this code is for"),
        (root, foreign, "was not issued by the authority"),
        (root, root, "names no peer|has no URI|is a "),
        (root, der(leaf(tmp_path / "own", "machine")), "a machine may not invite gateways"),
        (root, b"", "was not issued by the authority"),
        (b"", coordinator, "not of the authority that this code is for"),
    ):
        with pytest.raises(RemoteError, match=sentence):
            check_registrar(code_for(root), WHERE, shown, certificate)
    # A member's certificate is no authority, even if a code should name it.
    with pytest.raises(RemoteError, match="was not issued by the authority"):
        check_registrar(code_for(coordinator), WHERE, coordinator, coordinator)


def test_a_certificate_for_another_key_is_not_taken(tmp_path: Path) -> None:
    root = x509.load_der_x509_certificate(make_root(tmp_path))
    assert _own_certificate(leaf(tmp_path), root, REGISTRAR, WHERE)
    stranger = Signer(b"s" * 32).peer
    for pem in (leaf(tmp_path, peer=stranger), b"no certificate"):
        with pytest.raises(RemoteError, match="not for this gateway's key"):
            _own_certificate(pem, root, REGISTRAR, WHERE)


def test_the_key_of_an_earlier_attempt_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPOOL_PASSPHRASE", "a long passphrase")
    aside = tmp_path / ".mill.joining"
    first, is_new = _own_key(aside)
    again, is_new_again = _own_key(aside)
    assert (first.peer, is_new, is_new_again) == (again.peer, True, False)
    monkeypatch.delenv("EDGEPOOL_PASSPHRASE")
    with pytest.raises(LocalError, match="EDGEPOOL_PASSPHRASE"):
        _own_key(aside)
    monkeypatch.setenv("EDGEPOOL_PASSPHRASE", "a long passphrase")
    assert _own_key(aside)[0].peer == first.peer
    # One that was cut off while it was written was never shown to anybody.
    (aside / "identity/key.pem").write_bytes(b"-----BEGIN ENCRYPTED PRI")
    assert _own_key(aside)[1]
