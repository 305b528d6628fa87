"""What a member says of trust by itself: which roots and revocations it approves, and carries on [S3.6].

Policy, not protocol. A member approves what its coordinator proposes (unless `approve` is 'manual'), and the
revocation of a key that this key itself has signed. It never approves that it be revoked itself otherwise,
nor a root that it could not use. A coordinator carries what one of its main chains has decided to all others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import is_

from edgepool.config import Approve
from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.trust import Trust, UnitedTrust, united
from edgepool.errors import DecodeError
from edgepool.model.credential import read_root
from edgepool.model.ids import PeerId
from edgepool.model.trust import AdmitRoot, RevokePeer, TrustChange, TrustStep

CARRIED = "decided on another main chain"
"""The reason of what a coordinator carries from one of its main chains to another."""
MAX_CARRIED = 8
"""How many steps a coordinator has open for that on one chain, so that none pushes another out."""


class TrustPolicy:
    """What one peer, `me`, says of trust on one chain."""

    def __init__(self, me: PeerId, approve: Approve) -> None:
        self._me = me
        self._approve = approve

    def changes(self, state: ChainState, elsewhere: UnitedTrust) -> list[TrustChange]:
        """Return what this peer has to say and has not said on the chain yet."""
        if state.genesis.invitation.kind != "fixed":
            return []
        trust, wanted = state.trust, list[TrustChange]()
        if self._me == state.coordinator:
            open_steps = [change.step for change, authors in trust.open if self._me in authors]
            missing = [step for step in elsewhere.steps_missing_in(trust) if step not in open_steps]
            room = MAX_CARRIED - sum(step in open_steps for step in elsewhere.steps_missing_in(trust))
            wanted += [TrustChange(step, CARRIED) for step in missing[: max(0, room)]]
        if self._me in state.members:
            for change, authors in trust.open:
                if self._me not in authors and self._approves(state, change, authors):
                    wanted.append(change)
        return wanted

    def _approves(self, state: ChainState, change: TrustChange, authors: Collection[PeerId]) -> bool:
        step = change.step
        if isinstance(step, RevokePeer) and step.is_own(state.network):
            return True
        if isinstance(step, RevokePeer) and step.peer == self._me:
            return False
        coordinator = state.coordinator
        guilty = state.trust.is_revoked(coordinator) or coordinator in state.convicted()
        trusted = coordinator in authors and not guilty and self._approve == "coordinator"
        return trusted and not root_problem(step)


class MainTrust:
    """What the main chains of a peer say of trust together, kept as they change."""

    def __init__(self) -> None:
        self.united = UnitedTrust()
        self._seen: tuple[Trust, ...] = ()

    def take(self, states: Iterable[ChainState]) -> bool:
        """Take in the states of all chains; say whether others are trusted now than before."""
        trusts = tuple(state.trust for state in states if state.genesis.invitation.kind == "fixed")
        if len(trusts) == len(self._seen) and all(map(is_, trusts, self._seen)):
            return False
        before, self._seen, self.united = self.united, trusts, united(trusts)
        return self.united != before


def root_problem(step: TrustStep) -> str:
    """Say why a root that is to be admitted could not be used here, or return ''."""
    if not isinstance(step, AdmitRoot):
        return ""
    try:
        root = read_root(step.root)
    except DecodeError as error:
        return str(error)
    if root.organisation != step.organisation:
        return f"it is of the organisation '{root.organisation}', not of '{step.organisation}'"
    return ""
