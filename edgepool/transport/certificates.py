"""Keys, certificates and the small authority of one organisation.

A peer has ONE Ed25519 key: it is its libp2p identity, it signs its records, and its X.509
certificate is for it. The certificate says who that is in the SAN URI
`spiffe://NETWORK/ROLE/NAME` (each part percent-encoded) and the machine type in OU; the peer id is
never written in it, since the key itself is the peer id. Files are PEM; private keys are 0600.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgepool.config import ROLES
from edgepool.errors import LocalError
from edgepool.model.certifying import NEXT_ROOT_DOMAIN, next_root_terms
from edgepool.model.credential import MAX_NAME_LENGTH, identity_of, identity_uri, name_attribute
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId, peer_id_from_public_key, public_key_of
from edgepool.transport.identity import BACKDATE_MS, Identity, load_identity
from edgepool.transport.keyfiles import (
    AUTHORITY_PASSPHRASE_VARIABLE,
    key_pem,
    passphrase_of_environment,
    read_private_key,
)

__all__ = [
    "Identity",
    "create_authority",
    "create_key",
    "identity_of",
    "issue_certificate",
    "load_identity",
    "organisation_of",
]

AUTHORITY_CERTIFICATE = "authority.pem"
AUTHORITY_KEY = "authority.key"
AUTHORITY_VALID_DAYS = 3650

_BACKDATE = datetime.timedelta(milliseconds=BACKDATE_MS)


def create_authority(folder: Path, organisation: str, passphrase: bytes | None = None) -> None:
    """Make an organisation's root: `authority.pem` and `authority.key` (0600) in `folder`.

    The key is encrypted under `passphrase`, or under that of EDGEPOOL_AUTHORITY_PASSPHRASE if that is set.
    LocalError if either file is there already, the name is unfit, or the folder cannot be written.
    """
    _check_text("organisation", organisation)
    for path in (folder / AUTHORITY_CERTIFICATE, folder / AUTHORITY_KEY):
        if path.exists():
            raise LocalError(
                f"{path} exists already: an authority is never overwritten, choose another folder"
            )
    passphrase = passphrase or passphrase_of_environment(AUTHORITY_PASSPHRASE_VARIABLE, LocalError)
    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    name = _subject("edgepool authority", organisation, "")
    start = datetime.datetime.now(datetime.UTC) - _BACKDATE
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=AUTHORITY_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, None)
    )
    write_new_file(folder / AUTHORITY_KEY, key_pem(key, passphrase), 0o600)
    try:
        write_new_file(folder / AUTHORITY_CERTIFICATE, certificate.public_bytes(_PEM), 0o644)
    except LocalError:
        (folder / AUTHORITY_KEY).unlink(missing_ok=True)
        raise


def organisation_of(authority: Path) -> str:
    """Return the organisation that an authority's certificate names; '' if there is no authority."""
    try:
        root = x509.load_pem_x509_certificate((authority / AUTHORITY_CERTIFICATE).read_bytes())
    except OSError:
        return ""
    except ValueError:
        raise LocalError(f"{authority / AUTHORITY_CERTIFICATE} is not a certificate in PEM") from None
    names = root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(names[0].value) if names else ""


def create_key(path: Path, passphrase: bytes | None = None) -> PeerId:
    """Make a peer's Ed25519 key at `path` (PKCS#8 PEM, 0600) and return its peer id.

    It is encrypted if there is a `passphrase`. A missing folder is made for the owner alone.
    LocalError if the file is there already.
    """
    key = Ed25519PrivateKey.generate()
    write_new_file(path, key_pem(key, passphrase), 0o600)
    return peer_id_from_public_key(key.public_key().public_bytes_raw())


def issue_certificate(
    authority: Path,
    peer: PeerId,
    *,
    name: str,
    network: str,
    role: str,
    machine_type: str,
    valid_days: int = 365,
    valid_s: int = 0,
    passphrase: bytes | None = None,
) -> bytes:
    """Return a certificate (PEM) for `peer`, signed by the authority in folder `authority`.

    It is valid for `valid_s` seconds if that is not 0, and never outlives the authority. An authority's key
    that is encrypted is opened with `passphrase`, or with that of EDGEPOOL_AUTHORITY_PASSPHRASE. LocalError
    says what is unfit or missing.
    """
    if role not in ROLES:
        raise LocalError(f"'{role}' is not a role: use one of {', '.join(ROLES)}")
    _check_text("name", name)
    _check_text("network", network)
    if machine_type:
        _check_text("machine type", machine_type)
    if not 1 <= valid_days <= AUTHORITY_VALID_DAYS:
        raise LocalError(f"a certificate is valid for 1 to {AUTHORITY_VALID_DAYS} days, not {valid_days}")
    root, root_key = _load_authority(authority, passphrase)
    public = Ed25519PublicKey.from_public_bytes(public_key_of(peer))
    organisation = name_attribute(root.subject, NameOID.ORGANIZATION_NAME)
    start = datetime.datetime.now(datetime.UTC) - _BACKDATE
    length = datetime.timedelta(seconds=valid_s) if valid_s else datetime.timedelta(days=valid_days)
    end = min(start + _BACKDATE + length, root.not_valid_after_utc)
    if end <= start:
        raise LocalError(f"the authority in {authority} has expired: make a new one")
    uri = identity_uri(network, role, name)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_subject(name, organisation, machine_type))
        .issuer_name(root.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False
        )
        .sign(root_key, None)
    )
    return certificate.public_bytes(_PEM)


def vouch_for_root(authority: Path, network: str, root: bytes) -> bytes:
    """Return the signature of an authority for the root (DER) that follows its own; LocalError."""
    present, key = _load_authority(authority, None)
    old = sha256(present.public_bytes(serialization.Encoding.DER))
    return Signer(key.private_bytes_raw()).sign(NEXT_ROOT_DOMAIN, next_root_terms(network, old, root))


def write_new_file(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not be there yet, wholly and durably, or not at all (LocalError)."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise LocalError(
            f"{path} exists already and is not overwritten: remove it or choose another"
        ) from None
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise LocalError(f"{path} cannot be written: {error.strerror}") from None


_PEM = serialization.Encoding.PEM


def _load_authority(folder: Path, passphrase: bytes | None) -> tuple[x509.Certificate, Ed25519PrivateKey]:
    certificate_path, key_path = folder / AUTHORITY_CERTIFICATE, folder / AUTHORITY_KEY
    try:
        root = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    except OSError as error:
        raise LocalError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise LocalError(f"{folder} does not hold an authority's certificate in PEM") from None
    passphrase = passphrase or passphrase_of_environment(AUTHORITY_PASSPHRASE_VARIABLE, LocalError)
    remedy = f"set the environment variable {AUTHORITY_PASSPHRASE_VARIABLE}"
    key = read_private_key(key_path, passphrase, LocalError, remedy)
    try:
        root.verify_directly_issued_by(root)
        belongs = key.public_key() == root.public_key()
    except (InvalidSignature, ValueError, TypeError):
        belongs = False
    if not belongs:
        raise LocalError(f"{key_path} is not the key of {certificate_path}")
    return root, key


def _check_text(what: str, text: str) -> None:
    if not text or len(text) > MAX_NAME_LENGTH or not text.isprintable():
        raise LocalError(f"the {what} '{text[:80]}' must be 1 to {MAX_NAME_LENGTH} printable characters")


def _subject(name: str, organisation: str, machine_type: str) -> x509.Name:
    parts = [(NameOID.ORGANIZATION_NAME, organisation), (NameOID.COMMON_NAME, name)]
    if machine_type:
        parts.append((NameOID.ORGANIZATIONAL_UNIT_NAME, machine_type))
    try:
        return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts])
    except ValueError as error:
        shown = "', '".join(text[:80] for _, text in parts)
        raise LocalError(f"one of '{shown}' does not fit into a certificate: {error}") from None


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
