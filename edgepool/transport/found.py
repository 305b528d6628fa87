"""Who answers at addresses of peers that are wanted, where those should be and are not.

It may be that peer under another key. If its certificate is good the link stands as a link with who it is, as
if it had come from there; what it is to the one that was wanted it says itself (core/heirs.py), or does not.
Such an address is not dialled again as long as that link stands: for the other side each connection is its
newest link.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.runtime.ports import PeerIdentity


@dataclass(frozen=True, slots=True)
class Found:
    """At `address` of `wanted` the peer `there` answers."""

    wanted: Member
    address: str
    there: PeerIdentity


class FoundElsewhere:
    """Who was found in whose place: what was found last at each address of each wanted peer."""

    def __init__(self) -> None:
        self._found: dict[PeerId, dict[str, Found]] = {}

    def note(self, wanted: Member, address: str, there: PeerIdentity) -> None:
        """`there` answers at an address of `wanted`, of which one that it has no more is forgotten."""
        known = self._found.get(wanted.peer, {})
        kept = {place: one for place, one in known.items() if place in wanted.addresses}
        self._found[wanted.peer] = kept | {address: Found(wanted, address, there)}

    def settle(self, peer: PeerId) -> None:
        """A peer is linked, or is wanted no more."""
        self._found.pop(peer, None)

    def is_taken(self, peer: PeerId, address: str, linked: Collection[PeerId]) -> bool:
        """Say whether who was found at an address of `peer` is linked."""
        found = self._found.get(peer, {}).get(address)
        return found is not None and found.there.peer in linked

    def all(self) -> list[Found]:
        """Return all that is known, by who was wanted."""
        return [one for places in self._found.values() for one in places.values()]
