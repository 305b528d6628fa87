"""The files of a peer whose key changes, and the one rename that changes it.

Beside the key and the certificate, in the same folder and named after them, there are for a while

    next-<key>, next-<certificate>   the key to come, protected as the present one, and its certificate
    <key>.lineage                    which keys were before, as others are told; it stays
    <key>.former                     which key was before, and its own revocation, to be put on chains

in this order: next key, its certificate (the pools agree now), the lineage, the former key's word. Then the
next certificate is renamed to the certificate. That is the change: up to it the peer is who it was, and from
it on `finish_change` puts the next key in the place of the old one at every start, until it is done. What the
lineage says of a change that is not made is passed over as long as the old key is in its place.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgepool.config import PeerSettings
from edgepool.errors import ConfigError, DecodeError, LocalError
from edgepool.model.codec import decode, encode
from edgepool.model.ids import PeerId
from edgepool.model.lineage import MAX_LINE, KeyFollows, Line, Lineage, line_problem
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
        self._lineage = self._key.with_name(f"{self._key.name}.lineage")
        self._network = settings.network

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

    def line(self, own: PeerId) -> Line:
        """Return which keys the present one, `own`, has followed; LocalError if that is damaged."""
        if not self._lineage.exists():
            return ()
        try:
            line = decode(Lineage, read_key_bytes(self._lineage, LocalError)).line
        except DecodeError:
            line = ()
        if line and line[-1].former == own:  # a change that is not made yet, or was given up
            line = line[:-1]
            if not line:
                return ()
        problem = line_problem(line, self._network, own)
        if problem:
            raise LocalError(
                f"{self._lineage} is damaged, so nobody hears of the keys that this peer had before: put "
                "back a copy of it, or remove it and correct the settings of others that name such a key"
            )
        return line

    def note(self, follows: KeyFollows) -> None:
        """Write down that the next key follows the present one; it counts once the change is made."""
        try:
            line = self.line(follows.former)
        except LocalError:
            line = ()  # what cannot be read any more ends here
        replace_file(self._lineage, encode(Lineage((*line, follows)[-MAX_LINE:])))

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
