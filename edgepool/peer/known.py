"""Peers that the settings name: those to keep a link to from the start."""

from __future__ import annotations

from edgepool.config import PeerSettings
from edgepool.model.ids import PeerId, short, split_address
from edgepool.model.pool import Member


def known_members(settings: PeerSettings) -> tuple[Member, ...]:
    """Return the known peers as members to dial; the settings were checked before."""
    members = []
    for known in settings.known_peers:
        peer = split_address(known.address).peer
        assert peer is not None
        members.append(Member(peer, known.name, "", (known.address,)))
    if settings.transport != "tls" and settings.libp2p.mdns:
        named = [member.peer for member in members]
        unnamed = [PeerId(peer) for peer in settings.coordinators if peer not in named]
        # The local network may say where they are.
        members += [Member(peer, short(peer), "", ()) for peer in unnamed]
    return tuple(members)
