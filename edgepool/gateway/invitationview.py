"""What a registrar tells of its invitations, without what it takes to be one."""

from __future__ import annotations

import msgspec


class InvitationView(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of an invitation: everything but its secret. `peer` is who has used it, '' if nobody."""

    id: str
    state: str
    role: str
    name: str
    machine_type: str
    pool: str
    created_ms: int
    expires_ms: int
    peer: str
    listen: str
    admitted: bool


class NewInvitation(msgspec.Struct, frozen=True, kw_only=True):
    """A new invitation, and the code that is shown this once."""

    code: str
    invitation: InvitationView
