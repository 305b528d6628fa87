"""Who plays: keys and certificates of gateways, the same for all seeds with the same cast.

Keys follow from the cast and the name. Certificates are issued once a process, by a real authority; how
they come out does not show in anything that a peer says.
"""

from __future__ import annotations

import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgepool.config import IdentitySettings, PeerSettings, Role
from edgepool.model.ids import PeerId, peer_id_from_public_key
from edgepool.transport.certificates import (
    AUTHORITY_CERTIFICATE,
    create_authority,
    issue_certificate,
    write_new_file,
)

NETWORK = "rehearsal"
MACHINE_TYPE = "milling"
CASTS = 8
"""How many casts there are; the beacon chains of each are made once a process."""


def key_of(cast: int, name: str) -> tuple[Ed25519PrivateKey, PeerId]:
    """Return the key of `name` in a cast, and the peer id that it makes."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{cast}/{name}".encode()).digest())
    return key, peer_id_from_public_key(key.public_key().public_bytes_raw())


def enrol(folder: Path, cast: int, name: str, role: Role, machine_type: str) -> IdentitySettings:
    """Put key, certificate and authority of `name` into `folder`; return where they are."""
    settings = IdentitySettings()
    files = (settings.key, settings.certificate, settings.authority)
    for path, pem in zip(files, _papers(cast, name, role, machine_type, name), strict=True):
        write_new_file(folder / path, pem, 0o600)
    return settings


def next_key(settings: PeerSettings, cast: int, number: int) -> PeerId:
    """Put a gateway's `number`th next key and its certificate beside the present ones; return whose it is.

    So it is after the registrar's answer: the peer goes on by itself, with its next life at the latest.
    """
    name = f"{settings.name}/{number}"
    key, certificate, _ = _papers(cast, name, settings.role, settings.machine_type, settings.name)
    for path, pem in ((settings.identity.key, key), (settings.identity.certificate, certificate)):
        present = settings.path(path)
        write_new_file(present.with_name(f"next-{present.name}"), pem, 0o600)
    return key_of(cast, name)[1]


@lru_cache(maxsize=1024)
def _papers(cast: int, key_name: str, role: str, machine_type: str, name: str) -> tuple[bytes, bytes, bytes]:
    key, peer = key_of(cast, key_name)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    authority = Path(_authority().name)
    certificate = issue_certificate(
        authority, peer, name=name, network=NETWORK, role=role, machine_type=machine_type
    )
    return pem, certificate, (authority / AUTHORITY_CERTIFICATE).read_bytes()


@lru_cache(maxsize=1)
def _authority() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of this process's authority, which goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="edgepool-authority-")
    create_authority(Path(folder.name), NETWORK)
    return folder
