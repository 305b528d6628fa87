"""Which data policies must stand on a chain, counted once more from its records alone [S2.3].

Of persons, not of keys: who changes its key keeps what it has said, and others still mean it.
"""

from __future__ import annotations

from msgspec.structs import replace

from edgepool.core.ledger.state import ChainState
from edgepool.model.policy import DataPolicy
from edgepool.model.record import SignedRecord
from edgepool.sim.persons import Persons

_Name = tuple[int, str]
"""The author of a policy, and the pattern that it is for."""
_Standing = tuple[DataPolicy, tuple[int, ...]]
"""A policy as it was written, and the members that it names."""


class PolicyOracle:
    """The newest policy of each author and pattern, as the simulator's judge knows them."""

    def __init__(self, persons: Persons, standing: dict[_Name, _Standing] | None = None) -> None:
        self._persons = persons
        self._standing = standing or {}

    def copy(self) -> PolicyOracle:
        """Return one that can go on without this one."""
        return PolicyOracle(self._persons, dict(self._standing))

    def next_problem(self, signed: SignedRecord) -> str:
        """Say why a record is no next policy of its author, or return '' and take it."""
        body = signed.record.body
        if not isinstance(body, DataPolicy):
            return ""
        name = (self._persons.of(signed.record.author), f"{body.part}/{body.kind}")
        standing = self._standing.get(name)
        before = standing[0].version if standing is not None else 0
        if body.version != before + 1:
            return f"it is version {body.version} of a policy, after {before}"
        if body.terms is not None:
            self._standing[name] = (body, tuple(self._persons.of(one) for one in body.terms.members))
        elif self._standing.pop(name, None) is None:
            return "it takes a policy back that is not there"
        return ""

    def standing_problem(self, state: ChainState) -> str:
        """Say how the policies that `state` knows differ from those that were counted here, or return ''.

        Those of authors who have left may be forgotten.
        """
        key = self._persons.key
        known = {(owner, str(entry.policy.pattern)): entry.policy for owner, entry in state.policies()}
        for name in tuple(self._standing):
            author = key(name[0])
            if (author, name[1]) not in known and not state.may_write(author):
                del self._standing[name]
        standing = {(key(one), pattern): self._now(*it) for (one, pattern), it in self._standing.items()}
        return "" if known == standing else "its policies are not those that its records have set"

    def _now(self, policy: DataPolicy, members: tuple[int, ...]) -> DataPolicy:
        """Return a policy with the present keys of those whom it names, each once."""
        if policy.terms is None or not members:
            return policy
        keys = tuple(dict.fromkeys(self._persons.key(one) for one in members))
        return replace(policy, terms=replace(policy.terms, members=keys))
