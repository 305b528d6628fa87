"""Who a peer is, as its certificate proves it [S3.6]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgepool.model.ids import PeerId

Role = Literal["machine", "coordinator", "witness", "inspector", "regulator", "client"]
ROLES: tuple[Role, ...] = ("machine", "coordinator", "witness", "inspector", "regulator", "client")


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who somebody is, as its certificate proves: peer id, name, role, machine type, and organisation.

    `organisation` is the name in the root that has issued the certificate, and `root` that root's
    fingerprint: 32 bytes, SHA-256 of its DER. What the certificate itself says of its organisation counts
    for nothing. `valid_until_ms` is when the certificate lapses, in wall time; 0 where there is none.
    """

    peer: PeerId
    name: str
    role: Role
    machine_type: str
    organisation: str = ""
    root: bytes = b""
    valid_until_ms: int = 0
