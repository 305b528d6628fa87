"""What a certificate says of a peer, and whether a root vouches for it [S3.6].

Pure: bytes, roots and a time come in, an identity or a refusal goes out. Links, transfers and every other
transport judge by `check_certificate` alone, so that whoever is refused at one door is refused at all.
X.509 is read by the `cryptography` library; what it says is believed for connections only and never decides
what may stand on a chain, since versions of a parser can differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from edgepool.errors import DecodeError, RemoteError
from edgepool.model.crypto import sha256
from edgepool.model.identity import ROLES, PeerIdentity
from edgepool.model.ids import PeerId, peer_id_from_public_key
from edgepool.model.trust import MAX_ROOT_BYTES

MAX_CERTIFICATE_BYTES = 4096
"""No certificate of a peer is longer, in DER."""
MAX_NAME_LENGTH = 64
_MAX_URI_LENGTH = 2048

UNREADABLE = "unreadable"
OVERSIZE = "oversize_certificate"
WRONG_KEY = "wrong_key"
NAMELESS = "nameless"
WRONG_NETWORK = "wrong_network"
UNKNOWN_ROLE = "unknown_role"
FOREIGN = "foreign"
EXPIRED = "expired"
NOT_YET_VALID = "not_yet_valid"
REVOKED = "revoked"
POSSESSION = "possession"


class NotProven(RemoteError):
    """A certificate does not make its bearer a member; `word`, one of those above, is the reason."""

    def __init__(self, peer: str, word: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.word = word


RETIRED = "retired"
LAPSED = "lapsed"
"""Why a connection that stood is cut, as it is for REVOKED; see transport/trust.py."""


@dataclass(frozen=True, slots=True)
class Root:
    """The root certificate of an organisation: its DER, the SHA-256 of that, and what it says."""

    der: bytes = field(repr=False)
    fingerprint: bytes
    organisation: str
    valid_from_ms: int
    valid_until_ms: int
    certificate: x509.Certificate = field(repr=False, compare=False)


def read_root(der: bytes) -> Root:
    """Return the root in `der`; DecodeError says, in one clause, why it is none that can be trusted."""
    if len(der) > MAX_ROOT_BYTES:
        raise DecodeError(f"it has {len(der)} bytes, a root has {MAX_ROOT_BYTES} at most")
    try:
        certificate = x509.load_der_x509_certificate(der)
        authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        certificate.verify_directly_issued_by(certificate)
        is_exact = _is_exact(der, certificate)
        organisation = name_attribute(certificate.subject, NameOID.ORGANIZATION_NAME)
        start, end = _validity(certificate)
    except Exception:
        # A parser can fail in many ways over what somebody else has made.
        raise DecodeError("it is not the certificate of an authority that has signed itself") from None
    if not authority:
        raise DecodeError("it is not the certificate of an authority")
    if not is_exact:
        raise DecodeError("it was altered behind its signature")
    if not 1 <= len(organisation) <= MAX_NAME_LENGTH or not organisation.isprintable():
        raise DecodeError("it names no organisation (O) of 1 to 64 printable characters")
    return Root(der, sha256(der), organisation, start, end, certificate)


def root_key(root: Root) -> PeerId:
    """Return the key of a root as a peer id, '' if it is of another kind than Ed25519."""
    try:
        public = root.certificate.public_key()
    except Exception:
        return PeerId("")
    if not isinstance(public, Ed25519PublicKey):
        return PeerId("")
    return peer_id_from_public_key(public.public_bytes_raw())


def check_certificate(der: bytes, roots: Iterable[Root], network: str, now_ms: int) -> PeerIdentity:
    """Return whom a certificate (DER) proves by one of `roots` at the wall time `now_ms`.

    NotProven, with the condition that failed, if it is too long, unreadable, not for an Ed25519 key, of
    another network or role, not issued by a root directly, or not valid now.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise NotProven("unknown", OVERSIZE, f"its certificate has more than {MAX_CERTIFICATE_BYTES} bytes")
    named, certificate = _read(der, network)
    root = next((root for root in roots if has_issued(root, certificate)), None)
    if root is None:
        raise NotProven(named.peer, FOREIGN, "its certificate was not issued by a root that is trusted here")
    start, end = _validity(certificate)
    start, end = max(start, root.valid_from_ms), min(end, root.valid_until_ms)
    if now_ms > end:
        raise NotProven(named.peer, EXPIRED, "its certificate, or its root, has expired")
    if now_ms < start:
        raise NotProven(named.peer, NOT_YET_VALID, "its certificate, or its root, is not valid yet")
    return PeerIdentity(
        named.peer, named.name, named.role, named.machine_type, root.organisation, root.fingerprint, end
    )


def has_issued(root: Root, certificate: x509.Certificate) -> bool:
    """Say whether a root has issued a certificate directly."""
    try:
        certificate.verify_directly_issued_by(root.certificate)
    except Exception:
        # Another issuer, a false signature, or a kind of signature that the library does not know.
        return False
    return True


def identity_of(der: bytes, network: str) -> PeerIdentity:
    """Return whom a peer's certificate (DER) names, without asking who has issued it, or when.

    NotProven if its key is not Ed25519, or it is for another network or an unknown role.
    """
    return _read(der, network)[0]


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


def uri_names(names: x509.SubjectAlternativeName) -> tuple[str, str, str] | None:
    """Return (network, role, name) of the one identity URI among alternative names, or None."""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://") or len(uris[0]) > _MAX_URI_LENGTH:
        return None
    parts = [unquote(part) for part in uris[0].removeprefix("spiffe://").split("/")]
    if len(parts) != 3 or identity_uri(*parts) != uris[0]:
        return None
    if not all(part and len(part) <= MAX_NAME_LENGTH and part.isprintable() for part in parts):
        return None
    return parts[0], parts[1], parts[2]


def _read(der: bytes, network: str) -> tuple[PeerIdentity, x509.Certificate]:
    try:
        certificate = x509.load_der_x509_certificate(der)
        public = certificate.public_key()
        if not _is_exact(der, certificate):
            raise ValueError("it was altered where nothing is signed")
        machine_type = name_attribute(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME)
        until_ms = _validity(certificate)[1]
    except Exception:
        # A certificate that OpenSSL accepts and this parser does not can fail in many ways.
        raise NotProven("unknown", UNREADABLE, "its certificate cannot be read") from None
    if not isinstance(public, Ed25519PublicKey):
        raise NotProven("unknown", WRONG_KEY, "the key of its certificate is not an Ed25519 key")
    peer: PeerId = peer_id_from_public_key(public.public_bytes_raw())
    named = _named_in(certificate)
    if named is None:
        raise NotProven(peer, NAMELESS, "its certificate has no URI spiffe://NETWORK/ROLE/NAME")
    its_network, role, name = named
    if its_network != network:
        what = f"its certificate is for network '{its_network[:64]}', not '{network}'"
        raise NotProven(peer, WRONG_NETWORK, what)
    if role not in ROLES:
        raise NotProven(peer, UNKNOWN_ROLE, f"its certificate names the unknown role '{role[:64]}'")
    if len(machine_type) > MAX_NAME_LENGTH:
        raise NotProven(peer, NAMELESS, "the machine type in its certificate is too long")
    return PeerIdentity(peer, name, role, machine_type, valid_until_ms=until_ms), certificate


def _is_exact(der: bytes, certificate: x509.Certificate) -> bool:
    """Say whether the signature at the end, which nothing covers, is written as it must be.

    The library takes one whose bits are said to be fewer: the same root would have two fingerprints.
    """
    return der.endswith(b"\0" + certificate.signature)


def _named_in(certificate: x509.Certificate) -> tuple[str, str, str] | None:
    """Return (network, role, name) of the certificate's one identity URI, or None."""
    try:
        return uri_names(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except Exception:
        # None, two, or kinds of names that the library does not know, which is an error of its own.
        return None


def _validity(certificate: x509.Certificate) -> tuple[int, int]:
    """Return from when and until when a certificate is valid, in ms of wall time."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return int(start.timestamp() * 1000), int(end.timestamp() * 1000)
