"""Whom a peer keeps links to: one reason is enough, and the last one that goes ends it [S3.6]."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from edgepool.core import partners
from edgepool.core.machine import Instant, UnwantLink, WantLink
from edgepool.core.partners import ASKED_MS, CONFIRMED_MS, Partners
from edgepool.core.pools.joining import JOIN_TIMEOUT_MS
from edgepool.core.pools.lifecycle import DIAL_TIMEOUT_MS, FORM_TIMEOUT_MS
from edgepool.core.resolution.confirmation import MAX_VALIDITY_MS
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member

A, B, KNOWN = (PeerId(name) for name in ("a", "b", "known"))


def at(ms: int) -> Instant:
    return Instant(ms, 1_700_000_000_000 + ms)


def member(peer: PeerId) -> Member:
    return Member(peer, peer, "", ())


class Pool:
    """What is looked at of a chain: who is named, and who is to be linked with."""

    def __init__(self, *people: PeerId) -> None:
        self.people = {peer: member(peer) for peer in people}
        self.gone: set[PeerId] = set()

    def present(self, peer: PeerId) -> Member | None:
        return None if peer in self.gone else self.people.get(peer)


class Place:
    """A peer in some pools, whose settings name KNOWN; `heir` says whose place another key has."""

    def __init__(self, *pools: Pool) -> None:
        self.revoked: dict[PeerId, None] = {}
        self.heir: dict[PeerId, PeerId] = {}
        heirs: Any = SimpleNamespace(
            known_members=lambda: (member(KNOWN),), heir=lambda peer: self.heir.get(peer, peer)
        )
        rendezvous: Any = SimpleNamespace(where_now=lambda one: one)
        chains: Any = dict(enumerate(pools))
        self.partners = Partners(chains, heirs, rendezvous, lambda: self.revoked)

    def revoke(self, peer: PeerId) -> list[UnwantLink]:
        self.revoked[peer] = None
        return self.partners.trust_changed()


def test_a_holder_in_another_pool_is_kept_as_long_as_it_may_have_confirmed_something() -> None:
    assert CONFIRMED_MS >= MAX_VALIDITY_MS
    here = Place().partners
    assert here.confirming(member(A), at(0)) == [WantLink(member(A))]
    assert here.confirming(member(A), at(1000)) == [WantLink(member(A))], "asked anew, it is kept longer"
    assert here.wake(at(CONFIRMED_MS)) == []
    assert here.deadline == CONFIRMED_MS + 1000
    assert here.wake(at(CONFIRMED_MS + 1000)) == [UnwantLink(A)]
    assert (here.deadline, here.needs(A)) == (None, False)


def test_who_was_only_asked_for_is_let_go_when_nothing_waits_for_it_any_more() -> None:
    assert ASKED_MS > FORM_TIMEOUT_MS + DIAL_TIMEOUT_MS + JOIN_TIMEOUT_MS
    here = Place().partners
    assert here.wanted(member(A), None, at(0)) == [WantLink(member(A))]
    assert here.wake(at(ASKED_MS - 1)) == []
    assert here.wake(at(ASKED_MS)) == [UnwantLink(A)]


def test_who_was_asked_for_and_is_in_a_pool_by_then_stays() -> None:
    pool = Pool()
    here = Place(pool).partners
    here.wanted(member(A), None, at(0))
    pool.people[A] = member(A)
    assert here.wake(at(ASKED_MS)) == []
    assert here.left(A) == []


def test_a_partner_of_a_pool_needs_no_reminder_and_goes_with_the_last_pool() -> None:
    first, second = Pool(A), Pool(A)
    here = Place(first, second).partners
    assert here.wanted(member(A), None, at(0)) == [WantLink(member(A))]
    assert here.deadline is None
    first.gone.add(A)
    assert here.left(A) == []
    second.gone.add(A)
    assert here.left(A) == [UnwantLink(A)]


def test_a_transfer_from_who_leaves_or_has_left_keeps_the_link_to_it() -> None:
    pool = Pool(A)
    here = Place(pool).partners
    assert here.confirming(member(A), at(0)) == [], "there is a link, or the pool asks for it"
    pool.gone.add(A)
    assert here.left(A) == []
    assert here.wake(at(CONFIRMED_MS)) == [UnwantLink(A)]
    assert here.confirming(member(A), at(CONFIRMED_MS)) == [WantLink(member(A))]


def test_who_the_settings_name_is_always_wanted() -> None:
    place = Place(Pool(KNOWN))
    here = place.partners
    assert here.needs(KNOWN)
    assert place.revoke(KNOWN) == [], "the settings are for people to change"


def test_who_is_revoked_is_wanted_by_no_pool_that_still_names_it() -> None:
    place = Place(Pool(A, B))
    place.partners.wanted(member(A), None, at(0))
    assert place.revoke(A) == [UnwantLink(A)]
    assert place.partners.trust_changed() == [], "said once"
    assert place.partners.wanted(member(A), None, at(1)) == []
    assert [one.peer for one in place.partners.in_pools()] == [B]


def test_a_holder_that_is_revoked_is_let_go_at_once() -> None:
    place = Place()
    place.partners.wanted(member(A), None, at(0))
    assert place.revoke(A) == [UnwantLink(A)]
    assert place.partners.deadline is None


def test_a_former_key_is_dialled_while_a_chain_that_is_behind_names_it() -> None:
    """At its address its heir answers, from whom the chain learns the rest."""
    place = Place(Pool(A))
    place.heir[A] = B
    assert place.revoke(A) == []
    assert place.partners.wanted(member(A), None, at(0)) == [WantLink(member(A))]


def test_a_heir_that_is_revoked_is_not_dialled_and_its_former_key_no_more() -> None:
    place = Place(Pool(B))
    place.revoke(B)
    assert place.partners.wanted(member(B), A, at(0)) == [UnwantLink(A)]


def test_only_so_many_strangers_are_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr(partners, "MAX_KEPT", 2)
    here = Place().partners
    for n, peer in enumerate((A, B)):
        here.wanted(member(peer), None, at(n))
    assert here.wanted(member(KNOWN), None, at(5)) == [WantLink(member(KNOWN))]
    third = PeerId("third")
    assert here.wanted(member(third), None, at(6)) == [WantLink(member(third)), UnwantLink(A)]
