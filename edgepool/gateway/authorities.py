"""The authority of a registrar, tried out, and the one that is to follow it, made beside it [S3.6].

The next one has the same protection. It appears whole or not at all: it is made aside, synced, and renamed.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgepool.errors import ConfigError, LocalError
from edgepool.model.credential import Root, read_root
from edgepool.storage.files import sync_folder
from edgepool.transport.certificates import (
    AUTHORITY_CERTIFICATE,
    AUTHORITY_KEY,
    create_authority,
    issue_certificate,
)
from edgepool.transport.keyfiles import (
    AUTHORITY_PASSPHRASE_VARIABLE,
    is_encrypted,
    passphrase_of_environment,
    read_key_bytes,
)

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority that can issue: its folder, as the settings name it and where it is, and its root."""

    setting: str
    folder: Path
    root: Root


_NUMBERED = re.compile(r"(.*)-([0-9]{1,6})")


def next_folder(setting: str, home: Path) -> str:
    """Return how the settings in `home` are to name the authority that follows the one in `setting`.

    'authority' is followed by 'authority-2', and that by 'authority-3'; what is there already is passed over.
    """
    place = PurePosixPath(setting)
    if place.name in ("", ".", ".."):
        raise LocalError(f"'{setting}' is no folder of its own beside which the next authority could be made")
    numbered = _NUMBERED.fullmatch(place.name)
    name, number = (numbered[1], int(numbered[2])) if numbered else (place.name, 1)
    while True:
        number += 1
        found = str(place.with_name(f"{name}-{number}"))
        if not os.path.lexists(home / found):
            return found


def make_next(old: Path, folder: Path, organisation: str) -> None:
    """Make the authority in `folder`, unless one is there; LocalError if that fails.

    Its key is under a passphrase if that of the one in `old` is, and its folder is for the same people.
    """
    if (folder / AUTHORITY_CERTIFICATE).exists() and (folder / AUTHORITY_KEY).exists():
        return
    passphrase = None
    if is_encrypted(read_key_bytes(old / AUTHORITY_KEY, LocalError)):
        passphrase = passphrase_of_environment(AUTHORITY_PASSPHRASE_VARIABLE, LocalError)
        if passphrase is None:
            raise LocalError(
                f"the key in {old} is encrypted: set {AUTHORITY_PASSPHRASE_VARIABLE} for the next one, too"
            )
    aside = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # what a power cut has left
        create_authority(aside, organisation, passphrase)
        os.chmod(aside, old.stat().st_mode & 0o777)
        sync_folder(aside)
        os.replace(aside, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise LocalError(f"the next authority cannot be made in {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def too_young_s(now_s: float, roots: list[Root], backdate_ms: int) -> float:
    """Return how long to wait until a root made then is younger than all of `roots`, 0 if it is now.

    The times of a certificate are whole seconds. LocalError if this machine's clock is far behind them.
    """
    newest_ms = max((root.valid_from_ms for root in roots), default=0)
    wait_s = (newest_ms + backdate_ms + 1_000) / 1000 - now_s
    if wait_s > 60:
        raise LocalError(
            "this machine's clock is before the start of the present root: set it, or members would take "
            "the next root for an older one"
        )
    return max(0.0, wait_s)


def checked_authority(peer: Peer, setting: str) -> Authority:
    """Return the authority that the settings of `peer` name `setting`, after having tried it out.

    It is the one that has issued the peer's own certificate, or its organisation's next one, which the
    members have admitted already: then the peer, and after it all others, renew to it by themselves.
    """
    settings, authority = peer.settings, peer.settings.path(setting)
    where = f"authority.folder of {settings.folder}"
    try:
        # What is only found wrong when the first gateway knocks is found by nobody who could mend it.
        issue_certificate(
            authority,
            peer.id,
            name=settings.name,
            network=settings.network,
            role=settings.role,
            machine_type=settings.machine_type,
        )
        root = x509.load_pem_x509_certificate((authority / AUTHORITY_CERTIFICATE).read_bytes())
    except LocalError as error:
        raise ConfigError(f"{where}: {error}") from None
    der = root.public_bytes(Encoding.DER)
    if not peer.trusting.is_own(der):
        raise ConfigError(
            f"{where}: {authority} is another authority than the one that this peer trusts: name the one "
            "that has issued its certificate; if that root was replaced, have the next one handed over: "
            "'edgepool org hand-over' at the registrar that has it, 'edgepool org take-over' here"
        )
    return Authority(setting, authority, read_root(der))
