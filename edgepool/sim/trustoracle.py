"""A second opinion about whom a main chain trusts, told apart from the core.

Written from decision 0008, with other means: it remembers every word that is not decided, counts anew after
each record, and keeps at which height each revocation and each root was decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.core.ledger.state import ChainState
from edgepool.model.crypto import sha256
from edgepool.model.ids import PeerId
from edgepool.model.pool import Genesis
from edgepool.model.record import MembershipChange, SignedRecord
from edgepool.model.succession import KeySuccession
from edgepool.model.trust import AdmitRoot, RetireRoot, RevokePeer, TrustChange, TrustStep
from edgepool.sim.words import passed_on, room_for


class TrustOracle:
    """Follows what the records of one chain say of roots and revocations, block by block."""

    def __init__(self, genesis: Genesis) -> None:
        self.revoked: dict[str, int] = {}
        """Who is revoked, and in which block that was decided."""
        self.roots: dict[bytes, int] = {}
        """The roots that are admitted, by fingerprint, and in which block."""
        self.retired: dict[bytes, int] = {}
        """From when roots are trusted no more, in ms of wall time."""
        self.news: list[TrustStep] = []
        """What was decided since somebody last took it."""
        self._main = genesis.invitation.kind == "fixed"
        self._words: list[tuple[TrustChange, PeerId]] = []

    def copy(self) -> TrustOracle:
        """Return another one that knows the same."""
        other: TrustOracle = object.__new__(TrustOracle)
        other.__dict__.update(self.__dict__)
        for name in ("revoked", "roots", "retired", "news", "_words"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def take(
        self, height: int, records: Sequence[SignedRecord], voters: Sequence[PeerId], coordinator: PeerId
    ) -> str:
        """Count what the block at `height`, on which `voters` vote, says; or say what may not stand."""
        for signed in records:
            body, author = signed.record.body, signed.record.author
            if isinstance(body, MembershipChange):
                if body.incoming is not None and body.incoming.peer in self.revoked:
                    return "somebody is to come who is revoked"
                if body.succession and body.outgoing in self.revoked:
                    return "a new key for somebody who is revoked"
            elif isinstance(body, KeySuccession):
                if author in self.revoked or body.incoming.peer in self.revoked:
                    return "a new key of or for somebody who is revoked"
                asked = [one.step for one, by in self._words if by == coordinator]
                if any(isinstance(step, RevokePeer) and step.peer == author for step in asked):
                    return "a new key for somebody whom the coordinator wants revoked"
            elif isinstance(body, TrustChange):
                problem = self._problem(body, author) or self._make_room(body, author)
                if problem:
                    return problem
                self._words.append((body, author))
                self._count(height, voters)
        return ""

    def pass_on(self, old: PeerId, new: PeerId) -> None:
        """What the key `old` has said is the word of `new` from now on."""
        self._words = passed_on(self._words, old, new)

    def counted(self, height: int, voters: Sequence[PeerId]) -> None:
        """Count once more, as those who vote after the block at `height` may be others."""
        self._count(height, voters)

    def standing_problem(self, state: ChainState) -> str:
        """Say how what `state` says of trust differs from what was counted here, or return ''."""
        trust = state.trust
        if dict(trust.revoked) != self.revoked:
            return "it does not revoke those whom its members have revoked"
        if {root.fingerprint for root in trust.roots if root.der} != set(self.roots):
            return "it does not admit the roots that its members have admitted"
        retired = {root.fingerprint: root.retired_ms for root in trust.roots if root.retired_ms < 2**53}
        return "" if retired == self.retired else "it does not retire roots as its members have said"

    def _problem(self, change: TrustChange, author: PeerId) -> str:
        if not self._main:
            return "a chain that is no main chain says whom to trust"
        if (change, author) in self._words:
            return "the same word for a change of trust twice"
        return "" if self._is_possible(change.step) else "a change of trust that is decided already"

    def _is_possible(self, step: TrustStep) -> bool:
        match step:
            case RevokePeer(peer):
                return peer not in self.revoked
            case AdmitRoot(_, der):
                return sha256(der) not in self.roots and sha256(der) not in self.retired
            case RetireRoot(root, from_ms):
                return from_ms < self.retired.get(root, 2**60)

    def _make_room(self, change: TrustChange, author: PeerId) -> str:
        """Drop a change that `author` opened before, if this is one too many; say why there is none."""
        words = room_for(self._words, change, author)
        if words is None:
            return "one change of trust too many"
        self._words = words
        return ""

    def _count(self, height: int, voters: Sequence[PeerId]) -> None:
        """Decide whatever more than two thirds of `voters` have said, the oldest first."""
        again = True
        while again:
            again = False
            for change in dict.fromkeys(change for change, _ in self._words):
                said = [voter for voter in voters if (change, voter) in self._words]
                if 3 * len(said) > 2 * len(voters):
                    self._decide(height, change.step)
                    self._words = [pair for pair in self._words if self._is_possible(pair[0].step)]
                    again = True
                    break

    def _decide(self, height: int, step: TrustStep) -> None:
        self.news.append(step)
        match step:
            case RevokePeer(peer):
                self.revoked[peer] = height
            case AdmitRoot(_, der):
                self.roots[sha256(der)] = height
            case RetireRoot(root, from_ms):
                self.retired[root] = from_ms
