"""Which key a conduit, or a relay, has by now that an address names under a former one [S3.6].

Such addresses stand in settings, geneses, rosters and offers, which are not written again. Who dials one
finds another key there. Whoever that is says which keys it had before, as it does on links; both keys have
signed each change (model/lineage.py). Nobody else is asked for circuits, or given a place's traffic, though
that is sealed between its ends anyway.
"""

from __future__ import annotations

from collections.abc import Callable

from edgepool.model.ids import PeerId, short, split_address
from edgepool.model.lineage import Line, line_problem

MAX_FOLLOWED = 256
"""So many keys are remembered that were found in the places of others; the oldest goes."""


class ConduitKeys:
    """What one peer knows of the keys of conduits and relays of `network`; `line` is that of its own key.

    `heir` says what its chains and links have told: it counts first. `met` is called when a conduit or relay
    is there, under whatever key.
    """

    def __init__(self, network: str) -> None:
        self.line: Line = ()
        self.heir: Callable[[PeerId], PeerId] = lambda peer: peer
        self.met: Callable[[], None] = lambda: None
        self.names: dict[PeerId, str] = {}
        """What those are called that were met, by the keys that they had then."""
        self._network = network
        self._followed: dict[PeerId, PeerId] = {}

    def now(self, peer: PeerId) -> PeerId:
        """Return the key that a conduit or relay has by now which once had the key `peer`."""
        seen: dict[PeerId, None] = {}
        while peer not in seen:
            seen[peer] = None
            heir = self.heir(peer)
            peer = self._followed.get(heir, heir)
        return peer

    def name_of(self, peer: PeerId | None) -> str:
        """Return the name of a conduit or relay, '' for none."""
        if not peer:
            return ""
        now = self.now(peer)
        return self.names.get(now, short(now))

    def of_address(self, address: str) -> str:
        """Return an address with the key that its conduit, or who is there if it has none, has by now."""
        found = split_address(address)
        peer = found.conduit or found.peer
        return address if peer is None else with_conduit(address, self.now(peer))

    def follow(self, named: PeerId, met: PeerId, line: Line) -> bool:
        """Say whether `met`, who has said `line` of itself, has the place of `named`; it has from then on."""
        before = self.now(named)
        if before == met:
            return True  # as has become known while it was asked
        if self.now(met) != met:
            # Chains know of an heir before it is there; once it was, its former key is nobody there.
            return self.now(met) == before and before not in self.names
        if all(one.former != before for one in line):
            return False
        if line_problem(line, self._network, met):
            return False
        if len(self._followed) >= MAX_FOLLOWED:
            del self._followed[next(iter(self._followed))]
        self._followed[before] = met
        return True


def with_conduit(address: str, conduit: PeerId) -> str:
    """Return an address in which a conduit or relay is named, by another key, with this key of it."""
    way, circuit, behind = address.partition("/p2p-circuit")
    return f"{way.rpartition('/')[0]}/{conduit}{circuit}{behind}"
