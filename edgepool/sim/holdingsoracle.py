"""A second opinion about whose the offers and anchors of a chain are, told apart from the core.

Of persons, not of keys: whoever has offered something first still has when its key is another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.core.ledger.state import ChainState
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import ChainAnchor, DataOffer, Record
from edgepool.sim.persons import Persons


class HoldingsOracle:
    """Who has offered what, and anchored which sub-chain up to which height."""

    def __init__(self, persons: Persons) -> None:
        self._persons = persons
        self._holders: dict[tuple[int, int], int] = {}
        """Height and index of each offer, and who has made it."""
        self._anchored: dict[int, dict[ChainId, int]] = {}

    def enter(self, height: int, index: int, record: Record) -> None:
        """Take a record that stands at this place."""
        body, author = record.body, self._persons.of(record.author)
        if isinstance(body, DataOffer):
            self._holders[height, index] = author
        elif isinstance(body, ChainAnchor):
            self._anchored.setdefault(author, {})[body.sub_chain] = body.certificate.height

    def close(self, members: Sequence[PeerId]) -> None:
        """End a block: what those have anchored who are not among `members` is forgotten."""
        staying = [self._persons.of(member) for member in members]
        self._anchored = {one: known for one, known in self._anchored.items() if one in staying}

    def standing_problem(self, state: ChainState) -> str:
        """Say whose offers and anchors are others' in `state` than were counted here, or return ''."""
        for holder in dict.fromkeys(one for _, one in state.standing_offers()):
            for height, index, _ in state.offers_by(holder):
                meant = self._persons.key(self._holders[height, index])
                if meant != holder:
                    return f"the offer at {height}/{index} is held by {holder}, not by {meant}"
        anchored = {self._persons.key(one): known for one, known in self._anchored.items()}
        known = {author: dict(anchors) for author, anchors in state._facts.anchors()}
        return "" if known == anchored else "its anchors are not those that its records have set"
