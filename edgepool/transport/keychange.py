"""The files of a peer whose key changes, and the one rename that changes it.

Beside the key and the certificate, in the same folder and named after them, there are for a while

    next-<key>, next-<certificate>   the key to come, protected as the present one, and its certificate
    <key>.former                     which key was before, and its own revocation, to be put on chains

in this order: next key, its certificate (the pools agree now), the former key's word. Then the next
certificate is renamed to the certificate. That is the change: up to it the peer is who it was, and from it on
`finish_change` puts the next key in the place of the old one at every start, until it is done.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgepool.config import PeerSettings
from edgepool.errors import ConfigError, DecodeError, LocalError
from edgepool.model.codec import decode, encode
from edgepool.model.trust import RevokePeer
from edgepool.storage.files import sync_folder
from edgepool.transport.keyfiles import key_pem, read_key_bytes, read_private_key, replace_file


class KeyChange:
    """The files of one peer's change of its key. All methods may raise LocalError, in one sentence."""

    def __init__(self, settings: PeerSettings) -> None:
        self._key = settings.path(settings.identity.key)
        self._certificate = settings.path(settings.identity.certificate)
        self._next_key = _next(self._key)
        self.certificate = _next(self._certificate)
        """Where the next certificate is, once there is one."""
        self._former = self._key.with_name(f"{self._key.name}.former")

    @property
    def begun(self) -> bool:
        """Say whether there is a next key that is not in force."""
        return self._next_key.exists() and not self.is_made

    @property
    def is_made(self) -> bool:
        """Say whether the change is made, though perhaps not finished here."""
        return self._former.exists() and not self.certificate.exists()

    def begin(self, passphrase: bytes | None) -> None:
        """Make the next key, under the passphrase of the present one; a next key that is there stays."""
        if not self._next_key.exists():
            replace_file(self._next_key, key_pem(Ed25519PrivateKey.generate(), passphrase))

    def next_key(self, passphrase: bytes | None) -> Ed25519PrivateKey:
        """Return the next key."""
        return read_private_key(self._next_key, passphrase, LocalError, "give the passphrase of the key")

    def give_up(self) -> None:
        """Stay with the present key: the next one, and its certificate, are thrown away."""
        for path in (self._former, self.certificate, self._next_key):
            path.unlink(missing_ok=True)
        sync_folder(self._key.parent)

    def make(self, former: RevokePeer) -> None:
        """Change the key. The peer must not run: it opens again as who it is then."""
        replace_file(self._former, encode(former))
        _rename(self.certificate, self._certificate)
        self.finish()

    def finish(self) -> None:
        """Put the next key in its place if the change is made; at any time, again and again."""
        if self.is_made and self._next_key.exists():
            _rename(self._next_key, self._key)

    def former(self) -> RevokePeer | None:
        """Return the key that was before, with its own revocation; None if nothing is left to do for it."""
        if not self.is_made:
            return None
        try:
            return decode(RevokePeer, read_key_bytes(self._former, LocalError))
        except DecodeError:
            raise LocalError(
                f"{self._former} is damaged: remove it, and have the former key revoked with "
                "'edgepool member revoke'"
            ) from None

    def over(self) -> None:
        """Nothing is left to be done for the former key."""
        self._former.unlink(missing_ok=True)
        sync_folder(self._key.parent)


def finish_change(settings: PeerSettings) -> None:
    """Put a peer's next key in its place if the power failed in the middle of the change; ConfigError."""
    try:
        KeyChange(settings).finish()
    except LocalError as error:
        raise ConfigError(str(error)) from None


def _next(path: Path) -> Path:
    return path.with_name(f"next-{path.name}")


def _rename(source: Path, target: Path) -> None:
    try:
        with suppress(FileNotFoundError):  # another process that looks into the folder was quicker
            os.replace(source, target)
        sync_folder(target.parent)
    except OSError as error:
        raise LocalError(f"{target} cannot be replaced: {error.strerror}") from None
