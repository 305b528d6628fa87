"""A gateway whose certificate has lapsed comes back with a code; a firm's own PKI signs requests [S3.6]."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edgepool.config import CONFIG_FILE, PeerSettings, load_peer_settings
from edgepool.errors import ConfigError, DecodeError, LocalError, Refused, RemoteError
from edgepool.gateway.client import find_endpoint
from edgepool.gateway.setup import PeerPlan, check_plan, config_text, refuse_used_folder
from edgepool.model.credential import Root, has_issued, identity_of, identity_uri, read_root
from edgepool.model.crypto import Signer
from edgepool.model.identity import PeerIdentity
from edgepool.transport.certificates import create_key
from edgepool.transport.identity import (
    MAX_OWN_ROOTS,
    load_identity,
    pem_of,
    read_certificates,
    read_own_key,
)
from edgepool.transport.joincode import JoinCode
from edgepool.transport.joining import ask_to_join
from edgepool.transport.keyfiles import (
    PASSPHRASE_VARIABLE,
    passphrase_of_environment,
    replace_file,
)

REQUEST_FILE = "identity/request.pem"


async def renew_folder(folder: Path, code: JoinCode) -> PeerIdentity:
    """Get the peer of `folder`, which does not run, a certificate for its own key with an invitation's code.

    Raises LocalError and ConfigError (here), Unavailable, RemoteError and Refused (there).
    """
    settings = load_peer_settings(folder)
    if find_endpoint(folder) is not None:
        raise LocalError(f"the peer in '{folder}' is running: it renews its certificate by itself")
    key, _ = read_own_key(settings)
    joined, _ = await ask_to_join(code, Signer(key.private_bytes_raw()), lambda _: settings.listen)
    found = joined.identity
    for what, theirs, ours in (
        ("network", joined.network, settings.network),
        ("name", found.name, settings.name),
        ("role", found.role, settings.role),
        ("machine type", found.machine_type, settings.machine_type),
    ):
        if theirs != ours:
            raise Refused(
                f"the code is for {what} '{theirs}', and this gateway's settings say '{ours}': have a code "
                "made for what it is"
            )
    install_certificate(settings, x509.load_pem_x509_certificate(joined.certificate), _root_of(joined.root))
    return load_identity(settings).certificate


def write_request(folder: Path, plan: PeerPlan | None) -> tuple[Path, PeerSettings]:
    """Write a PKCS#10 request for the key of `folder`, which is made from `plan` if there is none yet.

    Returns where it is, and the settings. LocalError or ConfigError if the folder cannot be made or read.
    """
    if plan is not None and not (folder / CONFIG_FILE).exists():
        _make_folder(folder, plan)
    settings = load_peer_settings(folder)
    key, _ = read_own_key(settings)
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, settings.name)]
    if settings.machine_type:
        subject.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, settings.machine_type))
    uri = identity_uri(settings.network, settings.role, settings.name)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(subject))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .sign(key, None)
    )
    path = settings.path(REQUEST_FILE)
    replace_file(path, request.public_bytes(Encoding.PEM), 0o644)
    return path, settings


def install_files(folder: Path, certificate: Path, root: Path) -> PeerIdentity:
    """Take a certificate that a firm's own PKI has issued, and its root, into the folder of a peer."""
    settings = load_peer_settings(folder)
    if find_endpoint(folder) is not None:
        raise LocalError(f"the peer in '{folder}' is running: end it first")
    install_certificate(settings, read_certificates(certificate)[0], _root_of(root.read_bytes()))
    return load_identity(settings).certificate


def install_certificate(settings: PeerSettings, certificate: x509.Certificate, root: Root) -> None:
    """Write a certificate for the key of a folder, and its root; LocalError, and nothing else, if unfit."""
    key, _ = read_own_key(settings)
    if certificate.public_key() != key.public_key():
        raise LocalError("the certificate is for another key than this gateway's: sign its own request")
    if not has_issued(root, certificate):
        raise LocalError(
            f"the root of '{root.organisation}' has not issued the certificate itself: there may be nothing "
            "between the two"
        )
    try:
        found = identity_of(certificate.public_bytes(Encoding.DER), settings.network)
    except RemoteError as error:
        raise LocalError(f"the certificate is unfit: {error.reason}") from None
    facts = (found.name, found.role, found.machine_type)
    if facts != (settings.name, settings.role, settings.machine_type):
        raise LocalError(f"the certificate is for {', '.join(facts)}, which the settings do not say")
    authority = settings.path(settings.identity.authority)
    older = read_certificates(authority) if authority.exists() else []
    kept = [one for one in older if one != root.certificate][: MAX_OWN_ROOTS - 1]
    # First the root: whatever happens between the two, the certificate that is there has its own.
    replace_file(authority, pem_of([root.certificate, *kept]), 0o644)
    replace_file(settings.path(settings.identity.certificate), pem_of([certificate]), 0o644)


def _make_folder(folder: Path, plan: PeerPlan) -> None:
    check_plan(folder, plan)
    refuse_used_folder(folder)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        aside.mkdir(mode=0o700, parents=True)
        create_key(aside / "identity/key.pem", passphrase_of_environment(PASSPHRASE_VARIABLE, LocalError))
        (aside / CONFIG_FILE).write_text(config_text(plan), encoding="utf-8")
        os.replace(aside, folder)
    except OSError as error:
        raise LocalError(f"'{folder}' cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _root_of(pem: bytes) -> Root:
    try:
        return read_root(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    except (ValueError, DecodeError) as error:
        raise ConfigError(f"the root cannot be trusted: {error}") from None
