from __future__ import annotations

from ledger_world import World

from edgepool.core.ledger.mempool import Mempool


def test_known_record_is_a_duplicate() -> None:
    world, mempool = World(), Mempool(100, 4)
    demand = world.demand(0)
    assert mempool.add(demand) == ""
    assert mempool.add(demand) == "duplicate"
    assert mempool.has(demand.id)
    assert len(mempool) == 1


def test_no_author_takes_more_than_its_share() -> None:
    world, mempool = World(), Mempool(80, 4)
    answers = [mempool.add(world.demand(0)) for _ in range(21)]
    assert answers[:20] == [""] * 20
    assert "20 records of this author" in answers[20]
    assert mempool.add(world.demand(1)) == ""


def test_every_author_has_sixteen_places_while_there_is_room() -> None:
    world, mempool = World(), Mempool(20, 30)
    assert [mempool.add(world.demand(0)) for _ in range(16)] == [""] * 16
    assert mempool.add(world.demand(0))
    assert [mempool.add(world.demand(1)) for _ in range(4)] == [""] * 4
    assert "full" in mempool.add(world.demand(1))
    assert len(mempool) == 20


def test_authors_take_turns_each_in_its_own_order() -> None:
    world, mempool = World(), Mempool(100, 4)
    a = [world.demand(0) for _ in range(3)]
    b = [world.demand(1)]
    c = [world.demand(2) for _ in range(2)]
    for signed in (*a, *b, *c):
        mempool.add(signed)
    assert list(mempool.in_order()) == [a[0], b[0], c[0], a[1], c[1], a[2]]
    assert mempool.authored_by(world.peers[0]) == tuple(a)
    assert mempool.authored_by(world.peers[3]) == ()


def test_discarded_records_make_room_and_may_come_again() -> None:
    world, mempool = World(), Mempool(16, 1)
    records = [world.demand(0) for _ in range(16)]
    for signed in records:
        mempool.add(signed)
    mempool.discard([records[0].id, bytes(32), records[0].id])
    assert len(mempool) == 15
    assert not mempool.has(records[0].id)
    assert mempool.add(records[0]) == ""
    assert list(mempool.in_order()) == [*records[1:], records[0]]


def test_author_who_comes_back_stands_behind_those_who_waited() -> None:
    world, mempool = World(), Mempool(100, 4)
    a, b, again = world.demand(0), world.demand(1), world.demand(0)
    mempool.add(a)
    mempool.add(b)
    mempool.discard([a.id])
    mempool.add(again)
    assert list(mempool.in_order()) == [b, again]


def test_records_may_go_while_they_are_walked_through() -> None:
    world, mempool = World(), Mempool(100, 4)
    for author in (0, 1, 0, 1):
        mempool.add(world.demand(author))
    for signed in mempool.in_order():
        mempool.discard([signed.id])
    assert len(mempool) == 0
    assert list(mempool.in_order()) == []


def test_shares_follow_the_number_of_authors() -> None:
    world = World(2)
    pool = Mempool(100, 2)
    records = [world.demand(0) for _ in range(51)]
    assert [pool.add(record) for record in records[:50]] == [""] * 50
    assert "50 records of this author" in pool.add(records[50])
    pool.share_among(1)
    assert pool.add(records[50]) == ""
