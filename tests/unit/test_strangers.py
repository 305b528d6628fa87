"""Strangers knock so often and no more; members do not count, and the table stays small."""

from __future__ import annotations

from edgepool.transport.strangers import CAPACITY, MAX_ADDRESSES, REFILL_PER_S, StrangerGate


def test_a_source_has_so_many_tokens_and_gets_them_back_with_time() -> None:
    gate = StrangerGate()
    knocks = [gate.may_knock("10.0.0.1", 0.0) for _ in range(1000)]
    assert sum(knocks) == CAPACITY
    assert gate.may_knock("10.0.0.2", 0.0), "others are not its fault"
    assert not gate.may_knock("10.0.0.1", 0.5 / REFILL_PER_S)
    assert gate.may_knock("10.0.0.1", 2 / REFILL_PER_S)


def test_who_proves_to_be_a_member_is_not_counted() -> None:
    gate = StrangerGate()
    for _ in range(1000):
        assert gate.may_knock("10.0.0.1", 0.0)
        gate.proved("10.0.0.1", 0.0)


def test_one_network_of_addresses_is_one_source_and_the_table_is_bounded() -> None:
    gate = StrangerGate()
    assert sum(gate.may_knock(f"2001:db8::{n:x}", 0.0) for n in range(1000)) == CAPACITY
    assert gate.may_knock("2001:db8:0:1::1", 0.0)
    for n in range(3 * MAX_ADDRESSES):
        gate.may_knock(f"10.1.{n // 256}.{n % 256}", 0.0)
    assert len(gate._buckets) == MAX_ADDRESSES
