"""What a running peer proves itself with: its signer and its TLS contexts, loaded and checked.

TLS 1.3 only, certificates on both sides, issued by a trusted root (trust.py). There is no host name check:
what counts is the peer id that the certificate proves, wherever it was found.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgepool.config import PeerSettings
from edgepool.errors import ConfigError, DecodeError, RemoteError
from edgepool.model.credential import NotProven, Root, check_certificate, has_issued, identity_of, read_root
from edgepool.model.crypto import Signer, sha256
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId
from edgepool.runtime.clock import SystemClock
from edgepool.storage.files import write_all
from edgepool.transport.barred import BarredFile
from edgepool.transport.joindoor import JOIN_PROTOCOL, JoinDoor
from edgepool.transport.keychange import finish_change
from edgepool.transport.keyfiles import (
    PASSPHRASE_VARIABLE,
    is_encrypted,
    key_pem,
    own_passphrase,
    read_key_bytes,
    read_private_key,
    replace_file,
)
from edgepool.transport.trust import TrustSet

BACKDATE_MS = 300_000
"""Clocks on a shop floor differ: a certificate is valid from so long before it is issued."""
MAX_OWN_ROOTS = 4
"""How many roots of its own organisation a peer keeps while it rotates, the newest first."""
LINK_PROTOCOL = "edgepool-link/1"
TRANSFER_PROTOCOL = "edgepool-transfer/3"
CONDUIT_PROTOCOL = "edgepool-conduit/1"
LIVE_PROTOCOL = "edgepool-live/1"
PROTOCOLS = (LINK_PROTOCOL, TRANSFER_PROTOCOL, CONDUIT_PROTOCOL, LIVE_PROTOCOL)
"""What is spoken on a peer's port by those that have a certificate."""


@dataclass(frozen=True, slots=True)
class _Contexts:
    server: ssl.SSLContext
    link: ssl.SSLContext
    transfer: ssl.SSLContext
    conduit: ssl.SSLContext
    live: ssl.SSLContext


class Identity:
    """A peer's own identity, and whom it trusts. `certificate` is what others see of it.

    The server context takes all of PROTOCOLS (ALPN tells which); each client context is for one. They are
    made anew when the certificate or the trusted roots change: ask for them at each connection.
    A registrar has a door for those that have no certificate yet; it takes its contexts' place if open.
    """

    def __init__(self, settings: PeerSettings, key: Ed25519PrivateKey, *, is_registrar: bool) -> None:
        self.network = settings.network
        self.signer = Signer(key.private_bytes_raw())
        self._settings = settings
        self._key = key
        self._own, installed = _checked_files(settings, key)
        self._barred = BarredFile(settings)
        self.trust = TrustSet(self.network, installed, self._barred.peers)
        self.certificate = self._named(installed)
        self._contexts = self._made()
        self.join_door: JoinDoor | None = None
        if is_registrar:
            self.join_door = JoinDoor(*self._door_terms())
        self.trust.watch_roots(self._renew_contexts)

    @property
    def peer(self) -> PeerId:
        """This peer's id."""
        return self.signer.peer

    @property
    def valid_until_ms(self) -> int:
        """When the certificate lapses, in ms of wall time."""
        return self.certificate.valid_until_ms

    @property
    def certificate_der(self) -> bytes:
        """This peer's own certificate in DER."""
        return self._own.public_bytes(serialization.Encoding.DER)

    @property
    def server_context(self) -> ssl.SSLContext:
        """The context in which links and transfers are accepted."""
        return self._contexts.server

    @property
    def link_context(self) -> ssl.SSLContext:
        """The context in which links are dialled."""
        return self._contexts.link

    @property
    def transfer_context(self) -> ssl.SSLContext:
        """The context in which transfers are dialled."""
        return self._contexts.transfer

    @property
    def conduit_context(self) -> ssl.SSLContext:
        """The context in which a conduit is dialled."""
        return self._contexts.conduit

    @property
    def live_context(self) -> ssl.SSLContext:
        """The context in which live streams are dialled."""
        return self._contexts.live

    def reload(self) -> None:
        """Take a newer certificate of the same key, and its roots, from the files; new connections use them.

        ConfigError, and nothing is changed, if they do not fit.
        """
        own, installed = _checked_files(self._settings, self._key)
        self._own = own
        self.certificate = self._named(installed)
        self.trust.install(installed)
        self._renew_contexts()

    def look_at_barred(self) -> None:
        """Bar whom the peer's own file names by now, without a restart."""
        if self._barred.look():
            self.trust.bar(self._barred.peers)

    @property
    def own_roots(self) -> tuple[bytes, ...]:
        """The fingerprints of the roots of this peer's own organisation, the present one first."""
        path = self._settings.path(self._settings.identity.authority)
        ders = [one.public_bytes(serialization.Encoding.DER) for one in read_certificates(path)]
        return tuple(map(sha256, ders))

    @property
    def fresh_since_ms(self) -> int:
        """When the certificate was issued, in ms of wall time, as far as it says."""
        start = self._own.not_valid_before_utc
        return int(start.timestamp() * 1000) + BACKDATE_MS

    async def take(self, der: bytes) -> None:
        """Put a newer certificate (DER) of the same key into the files, and use it.

        A root that is trusted has issued it. LocalError if the files cannot be written, and stay as they are.
        """
        path = self._settings.path(self._settings.identity.certificate)
        await asyncio.to_thread(self._write, x509.load_der_x509_certificate(der), path)
        self.reload()

    async def follow(self, root: Root) -> None:
        """Trust a next root of this peer's own organisation from now on; it is put into the files.

        LocalError if they cannot be written, and stay as they are.
        """
        await asyncio.to_thread(self._write_root, root)
        self.reload()

    def _write_root(self, root: Root) -> None:
        path = self._settings.path(self._settings.identity.authority)
        present, *older = read_certificates(path)
        others = [one for one in older if one != root.certificate]
        kept = [present, root.certificate, *others][:MAX_OWN_ROOTS]
        replace_file(path, pem_of(kept), 0o644)

    async def keep_next(self, der: bytes, path: Path) -> None:
        """Write a certificate (DER) that is for the next key of this peer to `path`, as `take` does."""
        await asyncio.to_thread(self._write, x509.load_der_x509_certificate(der), path)

    def has_next(self, peer: PeerId, path: Path) -> bool:
        """Say whether a certificate for the key of `peer` is at `path` that proves it now."""
        if not path.exists():
            return False
        try:
            der = read_certificate(path).public_bytes(serialization.Encoding.DER)
            return self.trust.check(der).peer == peer
        except (ConfigError, NotProven):
            return False

    def _write(self, certificate: x509.Certificate, target: Path) -> None:
        settings = self._settings
        issuer = next(root for root in self.trust.roots if has_issued(root, certificate))
        path = settings.path(settings.identity.authority)
        older = [one for one in read_certificates(path) if one != issuer.certificate]
        # First the root: whatever happens between the two, the certificate that is there has its own.
        replace_file(path, pem_of([issuer.certificate, *older[: MAX_OWN_ROOTS - 1]]), 0o644)
        replace_file(target, pem_of([certificate]), 0o644)

    def _named(self, installed: Iterable[Root]) -> PeerIdentity:
        now_ms = SystemClock().now().wall_ms
        return check_certificate(self.certificate_der, installed, self.network, now_ms)

    def _renew_contexts(self) -> None:
        self._contexts = self._made()
        if self.join_door is not None:
            self.join_door.renew(*self._door_terms())

    def _made(self) -> _Contexts:
        clients = ssl.PROTOCOL_TLS_CLIENT
        return _Contexts(
            self._context(ssl.PROTOCOL_TLS_SERVER, *PROTOCOLS),
            self._context(clients, LINK_PROTOCOL),
            self._context(clients, TRANSFER_PROTOCOL),
            self._context(clients, CONDUIT_PROTOCOL),
            self._context(clients, LIVE_PROTOCOL),
        )

    def _door_terms(self) -> tuple[ssl.SSLContext, ssl.SSLContext, bytes]:
        servers = ssl.PROTOCOL_TLS_SERVER
        contexts = self._context(servers, *PROTOCOLS), self._context(servers, JOIN_PROTOCOL)
        return *contexts, sha256(self.certificate_der)

    def _context(self, side: int, *protocols: str) -> ssl.SSLContext:
        return _context(side, self._own, self._key, self.trust.roots, protocols)


def load_identity(settings: PeerSettings) -> Identity:
    """Load and check the key, certificate and roots that `settings.identity` names.

    ConfigError, in one sentence, for anything that would only fail later on the wire.
    """
    key, _ = read_own_key(settings)
    return Identity(settings, key, is_registrar=bool(settings.authority.folder))


def installed_roots(settings: PeerSettings) -> tuple[Root, ...]:
    """Return the roots in this peer's own files, that of its organisation first; ConfigError if one is unfit.

    `identity.authority` has its organisation's (while it rotates, the new one and the old), and
    `identity.trusted`, if there is such a file, those of others that its owner trusts.
    """
    path = settings.path(settings.identity.authority)
    found = [(path, certificate) for certificate in read_certificates(path)]
    more = settings.path(settings.identity.trusted)
    if more.exists():
        found += [(more, certificate) for certificate in read_certificates(more)]
    roots: dict[bytes, Root] = {}
    for where, certificate in found:
        try:
            root = read_root(certificate.public_bytes(serialization.Encoding.DER))
        except DecodeError as error:
            raise ConfigError(f"{where} is not the certificate of an authority: {error}") from None
        roots.setdefault(root.fingerprint, root)
    return tuple(roots.values())


def pem_of(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return certificates in PEM, one behind the other."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def _checked_files(
    settings: PeerSettings, key: Ed25519PrivateKey
) -> tuple[x509.Certificate, tuple[Root, ...]]:
    """Return this peer's certificate and its installed roots; ConfigError if something does not fit."""
    certificate_path = settings.path(settings.identity.certificate)
    authority_path = settings.path(settings.identity.authority)
    certificate = read_certificate(certificate_path)
    installed = installed_roots(settings)
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            f"{certificate_path} is not the certificate of {settings.path(settings.identity.key)}: "
            "have one issued for this key"
        )
    _check_validity(certificate_path, certificate)
    issuer = next((root for root in installed if has_issued(root, certificate)), None)
    if issuer is None:
        raise ConfigError(f"{certificate_path} was not signed by the authority in {authority_path}")
    _check_validity(authority_path, issuer.certificate)
    check_names(certificate_path, certificate, settings)
    return certificate, installed


def read_own_key(settings: PeerSettings) -> tuple[Ed25519PrivateKey, bytes | None]:
    """Return a peer's key and the passphrase that its file is under (None: it is plain); ConfigError if not.

    A plain key is refused if the settings name a passphrase file: it is less safe than they say.
    """
    finish_change(settings)
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


def read_certificate(path: Path) -> x509.Certificate:
    """Return the certificate in a PEM file; ConfigError if there is none."""
    raw = read_key_bytes(path, ConfigError)
    try:
        certificate = x509.load_pem_x509_certificate(raw)
        certificate.public_key()
    except Exception:
        raise ConfigError(f"{path} is not a certificate in PEM") from None
    return certificate


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, at least one; ConfigError if there is none."""
    raw = read_key_bytes(path, ConfigError)
    try:
        found = x509.load_pem_x509_certificates(raw)
        for certificate in found:
            certificate.public_key()
    except Exception:
        raise ConfigError(f"{path} is not a certificate in PEM") from None
    return found


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
        root = read_root(authority.public_bytes(serialization.Encoding.DER))
    except DecodeError as error:
        raise ConfigError(f"{authority_path} is not the certificate of an authority: {error}") from None
    if not has_issued(root, certificate):
        raise ConfigError(f"{path} was not signed by the authority in {authority_path}")


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
    certificate: x509.Certificate,
    key: Ed25519PrivateKey,
    roots: Iterable[Root],
    protocols: tuple[str, ...],
) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    for root in roots:
        context.load_verify_locations(cadata=root.der)
    _load_own(context, certificate, key)
    context.set_alpn_protocols(list(protocols))
    if side == ssl.PROTOCOL_TLS_SERVER:
        # No resumption: every connection proves both keys anew.
        context.num_tickets = 0
    return context


def _load_own(context: ssl.SSLContext, certificate: x509.Certificate, key: Ed25519PrivateKey) -> None:
    """Give a context the certificate and its key; the library only takes a file, so it is one in memory."""
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key_pem(key, None)
    descriptor = os.memfd_create("edgepool identity", os.MFD_CLOEXEC)
    try:
        write_all(descriptor, pem, 0)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
