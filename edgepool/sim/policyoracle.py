"""Which data policies must stand on a chain, counted once more from its records alone [S2.3]."""

from __future__ import annotations

from edgepool.core.ledger.state import ChainState
from edgepool.model.ids import PeerId
from edgepool.model.policy import DataPolicy
from edgepool.model.record import SignedRecord


class PolicyOracle:
    """The newest policy of each author and pattern, as the simulator's judge knows them."""

    def __init__(self, standing: dict[tuple[PeerId, str], DataPolicy] | None = None) -> None:
        self._standing = standing or {}

    def copy(self) -> PolicyOracle:
        """Return one that can go on without this one."""
        return PolicyOracle(dict(self._standing))

    def next_problem(self, signed: SignedRecord) -> str:
        """Say why a record is no next policy of its author, or return '' and take it."""
        body = signed.record.body
        if not isinstance(body, DataPolicy):
            return ""
        name = (signed.record.author, f"{body.part}/{body.kind}")
        standing = self._standing.get(name)
        before = standing.version if standing is not None else 0
        if body.version != before + 1:
            return f"it is version {body.version} of a policy, after {before}"
        if body.terms is not None:
            self._standing[name] = body
        elif self._standing.pop(name, None) is None:
            return "it takes a policy back that is not there"
        return ""

    def standing_problem(self, state: ChainState) -> str:
        """Say how the policies that `state` knows differ from those that were counted here, or return ''.

        Those of authors who have left may be forgotten.
        """
        known = {(owner, str(entry.policy.pattern)): entry.policy for owner, entry in state.policies()}
        for name in [one for one in self._standing if one not in known and not state.may_write(one[0])]:
            del self._standing[name]
        return "" if known == self._standing else "its policies are not those that its records have set"
