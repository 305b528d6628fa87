"""What is shown of whom a peer trusts; all times are milliseconds since 1970 UTC."""

from __future__ import annotations

import msgspec


class RootStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A root and how it is trusted: `retired_ms` says from when not any more, 0 for never.

    `own` is the one that has issued this peer's certificate; `installed` ones are in this peer's files.
    """

    fingerprint: str
    organisation: str
    own: bool
    installed: bool
    admitted: bool
    trusted: bool
    retired_ms: int
    valid_until_ms: int


class RevokedPeer(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is not let in, and the block that says so; `pool` is '' if this peer's own file does."""

    peer: str
    name: str
    pool: str
    height: int


class OpenTrust(msgspec.Struct, frozen=True, kw_only=True):
    """A change of trust that is written and not decided; `approved` says whether this peer has."""

    id: str
    pool: str
    says: str
    proposer: str
    proposer_name: str
    approved_by: list[str]
    needed: int
    of: int
    approved: bool


class TrustStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a peer trusts, of which organisation it is itself, and what is open about that."""

    organisation: str
    roots: list[RootStatus]
    revoked: list[RevokedPeer]
    open: list[OpenTrust]


class StepStanding(msgspec.Struct, frozen=True, kw_only=True):
    """How far the members of one main chain are with a step of trust, by their names.

    `written` says whether this peer's own word stands; `needed` of the members must have approved it.
    """

    pool: str
    decided: bool
    written: bool
    approved_by: list[str]
    missing: list[str]
    needed: int
