"""Hands an organisation's authority from a registrar to another coordinator, sealed for its key [S3.6].

The file that carries it opens with the key of that peer alone, wherever it lies meanwhile; a key under a
passphrase stays under it inside. What comes out is believed only if its root is the receiver's own
organisation's already, as its certificate, the members or the voucher of the old root have told it. See
docs/certificates.md.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Meta

from edgepool.config import CONFIG_FILE, PeerSettings, load_peer_settings
from edgepool.errors import ConfigError, DecodeError, LocalError
from edgepool.gateway.client import find_endpoint
from edgepool.gateway.invitations import INVITATIONS_FILE, Invitations
from edgepool.gateway.settingsfile import added_setting, replaced_setting, write_settings
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.credential import Root, read_root
from edgepool.model.crypto import Signer, sealed_for, sha256
from edgepool.model.fields import Text
from edgepool.model.ids import PeerId
from edgepool.runtime.clock import SystemClock
from edgepool.storage.files import sync_folder
from edgepool.transport.certificates import (
    AUTHORITY_CERTIFICATE,
    AUTHORITY_KEY,
    issue_certificate,
    write_new_file,
)
from edgepool.transport.identity import read_certificates, read_own_key
from edgepool.transport.keyfiles import read_key_bytes, refuse_open_key_file

MAX_SEALED_BYTES = 64 * 1024

_Pem = Annotated[bytes, Meta(min_length=1, max_length=16 * 1024)]


class HandedOver(Wire, tag="authority-handed-over", frozen=True):
    """What a sealed file holds: the authority's two files as they are."""

    network: Text
    certificate: _Pem
    key: _Pem


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What was done: the root, the folder as the settings name it, the names on codes that are void now."""

    root: Root
    folder: str
    void: list[str]


def hand_over(settings: PeerSettings, to: PeerId, sealed: Path) -> Root:
    """Write the authority with which a registrar issues into the new file `sealed`, for the peer `to` alone.

    LocalError if there is no authority, it is open to others, or the file cannot be written or is there.
    """
    if not settings.authority.folder:
        raise LocalError(
            f"the settings in '{settings.folder}' name no authority: there is nothing to hand over"
        )
    folder = settings.path(settings.authority.folder)
    refuse_open_key_file(folder / AUTHORITY_KEY, LocalError)
    parts = [read_key_bytes(folder / name, LocalError) for name in (AUTHORITY_CERTIFICATE, AUTHORITY_KEY)]
    root = _root_of(parts[0], folder)
    write_new_file(sealed, sealed_for(to, encode(HandedOver(settings.network, *parts))), 0o600)
    return root


def take_over(folder: Path, sealed: Path) -> TakenOver:
    """Let the coordinator of `folder`, which does not run, issue with the authority in the file `sealed`.

    LocalError and ConfigError say why not, and leave everything as it was.
    """
    settings = load_peer_settings(folder)
    if find_endpoint(folder) is not None:
        raise LocalError(f"the peer in '{folder}' is running: end it first")
    if settings.role != "coordinator":
        raise LocalError(f"the peer in '{folder}' is a {settings.role}: only a coordinator invites others")
    given = _opened(settings, sealed)
    if given.network != settings.network:
        raise LocalError(f"{sealed} is for the network '{given.network}', not '{settings.network}'")
    root = _root_of(given.certificate, sealed)
    own = [read_root(_der(one)) for one in read_certificates(settings.path(settings.identity.authority))]
    if root.fingerprint not in [one.fingerprint for one in own]:
        raise LocalError(
            f"the peer in '{folder}' does not know the root {root.fingerprint.hex()[:16]} as its "
            "organisation's: run it until it is linked with the other registrar, end it, and say this again"
        )
    present = settings.authority.folder
    if present and _fingerprint_in(settings.path(present)) == root.fingerprint:
        raise LocalError(f"the peer in '{folder}' has that authority already")
    setting = _place(settings, root)
    text = _settings_with(settings, setting)
    _put(settings, given, settings.path(setting))
    write_settings(settings.folder / CONFIG_FILE, text)
    return TakenOver(root, setting, _revoke_open(settings))


def _opened(settings: PeerSettings, sealed: Path) -> HandedOver:
    key, _ = read_own_key(settings)
    try:
        with sealed.open("rb") as file:
            raw = file.read(MAX_SEALED_BYTES + 1)
    except OSError as error:
        raise LocalError(f"{sealed} cannot be read: {error.strerror}") from None
    try:
        if len(raw) > MAX_SEALED_BYTES:
            raise DecodeError("too long")
        return decode(HandedOver, Signer(key.private_bytes_raw()).unsealed(raw), MAX_SEALED_BYTES)
    except DecodeError:
        raise LocalError(
            f"{sealed} was not sealed for the peer in '{settings.folder}', or is damaged: have it made again "
            "with 'edgepool org hand-over'"
        ) from None


def _root_of(pem: bytes, where: Path) -> Root:
    try:
        return read_root(_der(x509.load_pem_x509_certificate(pem)))
    except (ValueError, DecodeError):
        raise LocalError(f"the root certificate in {where} cannot be read") from None


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _fingerprint_in(folder: Path) -> bytes:
    """Return the fingerprint of the authority in a folder, b'' if there is none."""
    try:
        return sha256(_der(read_certificates(folder / AUTHORITY_CERTIFICATE)[0]))
    except ConfigError:
        return b""


def _place(settings: PeerSettings, root: Root) -> str:
    """Return how the settings are to name the folder: beside the present one, the same after a power cut."""
    beside = PurePosixPath(settings.authority.folder).parent
    return str(beside / f"authority-{root.fingerprint.hex()[:8]}")


def _settings_with(settings: PeerSettings, setting: str) -> str:
    path = settings.folder / CONFIG_FILE
    change = replaced_setting if settings.authority.folder else added_setting
    text = change(path, "authority", "folder", setting)
    if text is None:
        raise LocalError(
            f"[authority] in {path} is not written in a way that can be changed here: write it as the two "
            'lines [authority] and folder = "...", or take it out, and say this again'
        )
    return text


def _put(settings: PeerSettings, given: HandedOver, folder: Path) -> None:
    """Put the authority into `folder`, whole or not at all, once it has issued something."""
    if folder.exists():  # a power cut came before the settings were written
        return
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        aside.mkdir(mode=0o700, parents=True)
        write_new_file(aside / AUTHORITY_KEY, given.key, 0o600)
        write_new_file(aside / AUTHORITY_CERTIFICATE, given.certificate, 0o644)
        issue_certificate(
            aside,
            Signer(read_own_key(settings)[0].private_bytes_raw()).peer,
            name=settings.name,
            network=settings.network,
            role=settings.role,
            machine_type=settings.machine_type,
        )
        sync_folder(aside)
        os.replace(aside, folder)
        sync_folder(folder.parent)
    except LocalError as error:
        raise LocalError(str(error).replace(str(aside), str(folder))) from None
    except OSError as error:
        raise LocalError(f"the authority cannot be put into {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _revoke_open(settings: PeerSettings) -> list[str]:
    """Revoke the invitations whose codes name another root than the one that is shown from now on."""
    path = settings.path(INVITATIONS_FILE)
    if not path.exists():
        return []
    invitations, now_ms = Invitations(path), SystemClock().now().wall_ms
    void = [one for one in invitations.all() if one.state(now_ms) == "open"]
    for one in void:
        invitations.revoke(one.id)
    return [one.name for one in void]
