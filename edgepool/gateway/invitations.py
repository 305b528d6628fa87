"""The invitations of a registrar: who may join, until when, and who has [S3.6].

One private file in the registrar's folder, replaced whole and synced at each change. Of the secret in a
code only the SHA-256 is kept. What was handed to a newcomer is written down before it is handed out.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from edgepool.errors import LocalError, StorageError
from edgepool.model.crypto import sha256
from edgepool.storage.files import sync_folder
from edgepool.transport.joincode import ID_BYTES, SECRET_BYTES
from edgepool.transport.joindoor import EXPIRED, REVOKED, UNKNOWN, USED

INVITATIONS_FILE = "invitations.json"
MAX_INVITATIONS = 1_000

State = Literal["open", "used", "expired", "revoked"]


class Invitation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One invitation. `peer`, `listen` and `certificate` are those of the newcomer that has used it.

    `chain` is that of the pool which the newcomer is to be proposed for ('': none); `admitted` says that
    it was admitted there. Times are wall times in ms; `secret_hash` is hexadecimal.
    """

    id: str
    secret_hash: str
    role: str
    name: str
    machine_type: str
    pool: str
    chain: str
    created_ms: int
    expires_ms: int
    revoked: bool = False
    peer: str = ""
    listen: str = ""
    certificate: str = ""
    admitted: bool = False

    def state(self, now_ms: int) -> State:
        """Say where this invitation stands."""
        if self.revoked:
            return "revoked"
        if self.peer:
            return "used"
        return "expired" if now_ms >= self.expires_ms else "open"

    @property
    def awaits_admission(self) -> bool:
        """Whether a newcomer with a certificate is still to be admitted to a pool."""
        return bool(self.peer and self.chain) and not self.admitted and not self.revoked

    def refusal(self, secret: bytes, peer: str, now_ms: int) -> str:
        """Return why `peer` with `secret` gets nothing, as a word of joindoor.REFUSALS, or ''.

        Who does not know the secret learns nothing else about the invitation.
        """
        if not hmac.compare_digest(sha256(secret).hex(), self.secret_hash):
            return UNKNOWN
        if self.revoked:
            return REVOKED
        if self.peer and self.peer != peer:
            return USED
        return EXPIRED if now_ms >= self.expires_ms else ""


class Invitations:
    """All invitations in the file at `path`; StorageError if it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._all: dict[str, Invitation] = {}
        try:
            found = msgspec.json.decode(path.read_bytes(), type=list[Invitation])
        except FileNotFoundError:
            found = []
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StorageError(
                f"{path} is damaged: move it away, and invite those again who have not joined yet"
            ) from None
        self._all = {one.id: one for one in found}

    def all(self) -> tuple[Invitation, ...]:
        """Return all invitations, the oldest first."""
        return tuple(self._all.values())

    def get(self, invitation: str) -> Invitation | None:
        """Return the invitation with this id, or None."""
        return self._all.get(invitation)

    def add(
        self,
        *,
        role: str,
        name: str,
        machine_type: str = "",
        pool: str = "",
        chain: str = "",
        now_ms: int,
        valid_ms: int,
        chance: Callable[[int], bytes] = secrets.token_bytes,
    ) -> tuple[Invitation, bytes]:
        """Write down a new invitation; return it and its secret, which is nowhere else.

        LocalError if one for this name is open already, or if there are too many.
        """
        if any(one.name == name and one.state(now_ms) == "open" for one in self._all.values()):
            raise LocalError(f"an invitation for '{name}' is open already: revoke that one first")
        secret = chance(SECRET_BYTES)
        new = Invitation(
            id=chance(ID_BYTES).hex(),
            secret_hash=sha256(secret).hex(),
            role=role,
            name=name,
            machine_type=machine_type,
            pool=pool,
            chain=chain,
            created_ms=now_ms,
            expires_ms=now_ms + valid_ms,
        )
        self._write({**self._with_room(now_ms), new.id: new})
        return new, secret

    def revoke(self, invitation: str) -> Invitation:
        """Let nobody (more) in by an invitation; LocalError if there is none, or it was used."""
        found = self._all.get(invitation)
        if found is None:
            raise LocalError(
                f"there is no invitation '{invitation[:40]}': 'edgepool invite --list' shows them"
            )
        if found.peer:
            raise LocalError(
                f"'{found.name}' has joined by this invitation already: a certificate cannot be revoked yet"
            )
        return self._replace(replace(found, revoked=True))

    def use(self, invitation: str, peer: str, listen: str, certificate: str) -> Invitation:
        """Write down, before it is handed out, what `peer` gets for an open invitation."""
        found = self._all[invitation]
        assert not found.peer, "an invitation is used once"
        return self._replace(replace(found, peer=peer, listen=listen, certificate=certificate))

    def admit(self, invitation: str) -> Invitation:
        """Write down that the newcomer is a member of the pool that it was meant for."""
        return self._replace(replace(self._all[invitation], admitted=True))

    def _replace(self, changed: Invitation) -> Invitation:
        self._write({**self._all, changed.id: changed})
        return changed

    def _with_room(self, now_ms: int) -> dict[str, Invitation]:
        """Return what is kept when one more comes; the oldest of those that are over make room."""
        kept = dict(self._all)
        for one in self._all.values():
            if len(kept) < MAX_INVITATIONS:
                break
            is_over = one.state(now_ms) != "open" and (one.revoked or now_ms >= one.expires_ms)
            if is_over and not one.awaits_admission:
                del kept[one.id]
        if len(kept) >= MAX_INVITATIONS:
            raise LocalError(
                f"there are {MAX_INVITATIONS} invitations already: revoke some, or wait until some expire"
            )
        return kept

    def _write(self, wanted: dict[str, Invitation]) -> None:
        data = msgspec.json.format(msgspec.json.encode(list(wanted.values())), indent=1)
        aside = self._path.with_name(f".{self._path.name}.new")
        try:
            aside.unlink(missing_ok=True)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from None
        self._all = wanted
