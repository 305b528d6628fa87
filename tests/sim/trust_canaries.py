"""Bugs on purpose in whom a network trusts; see canaries."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from canaries import Canary, swap

from edgepool.core.governing import Governing
from edgepool.core.ledger import trust as trust_module
from edgepool.core.ledger.trust import Trust
from edgepool.core.membership import MembershipPolicy
from edgepool.core.trusting import MainTrust
from edgepool.core.verification import ChainChecker
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode
from edgepool.model.ids import PeerId

TRUST = "revoke,admit-root,retire-root"


def the_owner_is_not_told(stack: ExitStack) -> None:
    """What a block has decided about trust never reaches the doors."""
    follow = Governing.follow_trust
    swap(stack, Governing, "follow_trust", lambda self, now: follow(self, now)[:0])


def trust_is_forgotten_at_a_restart(stack: ExitStack) -> None:
    """Who is revoked may come again when a peer has been off."""
    swap(stack, Governing, "know_trust", _unless_new(Governing.know_trust))


def _unless_new(know: Any) -> Any:
    def instead(self: Governing) -> bool:
        before = self._trust._seen
        known: bool = know(self)
        if not before and self._trust._seen:  # the first look of a life is what stood before it
            self._trust.united = type(self._trust.united)()
        return known

    return instead


def the_coordinator_alone_decides(stack: ExitStack) -> None:
    """One word is enough."""
    swap(stack, trust_module, "first_decided", lambda opened, voters: opened[0][0] if opened else None)


def who_has_left_still_counts(stack: ExitStack) -> None:
    """The words of all authors count, whoever votes."""

    def lax(opened: Any, voters: Collection[PeerId]) -> Any:
        needed = 2 * len(voters) // 3
        return next((change for change, authors in opened if len(authors) > needed), None)

    swap(stack, trust_module, "first_decided", lax)


def the_revoked_keep_their_votes(stack: ExitStack) -> None:
    """Nobody proposes that they leave the pools."""
    changes = MembershipPolicy.changes
    swap(stack, MembershipPolicy, "changes", lambda self, state, revoked=(): changes(self, state))


def the_past_is_judged_by_the_present(stack: ExitStack) -> None:
    """Who checks a chain anew takes no record of somebody who is revoked later in it."""
    check = ChainChecker.check
    revoked: dict[str, None] = {}

    def strict(self: ChainChecker, payload: bytes) -> str:
        certified = decode(CertifiedBlock, payload)
        authors = [signed.record.author for signed in certified.block.records]
        return next((f"{one} is revoked" for one in authors if one in revoked), "") or check(self, payload)

    counted = Trust.counted

    def note(self: Trust, voters: Any, height: int) -> Trust:
        after = counted(self, voters, height)
        revoked.update(dict.fromkeys(peer for peer, _ in after.revoked))
        return after

    swap(stack, ChainChecker, "check", strict)
    swap(stack, Trust, "counted", note)


def retired_roots_stay(stack: ExitStack) -> None:
    """A retirement is decided, and what the main chains say together leaves it out."""
    take = MainTrust.take

    def lax(self: MainTrust, states: Any) -> bool:
        news = take(self, states)
        never = trust_module.NEVER_MS
        roots = {one: known for one, known in self.united.roots.items() if known.retired_ms == never}
        self.united = type(self.united)(roots, self.united.revoked)
        return news

    swap(stack, MainTrust, "take", lax)


TRUST_CANARIES: dict[str, Canary] = {
    "doors are not told": Canary(the_owner_is_not_told, ("trust",), 10, TRUST),
    "trust forgotten at restart": Canary(
        trust_is_forgotten_at_a_restart, ("trust",), 20, TRUST + ",crash", heights=60
    ),
    "the coordinator alone decides": Canary(the_coordinator_alone_decides, ("validity",), 10, TRUST),
    "who has left still counts": Canary(
        who_has_left_still_counts, ("validity",), 20, TRUST + ",leave", heights=60
    ),
    "the revoked keep their votes": Canary(the_revoked_keep_their_votes, ("trust",), 10, TRUST),
    "the past is judged by the present": Canary(the_past_is_judged_by_the_present, ("trust",), 10, TRUST),
    "retired roots stay": Canary(retired_roots_stay, ("trust",), 10, TRUST),
}
"""Every canary of trust that random schedules find, by name, with its budget of seeds."""
