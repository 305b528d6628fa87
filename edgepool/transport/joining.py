"""How a gateway without a certificate asks a registrar for one, with a code [S3.6].

TLS itself trusts nobody here, as there is no root to trust yet. What counts is judged before anything
secret is said: the registrar shows its authority's root, whose fingerprint must be the code's; and its
own certificate, whose key TLS has proved, must be of that root, valid, and a coordinator's.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from edgepool.core.rights import Subject, refusal
from edgepool.errors import DecodeError, LocalError, Refused, RemoteError, Unavailable
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.credential import identity_of, network_of
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId, parse_address
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.framing import HEADER_BYTES, header
from edgepool.transport.joincode import JoinCode, fingerprint_of
from edgepool.transport.joindoor import (
    BARRED,
    EXPIRED,
    FAILED,
    JOIN_PROTOCOL,
    JOIN_SERVER_NAME,
    MAX_FRAME_BYTES,
    REVOKED,
    SIGNING_DOMAIN,
    UNKNOWN,
    USED,
    Admission,
    JoinRequest,
    RootShown,
    request_statement,
)

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0

_T = TypeVar("_T", bound=Wire)

_SENTENCES = {
    UNKNOWN: "the registrar does not know this invitation: have another one made with 'edgepool invite'",
    REVOKED: "this invitation was revoked: have another one made with 'edgepool invite'",
    EXPIRED: "this invitation has expired: have another one made with 'edgepool invite'",
    USED: "this invitation was used by another gateway already: if that was none of yours, tell the "
    "coordinator's owner at once; each gateway needs an invitation of its own",
    BARRED: "the key of this gateway was revoked: it can join in a new folder, with a new key",
    FAILED: "the registrar could not issue a certificate: its log says why",
}


class AnswerLost(Unavailable):
    """The request went out and no answer came: the same key may ask again with the same code."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a registrar has given: certificate and root (PEM), and the network as it knows it.

    `address` is where the registrar was reached, `pool` where it will propose the newcomer ('': nowhere).
    """

    certificate: bytes
    root: bytes
    identity: PeerIdentity
    network: str
    registrar: PeerIdentity
    address: str
    coordinators: tuple[PeerId, ...]
    pool: str


async def ask_to_join(code: JoinCode, signer: Signer, listen: Callable[[str], str]) -> tuple[Joined, str]:
    """Ask the registrar of `code` for a certificate for `signer`'s key; return that and where to listen.

    `listen` is given this machine's address on the way to the registrar. Raises Unavailable (nobody
    answers), AnswerLost, RemoteError (not the code's registrar), Refused (it says no) and LocalError
    (this machine's clock).
    """
    failures: list[str] = []
    for address in code.addresses:
        host, port, _ = parse_address(address)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=_context(), server_hostname=JOIN_SERVER_NAME, limit=MAX_FRAME_BYTES
                )
        except (OSError, ValueError) as error:  # TimeoutError and ssl.SSLError are OSErrors
            failures.append(f"{address} ({_why(error)})")
            continue
        try:
            return await _ask(code, signer, listen, address, reader, writer)
        finally:
            writer.transport.abort()
    raise Unavailable(
        f"the registrar cannot be reached at {', '.join(failures)}: "
        "see that it runs, and that the network lets this machine through"
    )


async def _ask(
    code: JoinCode,
    signer: Signer,
    listen: Callable[[str], str],
    address: str,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> tuple[Joined, str]:
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    if tls.selected_alpn_protocol() != JOIN_PROTOCOL:
        raise RemoteError(address, "it admits nobody: it is no registrar, or is not running as one")
    leaf = tls.getpeercert(binary_form=True) or b""
    silent = Unavailable(
        f"the registrar at {address} has ended the connection: it may be busy, or has been asked too often "
        "from here; try again in a minute"
    )
    shown = await _read(reader, RootShown, address, silent)
    registrar, network, root = check_registrar(code, address, shown.root, leaf)
    where = listen(_local_host(writer))
    request = JoinRequest(code.invitation, code.secret, signer.peer, where, bytes(64))
    statement = request_statement(code.fingerprint, sha256(leaf), request)
    body = encode(replace(request, signature=signer.sign(SIGNING_DOMAIN, statement)))
    writer.write(header(len(body)) + body)
    lost = AnswerLost(f"no answer came from the registrar at {address}: run the same command again")
    admission = await _read(reader, Admission, address, lost)
    if admission.refusal:
        sentence = _SENTENCES.get(admission.refusal)
        raise Refused(sentence or "the registrar refuses, for a reason that this version does not know")
    if admission.network != network:
        raise RemoteError(address, f"it is of network '{network}' and answers for another")
    certificate = _own_certificate(admission.certificate, root, signer.peer, address)
    own = identity_of(certificate.public_bytes(Encoding.DER), network)
    coordinators = tuple(dict.fromkeys((registrar.peer, *admission.coordinators)))
    joined = Joined(
        certificate.public_bytes(Encoding.PEM),
        root.public_bytes(Encoding.PEM),
        own,
        network,
        registrar,
        address,
        coordinators,
        admission.pool,
    )
    return joined, where


def check_registrar(
    code: JoinCode, address: str, root_der: bytes, leaf_der: bytes
) -> tuple[PeerIdentity, str, x509.Certificate]:
    """Return who the registrar is, its network and its root; RemoteError if it is not the code's.

    LocalError if a certificate is not valid now by this machine's clock.
    """
    if fingerprint_of(root_der) != code.fingerprint:
        raise RemoteError(
            address,
            "it is not of the authority that this code is for: the code is old, or somebody stands between",
        )
    wrong = RemoteError(address, "its certificate was not issued by the authority that this code is for")
    try:
        root = x509.load_der_x509_certificate(root_der)
        leaf = x509.load_der_x509_certificate(leaf_der)
        is_authority = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        leaf.verify_directly_issued_by(root)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, InvalidSignature, ValueError, TypeError):
        raise wrong from None
    if not is_authority:
        raise wrong
    now = datetime.datetime.now(datetime.UTC)
    for certificate in (root, leaf):
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= now <= end:
            raise LocalError(
                f"the certificates of the registrar are valid from {start:%Y-%m-%d %H:%M} to "
                f"{end:%Y-%m-%d %H:%M} UTC, and the clock of this machine says {now:%Y-%m-%d %H:%M}: "
                "set the clock, or renew the registrar's certificate"
            )
    network = network_of(leaf_der)
    registrar = identity_of(leaf_der, network)
    refused = refusal("invite", Subject(registrar.peer, registrar.role))
    if refused:
        raise RemoteError(address, refused)
    return registrar, network, root


def _own_certificate(pem: bytes, root: x509.Certificate, peer: PeerId, address: str) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(root)
        der = certificate.public_bytes(Encoding.DER)
        its_peer = identity_of(der, network_of(der)).peer
    except (InvalidSignature, ValueError, TypeError, RemoteError):
        its_peer = PeerId("")
    if its_peer != peer:
        raise RemoteError(address, "the certificate that it gave is not for this gateway's key")
    return certificate


async def _read(reader: asyncio.StreamReader, kind: type[_T], address: str, silent: Unavailable) -> _T:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            length = int.from_bytes(await reader.readexactly(HEADER_BYTES), "big")
            if length > MAX_FRAME_BYTES:
                raise DecodeError("too long")
            return decode(kind, await reader.readexactly(length), MAX_FRAME_BYTES)
    except DecodeError:
        raise RemoteError(address, "it does not answer as a registrar of this version does") from None
    except (OSError, asyncio.IncompleteReadError):
        raise silent from None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # check_registrar judges instead
    context.set_alpn_protocols([JOIN_PROTOCOL])
    return context


def _local_host(writer: asyncio.StreamWriter) -> str:
    host = str(writer.get_extra_info("sockname")[0]).partition("%")[0]
    return str(ipaddress.ip_address(host))


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ssl.SSLError):
        return "no TLS there"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    return str(getattr(error, "strerror", None) or error)
