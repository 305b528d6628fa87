"""Bugs on purpose in how keys change; see canaries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from canaries import Canary, swap
from msgspec.structs import replace

from edgepool.core import succeeding
from edgepool.core.chain import Chain
from edgepool.core.ledger import draft, governance
from edgepool.core.ledger.chainfacts import ChainFacts
from edgepool.core.ledger.credit import WorkAccount
from edgepool.core.ledger.facts import Facts
from edgepool.core.ledger.roster import MAX_HEIGHT, Roster
from edgepool.core.ledger.state import ChainState
from edgepool.core.membership import MembershipPolicy
from edgepool.model.crypto import verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Member
from edgepool.model.record import MembershipChange
from edgepool.model.succession import SUCCESSION_DOMAIN, Adoption, succession_terms
from edgepool.sim import keys

# --- what stays behind under the old key ------------------------------------------------------------


def kept(owner: Any, name: str, *attributes: str) -> Callable[[ExitStack], None]:
    """Return a switch by which the method `name`, which renames, leaves these attributes as they were."""

    def switch(stack: ExitStack) -> None:
        genuine = getattr(owner, name)

        def forgetful(self: Any, *arguments: Any) -> Any:
            before = {attribute: getattr(self, attribute) for attribute in attributes}
            result = genuine(self, *arguments)
            for attribute, value in before.items():
                setattr(self, attribute, value)
            return result

        swap(stack, owner, name, forgetful)

    return switch


words_left_behind = kept(ChainFacts, "_pass_on", "trust")
"""What the old key has said of whom to trust is not the new one's."""
anchors_left_behind = kept(ChainFacts, "_pass_on", "_anchors")
"""What the old key has anchored is forgotten."""


def left_out(owner: Any, name: str, result: Callable[..., Any]) -> Callable[[ExitStack], None]:
    """Return a switch by which the method `name` does nothing and returns `result` of its arguments."""
    return lambda stack: swap(stack, owner, name, result)


def evidence_lost(stack: ExitStack) -> None:
    """What the old key has signed is nobody's."""
    swap(stack, Roster, "heir", lambda self, peer: peer)


def not_in_snapshots(stack: ExitStack) -> None:
    """Who takes over a state does not know whose keys have changed."""
    snapshot = ChainState.snapshot

    def forgetful(self: ChainState) -> bytes:
        roster = self._facts.roster
        self._facts.roster = replace(roster, successions=())
        data = snapshot(self)
        self._facts.roster = roster
        return data

    swap(stack, ChainState, "snapshot", forgetful)


# --- who votes, and who may succeed whom ---------------------------------------------------------------


def one_height_longer(stack: ExitStack) -> None:
    """The old key votes on the first height of the new one, too."""
    genuine = Chain.members

    def members(self: Chain) -> tuple[PeerId, ...]:
        late = [one.former for one in self.state.successions if one.last == self.state.height]
        voting: tuple[PeerId, ...] = genuine(self)
        return tuple(late[0] if late and peer == self.state.heir(late[0]) else peer for peer in voting)

    swap(stack, Chain, "members", members)


def half_signed(key_of: Callable[[MembershipChange, Member], tuple[PeerId, bytes]]) -> Any:
    """Return a switch by which one of the two signatures is enough: that of `key_of`."""

    def switch(stack: ExitStack) -> None:
        def lax(self: MembershipChange, network: str, chain: ChainId, incoming: Member) -> str:
            terms = succession_terms(network, chain, self.number, self.outgoing, incoming, self.beacon_tip)
            key, signature = key_of(self, incoming)
            return "" if verify(key, SUCCESSION_DOMAIN, terms, signature) else "it is not signed"

        swap(stack, MembershipChange, "_succession_problem", lax)
        governance._terms_problem.cache_clear()
        stack.callback(governance._terms_problem.cache_clear)

    return switch


def former_keys_convict(stack: ExitStack) -> None:
    """What an old key signs after its last height counts against the new one."""
    swap(stack, Roster, "votes_of", lambda self, peer: (self.admitted_at(peer), MAX_HEIGHT))


def former_keys_convict_for_ever(stack: ExitStack) -> None:
    """Whoever has copied an old key has its heir convicted, however long ago it was changed."""
    swap(stack, draft, "expiry_problem", lambda view, body: "")


def a_new_key_is_an_escape(stack: ExitStack) -> None:
    """What an old key has signed convicts nobody from the height on which the new one votes."""

    def at_once(view: Any, body: Any) -> str:
        former = [one.former for one in view.roster.successions]
        return "it is another's key now" if getattr(body, "member", "") in former else ""

    swap(stack, draft, "expiry_problem", at_once)


def the_convicted_flee(stack: ExitStack) -> None:
    """Whoever is convicted goes on under another key."""
    genuine = governance._succession_problem

    def lax(view: Any, body: MembershipChange) -> str:
        reason = genuine(view, body)
        return "" if "nobody succeeds it" in reason else reason

    approves = MembershipPolicy._approves

    def approve(self: MembershipPolicy, change: MembershipChange, *of_it: Any) -> bool:
        return bool(change.heir) or approves(self, change, *of_it)

    swap(stack, governance, "_succession_problem", lax)
    swap(stack, MembershipPolicy, "_approves", approve)
    swap(stack, MembershipPolicy, "changes", _last(MembershipPolicy.changes))


def _last(changes: Any) -> Any:
    """Nobody asks that the convicted leave, as long as they change their keys."""

    def late(self: MembershipPolicy, state: ChainState, revoked: Any = ()) -> list[MembershipChange]:
        said: list[MembershipChange] = changes(self, state, revoked)
        heirs = [change for change in said if change.heir]
        return heirs or said

    return late


def unsigned_adoptions(stack: ExitStack) -> None:
    """Who has no vote names its heir, whoever that is."""
    swap(stack, Adoption, "holds", lambda self, network, chain: True)
    governance._adoption_problem.cache_clear()
    stack.callback(governance._adoption_problem.cache_clear)


def a_former_coordinator_counts(stack: ExitStack) -> None:
    """Whoever had the coordinator's place by a former key has it still."""
    genuine = Facts._author

    def lax(self: Facts, peer: PeerId) -> Any:
        return genuine(self, self.coordinator if self.roster.heir(peer) == self.coordinator else peer)

    swap(stack, Facts, "_author", lax)


def in_place(name: str) -> Callable[[ExitStack], None]:
    """Return a switch by which the coordinator, or the observers, of a chain stay who they were at first."""

    def switch(stack: ExitStack) -> None:
        genuine = Roster._renamed

        def forgetful(self: Roster, *arguments: Any) -> Roster:
            return replace(genuine(self, *arguments), **{name: getattr(self, name)})

        swap(stack, Roster, "_renamed", forgetful)

    return switch


def in_any_order(stack: ExitStack) -> None:
    """Each peer passes on its places as they come."""

    def at_once(waiting: Any, me: PeerId) -> Chain | None:
        alone = (succeeding.place_to_pass_on([one], me) for one in waiting)
        return next((one for one in alone if one is not None), None)

    swap(stack, keys, "place_to_pass_on", at_once)


def doors_close_early(stack: ExitStack) -> None:
    """A peer is closed before its last vote is stored."""
    swap(stack, keys.KeyChanges, "_is_durable", lambda self, peer, life: True)


SUCCESSION_CANARIES: dict[str, Canary] = {
    "offers not passed on": Canary(
        left_out(ChainFacts, "_offer_passed_on", lambda self, offered, *_: offered), ("validity",), 5, keys=2
    ),
    "steps not passed on": Canary(
        left_out(ChainFacts, "_pass_on_steps", lambda *_: None), ("validity",), 5, keys=2
    ),
    "policies not passed on": Canary(
        left_out(ChainFacts, "_pass_on_policies", lambda *_: None),
        ("validity",),
        5,
        keys=4,
        keys_ms=2_000,
        heights=60,
    ),
    "weight lost": Canary(
        left_out(WorkAccount, "pass_on", lambda *_: None),
        ("validity",),
        5,
        keys=4,
        keys_ms=3_000,
        heights=120,
    ),
    "successions not in snapshots": Canary(not_in_snapshots, ("history", "validity"), 3, keys=2, window=6),
    "an old key votes a height longer": Canary(
        one_height_longer, ("validity", "members", "liveness"), 5, keys=2
    ),
    "the old key's signature is enough": Canary(
        half_signed(lambda change, member: (change.outgoing, change.succession)),
        ("validity", "members"),
        10,
        role="govern",
    ),
    "the new key's signature is enough": Canary(
        half_signed(lambda change, member: (member.peer, change.incoming_signature)),
        ("validity", "members"),
        10,
        role="govern",
    ),
    "former keys convict": Canary(
        former_keys_convict, ("validity", "members"), 10, keys=3, role="govern", heights=60
    ),
    "former keys convict for ever": Canary(
        former_keys_convict_for_ever, ("validity", "members"), 10, keys=3, role="govern", heights=60, window=6
    ),
    "the convicted flee": Canary(the_convicted_flee, ("validity",), 20, keys=4, role="equivocate"),
    "the coordinator is not passed on": Canary(in_place("coordinator"), ("validity",), 3, coordinator=True),
    "the adoption is not passed on": Canary(in_place("adoption"), ("validity",), 3, coordinator=True),
    "observers are not passed on": Canary(in_place("observers"), ("validity",), 5, coordinator=True),
    "a former coordinator counts": Canary(
        a_former_coordinator_counts, ("validity",), 10, role="govern", coordinator=True, heights=60
    ),
    "places in any order": Canary(
        in_any_order, ("liveness",), 5, keys=3, keys_ms=250, members=3, chains=2, heights=4
    ),
}
"""Every canary of changing keys that random schedules find, by name, with its budget of seeds."""
