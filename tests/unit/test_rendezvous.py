"""Where peers are that have moved: what coordinators keep and hand on, and what is believed of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec

from edgepool.core import rendezvous
from edgepool.core.machine import Instant, Misbehaved, Notify, Send, WantLink
from edgepool.core.rendezvous import KEPT_MS, MAX_KEPT, WORDS_OF_A_LINK, Rendezvous
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId
from edgepool.model.message import Hello, Reachable
from edgepool.model.pool import Member
from edgepool.model.whereabouts import Whereabouts, sign_whereabouts

NETWORK = "works"
CLOUD, OTHER, A, B, C = (Signer(sha256(name.encode())) for name in ("cloud", "other", "a", "b", "c"))
OLD, NEW = ("/ip4/10.0.0.1/tcp/1",), ("/ip4/10.0.0.2/tcp/2",)


def at(ms: int) -> Instant:
    return Instant(ms, 1_700_000_000_000 + ms)


class Pool:
    """What is looked at of a chain: its people."""

    def __init__(self, *people: Signer) -> None:
        self.people = {one.peer: Member(one.peer, "", "", OLD) for one in people}
        self.gone: dict[PeerId, None] = {}

    def present(self, peer: PeerId) -> Member | None:
        return None if peer in self.gone else self.people.get(peer)


def place(me: Signer, *people: Signer, revoked: tuple[PeerId, ...] = ()) -> Any:
    chains: Any = {"chain": Pool(*(people or (CLOUD, A, B, C)))}
    linked: dict[PeerId, None] = {}
    known: Any = SimpleNamespace(chains=chains, connected_peers=linked)
    one = Rendezvous(me, NETWORK, (CLOUD.peer, OTHER.peer), known, lambda: revoked)
    one.addresses = NEW
    return one


def up(one: Any, peer: PeerId, now: Instant) -> list[Any]:
    one._linked[peer] = None
    return [*one.peer_up(peer, now), *one.tell(peer)]


def down(one: Any, peer: PeerId, now: Instant) -> None:
    one._linked.pop(peer)
    one.peer_down(peer, now)


def said(effects: list[Any], by: PeerId) -> Whereabouts:
    (record,) = next(one.message for one in effects if isinstance(one.message, Reachable)).records
    assert record.peer == by
    return record


def of(signer: Signer, addresses: tuple[str, ...] = NEW, number: int = 5) -> Reachable:
    return Reachable((sign_whereabouts(signer, NETWORK, addresses, number),))


def test_a_peer_that_has_moved_is_found_by_its_partners() -> None:
    a, b, cloud = place(A), place(B), place(CLOUD)
    up(cloud, B.peer, at(0))
    up(cloud, A.peer, at(1))
    own = up(a, CLOUD.peer, at(2))
    assert isinstance(own[0].message, Hello)
    (wanted, told) = cloud.receive(A.peer, own[1].message, at(3))
    assert wanted == WantLink(Member(A.peer, "", "", (*NEW, *OLD)))
    assert told == Send(B.peer, own[1].message)
    assert b.receive(CLOUD.peer, told.message, at(4)) == [wanted]
    assert b.where_now(Member(A.peer, "a", "", OLD)).addresses == (*NEW, *OLD)


def test_who_comes_later_is_told_when_its_link_comes_up() -> None:
    cloud = place(CLOUD)
    up(cloud, A.peer, at(0))
    cloud.receive(A.peer, of(A), at(1))
    down(cloud, A.peer, at(2))
    assert up(cloud, B.peer, at(3))[1:] == [Send(B.peer, of(A))]


def test_what_the_pool_says_already_is_not_told() -> None:
    cloud = place(CLOUD)
    up(cloud, A.peer, at(0))
    up(cloud, B.peer, at(0))
    wanted = WantLink(Member(A.peer, "", "", OLD))
    assert cloud.receive(A.peer, of(A, OLD), at(1)) == [wanted]
    assert len(up(cloud, C.peer, at(2))) == 1
    # Back from where it went, it is told all the same: others may have heard of that place.
    cloud.receive(A.peer, of(A, NEW, 6), at(3))
    assert Send(B.peer, of(A, OLD, 7)) in cloud.receive(A.peer, of(A, OLD, 7), at(4))


def test_who_can_be_dialled_elsewhere_says_so_to_all_and_signed_to_coordinators() -> None:
    a = place(A)
    first = said(up(a, CLOUD.peer, at(0)), A.peer)
    up(a, B.peer, at(0))
    effects = a.moved(OLD, at(1))
    hellos = [one.peer for one in effects if one.message == Hello(OLD)]
    assert sorted(hellos) == sorted([CLOUD.peer, B.peer])
    assert [one.peer for one in effects if isinstance(one.message, Reachable)] == [CLOUD.peer]
    assert said(effects, A.peer).addresses == OLD
    assert said(effects, A.peer).number > first.number
    assert Send(C.peer, Hello(OLD)) in up(a, C.peer, at(2))


def test_only_those_with_a_pool_in_common_are_told() -> None:
    cloud = place(CLOUD, CLOUD, A, B)
    for peer in (A.peer, B.peer, C.peer):
        up(cloud, peer, at(0))
    told = [one.peer for one in cloud.receive(A.peer, of(A), at(1)) if isinstance(one, Send)]
    assert told == [B.peer]


def test_a_coordinator_keeps_only_what_a_linked_peer_signs_of_itself() -> None:
    cloud = place(CLOUD)
    up(cloud, A.peer, at(0))
    forged = msgspec.structs.replace(of(A).records[0], addresses=("/ip4/6.6.6.6/tcp/6",))
    elsewhere = sign_whereabouts(A, "another network", NEW, 5)
    for bad in (of(B), Reachable((forged,)), Reachable((elsewhere,))):
        (blame,) = cloud.receive(A.peer, bad, at(1))
        assert isinstance(blame.notice, Misbehaved)
    assert cloud.of_chain(cloud._chains["chain"]) == ()


def test_nobody_speaks_of_itself_without_end() -> None:
    cloud = place(CLOUD)
    up(cloud, A.peer, at(0))
    answers = [cloud.receive(A.peer, of(A, NEW, number), at(1)) for number in range(WORDS_OF_A_LINK + 1)]
    assert answers[-1] == [Notify(Misbehaved(A.peer, "says again and again where it is"))]
    down(cloud, A.peer, at(2))
    up(cloud, A.peer, at(3))
    assert cloud.receive(A.peer, of(A, OLD, 99), at(4))


def test_others_are_believed_only_by_way_of_a_coordinator_and_signed() -> None:
    a = place(A)
    forged = msgspec.structs.replace(of(B).records[0], number=6)
    assert a.receive(C.peer, of(B), at(1)) == []
    assert a.receive(CLOUD.peer, Reachable((forged,)), at(1)) == []
    assert a.receive(CLOUD.peer, of(Signer(bytes(32))), at(1)) == []
    assert a.receive(CLOUD.peer, of(B), at(1))


def test_an_older_word_does_not_count_whoever_tells_it() -> None:
    a = place(A)
    a.receive(CLOUD.peer, of(B, NEW, 9), at(1))
    assert a.receive(OTHER.peer, of(B, OLD, 8), at(2)) == []
    assert a.where_now(Member(B.peer, "", "", ())).addresses == NEW


def test_who_has_left_or_is_revoked_is_not_looked_for() -> None:
    a = place(A, revoked=(B.peer,))
    a._chains["chain"].gone[C.peer] = None
    assert a.receive(CLOUD.peer, of(B), at(1)) == []
    assert a.receive(CLOUD.peer, of(C), at(1)) == []
    cloud = place(CLOUD, revoked=(A.peer,))
    up(cloud, A.peer, at(0))
    cloud.receive(A.peer, of(A), at(1))
    assert len(up(cloud, B.peer, at(2))) == 1


def test_a_peer_whose_clock_has_gone_back_is_heard_all_the_same() -> None:
    a, b, cloud = place(A), place(B), place(CLOUD)
    before = of(A, OLD, at(0).wall_ms + 10**9)
    up(cloud, B.peer, at(0))
    up(cloud, A.peer, at(0))
    cloud.receive(A.peer, before, at(0))
    b.receive(CLOUD.peer, before, at(0))
    early = said(up(a, CLOUD.peer, at(1)), A.peer)
    assert early.number < before.records[0].number
    (back,) = cloud.receive(A.peer, Reachable((early,)), at(2))
    assert back == Send(A.peer, before)
    (again,) = a.receive(CLOUD.peer, back.message, at(3))
    told = cloud.receive(A.peer, again.message, at(4))
    assert Send(B.peer, again.message) in told
    b.receive(CLOUD.peer, again.message, at(5))
    assert b.where_now(Member(A.peer, "", "", ())).addresses == NEW


def test_one_who_is_gone_is_forgotten_after_a_day_and_one_who_is_linked_never() -> None:
    cloud = place(CLOUD)
    for one in (A, B):
        up(cloud, one.peer, at(0))
        cloud.receive(one.peer, of(one), at(0))
    assert cloud.deadline is None
    down(cloud, A.peer, at(5))
    assert cloud.deadline == 5 + KEPT_MS
    cloud.wake(at(cloud.deadline))
    assert [record.peer for record in cloud.of_chain(cloud._chains["chain"])] == [B.peer]


def test_so_many_are_kept_and_of_those_without_a_link_the_first_goes(monkeypatch: Any) -> None:
    assert MAX_KEPT == 1024
    monkeypatch.setattr(rendezvous, "MAX_KEPT", 2)
    cloud = place(CLOUD)
    for moment, one in enumerate((A, B)):
        up(cloud, one.peer, at(moment))
        cloud.receive(one.peer, of(one), at(moment))
    up(cloud, C.peer, at(2))
    assert cloud.receive(C.peer, of(C), at(2)) == []
    down(cloud, B.peer, at(3))
    assert cloud.receive(C.peer, of(C, NEW, 6), at(4))
    people = [record.peer for record in cloud.of_chain(cloud._chains["chain"])]
    assert people == sorted((A.peer, C.peer))
