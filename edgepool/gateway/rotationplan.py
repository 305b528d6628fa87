"""What a registrar writes down of the rotation of its organisation's root, and what it tells of it [S3.6].

The plan is one private file in the registrar's folder, replaced whole and synced at each step, so that a
rotation goes on after a power cut where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgepool.errors import LocalError
from edgepool.peer.trustview import StepStanding
from edgepool.transport.keyfiles import replace_file

ROTATION_FILE = "rotation.json"
MAX_SEEN = 4096
MAX_OVERLAP_S = 3650 * 86_400

Stage = Literal["making", "admitting", "switching", "renewing", "retiring", "done"]
Overlap = Annotated[int, Meta(ge=0, le=MAX_OVERLAP_S)]


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The root (fingerprint, hexadecimal) of the certificate that somebody was seen with last."""

    name: str
    root: str


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rotation. `folder` is the next authority's as the settings name it; fingerprints are hexadecimal.

    `present` is that of the authority whose root is `old`, and `voucher` the signature of its key for the
    next root (hexadecimal). `next` is '' until that authority is made, `switched_ms` 0 until the registrar
    issues with it, and `retire_ms` 0 until it is settled from when the old root is trusted no more. With
    `leave_behind` that waits for nobody. `void` are the names in invitations whose codes were for the old
    root.
    """

    organisation: str
    old: str
    folder: str
    present: str
    overlap_s: Overlap
    started_ms: int
    next: str = ""
    voucher: str = ""
    switched_ms: int = 0
    retire_ms: int = 0
    leave_behind: bool = False
    void: list[str] = []
    seen: dict[str, Seen] = {}


class Renewer(msgspec.Struct, frozen=True, kw_only=True):
    """A member that has not renewed to the next root; `seen` says whether it was since the rotation began.

    One that was not may be of another organisation, or may have renewed elsewhere. A linked `coordinator`
    that has not is a registrar, too, and certifies itself with the authority that it has: the next one is to
    be handed to it.
    """

    peer: str
    name: str
    linked: bool
    seen: bool
    coordinator: bool = False


class RotationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rotation is. `old` and `next` are fingerprints, `problem` why the last step has failed.

    `pools` says how far the members are with what is to be decided now. `renewed` and `waiting` are who has
    a certificate of the next root, and who has not. `retire_ms` is from when the old root is trusted no
    more, 0 if that is not settled.
    """

    stage: Stage
    organisation: str
    old: str
    next: str
    folder: str
    started_ms: int
    overlap_s: int
    retire_ms: int
    leave_behind: bool
    pools: list[StepStanding]
    renewed: list[str]
    waiting: list[Renewer]
    void: list[str]
    problem: str


def read_plan(folder: Path) -> Plan | None:
    """Return the plan in a registrar's folder, None if there is none; LocalError if it is damaged."""
    path = folder / ROTATION_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise LocalError(
            f"{path} is damaged: see 'edgepool org list' how far the rotation is, move the file away, and "
            "end it with 'edgepool org admit' and 'edgepool org retire'"
        ) from None


def write_plan(folder: Path, plan: Plan) -> None:
    """Write a plan down durably; LocalError if that fails, and the older one stands."""
    replace_file(folder / ROTATION_FILE, msgspec.json.format(msgspec.json.encode(plan), indent=1))
