"""What a running peer proves itself with: its signer and its TLS contexts, loaded and checked.

TLS 1.3 only, certificates on both sides, one trusted root. There is no host name check: what
counts is the peer id that the certificate proves, wherever it was found.
"""

from __future__ import annotations

import datetime
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from edgepool.config import ROLES, PeerSettings
from edgepool.errors import ConfigError, LocalError, RemoteError
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId, peer_id_from_public_key
from edgepool.runtime.ports import PeerIdentity

LINK_PROTOCOL = "edgepool-link/1"
TRANSFER_PROTOCOL = "edgepool-transfer/1"
MAX_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer's own identity. `certificate` is what others see; `valid_until_ms` is wall time.

    The server context takes links and transfers (ALPN tells which); each client context is for one.
    """

    network: str
    certificate: PeerIdentity
    valid_until_ms: int
    signer: Signer = field(repr=False)
    server_context: ssl.SSLContext = field(repr=False)
    link_context: ssl.SSLContext = field(repr=False)
    transfer_context: ssl.SSLContext = field(repr=False)

    @property
    def peer(self) -> PeerId:
        """This peer's id."""
        return self.signer.peer


def load_identity(settings: PeerSettings) -> Identity:
    """Load and check the key, certificate and root that `settings.identity` names.

    ConfigError, in one sentence, for anything that would only fail later on the wire.
    """
    paths = settings.identity
    key_path = settings.path(paths.key)
    certificate_path = settings.path(paths.certificate)
    authority_path = settings.path(paths.authority)
    key = _read_key(key_path)
    certificate = _read_certificate(certificate_path)
    authority = _read_certificate(authority_path)
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            f"{certificate_path} is not the certificate of {key_path}: have one issued for this key"
        )
    _check_validity(certificate_path, certificate)
    _check_validity(authority_path, authority)
    _check_issuer(certificate_path, certificate, authority_path, authority)
    named = _check_names(certificate_path, certificate, settings)

    def context(side: int, *protocols: str) -> ssl.SSLContext:
        return _context(side, certificate_path, key_path, authority, protocols)

    return Identity(
        network=settings.network,
        certificate=named,
        valid_until_ms=int(certificate.not_valid_after_utc.timestamp() * 1000),
        signer=Signer(key.private_bytes_raw()),
        server_context=context(ssl.PROTOCOL_TLS_SERVER, LINK_PROTOCOL, TRANSFER_PROTOCOL),
        link_context=context(ssl.PROTOCOL_TLS_CLIENT, LINK_PROTOCOL),
        transfer_context=context(ssl.PROTOCOL_TLS_CLIENT, TRANSFER_PROTOCOL),
    )


def identity_of(der: bytes, network: str) -> PeerIdentity:
    """Return whom a peer's certificate (DER, its chain already verified by TLS) names.

    RemoteError if its key is not Ed25519, or it is for another network or an unknown role.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        public = certificate.public_key()
    except Exception:
        # A certificate that OpenSSL accepts and this parser does not can fail in many ways.
        raise RemoteError("unknown", "its certificate cannot be read") from None
    if not isinstance(public, Ed25519PublicKey):
        raise RemoteError("unknown", "the key of its certificate is not an Ed25519 key")
    peer = peer_id_from_public_key(public.public_bytes_raw())
    named = _named_in(certificate)
    if named is None:
        raise RemoteError(peer, "its certificate has no URI spiffe://NETWORK/ROLE/NAME")
    its_network, role, name = named
    if its_network != network:
        raise RemoteError(peer, f"its certificate is for network '{its_network[:64]}', not '{network}'")
    if role not in ROLES:
        raise RemoteError(peer, f"its certificate names the unknown role '{role[:64]}'")
    machine_type = name_attribute(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME)
    if len(machine_type) > MAX_NAME_LENGTH:
        raise RemoteError(peer, "the machine type in its certificate is too long")
    return PeerIdentity(peer, name, role, machine_type)


def identity_uri(network: str, role: str, name: str) -> str:
    """Return the URI by which a certificate names a peer."""
    return f"spiffe://{quote(network, safe='')}/{quote(role, safe='')}/{quote(name, safe='')}"


def name_attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """Return the first attribute `oid` of an X.509 name as text, '' if there is none."""
    for attribute in name.get_attributes_for_oid(oid):
        return str(attribute.value)
    return ""


def refuse_open_key_file(path: Path, error: type[LocalError]) -> None:
    """Raise `error` if others than its owner may read the private key at `path`."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise error(f"{path} can be read by others than its owner: run 'chmod 600 {path}'")


def _named_in(certificate: x509.Certificate) -> tuple[str, str, str] | None:
    """Return (network, role, name) of the certificate's one identity URI, or None."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    if len(uris) != 1 or not uris[0].startswith("spiffe://") or len(uris[0]) > 2048:
        return None
    parts = [unquote(part) for part in uris[0].removeprefix("spiffe://").split("/")]
    if len(parts) != 3 or identity_uri(*parts) != uris[0]:
        return None
    if not all(part and len(part) <= MAX_NAME_LENGTH and part.isprintable() for part in parts):
        return None
    return parts[0], parts[1], parts[2]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: make or copy it there, or set its place in [identity]"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _read_key(path: Path) -> Ed25519PrivateKey:
    raw = _read(path)
    refuse_open_key_file(path, ConfigError)
    try:
        key = serialization.load_pem_private_key(raw, password=None)
    except TypeError:
        raise ConfigError(f"{path} is encrypted: a gateway starts unattended and needs a plain key") from None
    except Exception:
        # The library raises several kinds, for broken PEM and for kinds of key it does not know.
        raise ConfigError(f"{path} is not a private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        kind = type(key).__name__.removesuffix("PrivateKey").strip("_")
        raise ConfigError(f"{path} is a key of another kind ({kind}): a peer's key is an Ed25519 key")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    raw = _read(path)
    try:
        certificate = x509.load_pem_x509_certificate(raw)
        certificate.public_key()
    except Exception:
        raise ConfigError(f"{path} is not a certificate in PEM") from None
    return certificate


def _check_validity(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        raise ConfigError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it")
    if now < certificate.not_valid_before_utc:
        start = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(f"{path} is not valid before {start}: check this machine's clock")


def _check_issuer(
    path: Path, certificate: x509.Certificate, authority_path: Path, authority: x509.Certificate
) -> None:
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            raise ConfigError(f"{authority_path} is not the certificate of an authority")
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, x509.DuplicateExtension):
        raise ConfigError(f"{authority_path} is not the certificate of an authority") from None
    except (InvalidSignature, ValueError, TypeError):
        raise ConfigError(f"{path} was not signed by the authority in {authority_path}") from None


def _check_names(path: Path, certificate: x509.Certificate, settings: PeerSettings) -> PeerIdentity:
    """Others believe the certificate, so settings that say otherwise would only mislead."""
    try:
        named = identity_of(certificate.public_bytes(serialization.Encoding.DER), settings.network)
    except RemoteError as error:
        raise ConfigError(f"{path} does not fit these settings: {error.reason}") from None
    for what, in_certificate, in_settings in (
        ("name", named.name, settings.name),
        ("role", named.role, settings.role),
        ("machine_type", named.machine_type, settings.machine_type),
    ):
        if in_certificate != in_settings:
            raise ConfigError(
                f"{path} is for {what} '{in_certificate}', but the settings say '{in_settings}'"
            )
    return named


def _context(
    side: int, certificate: Path, key: Path, authority: x509.Certificate, protocols: tuple[str, ...]
) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.public_bytes(serialization.Encoding.DER))
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(list(protocols))
    if side == ssl.PROTOCOL_TLS_SERVER:
        # No resumption: every connection proves both keys anew.
        context.num_tickets = 0
    return context
