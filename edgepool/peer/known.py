"""Peers that the settings name: those to keep a link to from the start."""

from __future__ import annotations

from edgepool.config import PeerSettings
from edgepool.model.ids import split_address
from edgepool.model.pool import Member


def known_members(settings: PeerSettings) -> tuple[Member, ...]:
    """Return the known peers as members to dial; the settings were checked before."""
    members = []
    for known in settings.known_peers:
        peer = split_address(known.address).peer
        assert peer is not None
        members.append(Member(peer, known.name, "", (known.address,)))
    return tuple(members)
