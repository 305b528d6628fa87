"""Records tried in order on top of a chain's state: how a block is put together, and how one is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepool.core.ledger.contracts import record_problem
from edgepool.core.ledger.facts import Facts
from edgepool.core.ledger.governance import expiry_problem
from edgepool.core.ledger.statements import effects_of
from edgepool.model.record import Body, SignedRecord

if TYPE_CHECKING:
    from edgepool.core.ledger.state import ChainState


class Draft:
    """Records tried in order on top of a state, which they do not change."""

    def __init__(self, state: ChainState, facts: Facts) -> None:
        self._state = state
        self._facts = facts
        self._height = state.height + 1
        self._count = 0

    def add(self, signed: SignedRecord) -> str:
        """Add a record and return ''; or return why it may not stand after those added before.

        A refused record changes nothing. AssertionError if the state has grown since.
        """
        assert self._state.height + 1 == self._height, "a draft on a state that has grown"
        problem = record_problem(self._facts, signed)
        if not problem:
            self._facts.enter(self._height, self._count, signed, effects_of(self._facts, signed))
            self._count += 1
        return problem

    def add_new(self, signed: SignedRecord) -> str:
        """Add a record for a new block; it must not be outdated either, as it may be in one that stands."""
        return self.expiry_problem(signed.record.body) or self.add(signed)

    def expiry_problem(self, body: Body) -> str:
        """Say why a new block is not to say `body`, though it may stand in one that is certified, or ''."""
        return expiry_problem(self._facts, body)
