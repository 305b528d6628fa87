"""What a running peer proves itself with: its signer and its TLS contexts, loaded and checked.

TLS 1.3 only, certificates on both sides, one trusted root. There is no host name check: what
counts is the peer id that the certificate proves, wherever it was found.
"""

from __future__ import annotations

import datetime
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
from edgepool.errors import ConfigError, RemoteError
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId, peer_id_from_public_key
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.joindoor import JOIN_PROTOCOL, JoinDoor
from edgepool.transport.keyfiles import (
    PASSPHRASE_VARIABLE,
    is_encrypted,
    own_passphrase,
    read_key_bytes,
    read_private_key,
)

LINK_PROTOCOL = "edgepool-link/1"
TRANSFER_PROTOCOL = "edgepool-transfer/1"
CONDUIT_PROTOCOL = "edgepool-conduit/1"
PROTOCOLS = (LINK_PROTOCOL, TRANSFER_PROTOCOL, CONDUIT_PROTOCOL)
"""What is spoken on a peer's port by those that have a certificate."""
MAX_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer's own identity. `certificate` is what others see; `valid_until_ms` is wall time.

    The server context takes all of PROTOCOLS (ALPN tells which); each client context is for one.
    A registrar has a door for those that have no certificate yet; it takes its contexts' place if open.
    """

    network: str
    certificate: PeerIdentity
    valid_until_ms: int
    signer: Signer = field(repr=False)
    server_context: ssl.SSLContext = field(repr=False)
    link_context: ssl.SSLContext = field(repr=False)
    transfer_context: ssl.SSLContext = field(repr=False)
    conduit_context: ssl.SSLContext = field(repr=False)
    join_door: JoinDoor | None = field(default=None, repr=False)

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
    key, passphrase = read_own_key(settings)
    certificate = read_certificate(certificate_path)
    authority = read_certificate(authority_path)
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            f"{certificate_path} is not the certificate of {key_path}: have one issued for this key"
        )
    _check_validity(certificate_path, certificate)
    _check_validity(authority_path, authority)
    check_issuer(certificate_path, certificate, authority_path, authority)
    named = check_names(certificate_path, certificate, settings)

    def context(side: int, *protocols: str) -> ssl.SSLContext:
        return _context(side, certificate_path, key_path, passphrase, authority, protocols)

    servers = ssl.PROTOCOL_TLS_SERVER
    joins = None
    if settings.authority.folder:
        joins = JoinDoor(context(servers, *PROTOCOLS), context(servers, JOIN_PROTOCOL))
    return Identity(
        network=settings.network,
        certificate=named,
        valid_until_ms=int(certificate.not_valid_after_utc.timestamp() * 1000),
        signer=Signer(key.private_bytes_raw()),
        server_context=context(servers, *PROTOCOLS),
        link_context=context(ssl.PROTOCOL_TLS_CLIENT, LINK_PROTOCOL),
        transfer_context=context(ssl.PROTOCOL_TLS_CLIENT, TRANSFER_PROTOCOL),
        conduit_context=context(ssl.PROTOCOL_TLS_CLIENT, CONDUIT_PROTOCOL),
        join_door=joins,
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


def network_of(der: bytes) -> str:
    """Return the network that a peer's certificate (DER) is for; '' if it names none."""
    try:
        named = _named_in(x509.load_der_x509_certificate(der))
    except Exception:
        return ""
    return named[0] if named is not None else ""


def identity_uri(network: str, role: str, name: str) -> str:
    """Return the URI by which a certificate names a peer."""
    return f"spiffe://{quote(network, safe='')}/{quote(role, safe='')}/{quote(name, safe='')}"


def name_attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """Return the first attribute `oid` of an X.509 name as text, '' if there is none."""
    for attribute in name.get_attributes_for_oid(oid):
        return str(attribute.value)
    return ""


def read_own_key(settings: PeerSettings) -> tuple[Ed25519PrivateKey, bytes | None]:
    """Return a peer's key and the passphrase that its file is under (None: it is plain); ConfigError if not.

    A plain key is refused if the settings name a passphrase file: it is less safe than they say.
    """
    path = settings.path(settings.identity.key)
    encrypted = is_encrypted(read_key_bytes(path, ConfigError))
    passphrase = own_passphrase(settings) if encrypted else None
    remedy = f"set identity.passphrase_file, or the environment variable {PASSPHRASE_VARIABLE}"
    key = read_private_key(path, passphrase, ConfigError, remedy)
    if settings.identity.passphrase_file and not encrypted:
        raise ConfigError(
            f"{path} is not encrypted though the settings name a passphrase file: run "
            f"'edgepool key encrypt {settings.folder}', or take identity.passphrase_file out of the settings"
        )
    return key, passphrase


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


def read_certificate(path: Path) -> x509.Certificate:
    """Return the certificate in a PEM file; ConfigError if there is none."""
    raw = read_key_bytes(path, ConfigError)
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


def check_issuer(
    path: Path, certificate: x509.Certificate, authority_path: Path, authority: x509.Certificate
) -> None:
    """Raise ConfigError unless `authority` is an authority and has signed `certificate`."""
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            raise ConfigError(f"{authority_path} is not the certificate of an authority")
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, x509.DuplicateExtension):
        raise ConfigError(f"{authority_path} is not the certificate of an authority") from None
    except (InvalidSignature, ValueError, TypeError):
        raise ConfigError(f"{path} was not signed by the authority in {authority_path}") from None


def check_names(path: Path, certificate: x509.Certificate, settings: PeerSettings) -> PeerIdentity:
    """Return whom a peer's own certificate names; ConfigError if the settings say otherwise.

    Others believe the certificate, so such settings would only mislead.
    """
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
    side: int,
    certificate: Path,
    key: Path,
    passphrase: bytes | None,
    authority: x509.Certificate,
    protocols: tuple[str, ...],
) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.public_bytes(serialization.Encoding.DER))
    # Without any password OpenSSL would ask for one on the terminal, had the key been encrypted just now.
    context.load_cert_chain(certificate, key, password=passphrase or b"")
    context.set_alpn_protocols(list(protocols))
    if side == ssl.PROTOCOL_TLS_SERVER:
        # No resumption: every connection proves both keys anew.
        context.num_tickets = 0
    return context
