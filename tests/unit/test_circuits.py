"""What a conduit decides: places, circuits, tokens, shares, and whose turn it is."""

from __future__ import annotations

from edgepool.config import ConduitSettings
from edgepool.core.circuits import (
    ASKS_AT_ONCE,
    ASKS_PER_S,
    FULL,
    ITSELF,
    NOT_HERE,
    PAIRS_KEPT,
    QUANTUM_BYTES,
    SHARE,
    TOO_OFTEN,
    Circuit,
    CircuitTable,
    FairShare,
)
from edgepool.model.ids import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
VALID_MS = 5_000


class Tokens:
    """Tokens of a table under test, each once."""

    def __init__(self) -> None:
        self._number = 0

    def pair(self) -> tuple[bytes, bytes]:
        self._number += 2
        return self._number.to_bytes(32, "big"), (self._number + 1).to_bytes(32, "big")


def make_table(**bounds: int) -> tuple[CircuitTable, Tokens]:
    table = CircuitTable(ConduitSettings(serve=True, **bounds))
    assert table.reserve(B) == ""
    return table, Tokens()


def ask(
    table: CircuitTable, tokens: Tokens, asker: PeerId = A, target: PeerId = B, now_ms: int = 0
) -> Circuit:
    circuit = table.ask(asker, target, tokens.pair(), now_ms, VALID_MS)
    assert isinstance(circuit, Circuit), circuit
    return circuit


def test_a_circuit_is_open_when_both_have_come_with_their_tokens() -> None:
    table, tokens = make_table()
    mine, theirs = tokens.pair()
    circuit = table.ask(A, B, (mine, theirs), 0, VALID_MS)
    assert isinstance(circuit, Circuit)
    assert not circuit.open
    assert table.redeem(theirs, 10) == (circuit, B)
    assert table.redeem(mine, VALID_MS) == (circuit, A)
    assert circuit.open
    table.count(circuit, 7)
    assert table.passed[(A, B)].bytes == table.bytes_passed == 7
    assert table.passed[(A, B)].circuits == 1


def test_a_token_is_good_once_and_in_time_and_until_its_circuit_is_closed() -> None:
    table, tokens = make_table()
    mine, theirs = tokens.pair()
    circuit = table.ask(A, B, (mine, theirs), 0, VALID_MS)
    assert isinstance(circuit, Circuit)
    assert table.redeem(mine, 0)
    assert table.redeem(mine, 0) is None
    assert table.redeem(bytes(32), 0) is None
    assert table.overdue(VALID_MS) == []
    assert table.overdue(VALID_MS + 1) == [circuit]
    assert table.redeem(theirs, VALID_MS + 1) is None
    late = ask(table, tokens)
    (token, *_) = late.tokens
    table.close(late)
    assert table.redeem(token, 0) is None


def test_nobody_is_joined_to_itself_or_to_who_keeps_no_place() -> None:
    table, tokens = make_table()
    assert table.ask(B, B, tokens.pair(), 0, VALID_MS) == ITSELF
    assert table.ask(A, C, tokens.pair(), 0, VALID_MS) == NOT_HERE
    table.release(B)
    assert table.ask(A, B, tokens.pair(), 0, VALID_MS) == NOT_HERE


def test_places_are_bounded_and_one_may_be_kept_again() -> None:
    table, _ = make_table(reservations=2)
    assert table.reserve(A) == ""
    assert table.reserve(C) == FULL
    assert table.reserve(A) == ""
    table.release(A)
    assert table.reserve(C) == ""


def test_however_many_one_member_wants_places_are_left_for_the_others() -> None:
    table, tokens = make_table(circuits=16, circuits_per_peer=16)
    held = []
    while not isinstance(circuit := table.ask(A, B, tokens.pair(), 0, VALID_MS), str):
        held.append(circuit)
    assert circuit == SHARE
    assert len(held) == 8
    second = 0
    while not isinstance(table.ask(C, B, tokens.pair(), 0, VALID_MS), str):
        second += 1
    assert second == 4
    ask(table, tokens, PeerId("d"))
    table.close(held[0])
    table.close(held[0])
    ask(table, tokens, PeerId("e"))


def test_one_member_has_no_more_circuits_than_its_bound() -> None:
    table, tokens = make_table(circuits=64, circuits_per_peer=2)
    ask(table, tokens)
    ask(table, tokens)
    assert table.ask(A, B, tokens.pair(), 0, VALID_MS) == SHARE


def test_a_member_that_asks_too_often_is_put_off_and_the_others_are_not() -> None:
    table, tokens = make_table()
    for _ in range(ASKS_AT_ONCE):
        table.close(ask(table, tokens))
    assert table.ask(A, B, tokens.pair(), 0, VALID_MS) == TOO_OFTEN
    ask(table, tokens, C)
    for _ in range(ASKS_PER_S):
        table.close(ask(table, tokens, now_ms=1000))
    assert table.ask(A, B, tokens.pair(), 1000, VALID_MS) == TOO_OFTEN


def test_what_is_remembered_of_pairs_is_bounded() -> None:
    table, tokens = make_table()
    for number in range(PAIRS_KEPT + 5):
        circuit = ask(table, tokens, PeerId(f"p{number}"), now_ms=number)
        for token in list(circuit.tokens):
            table.redeem(token, number)
        table.close(circuit)
    assert len(table.passed) == PAIRS_KEPT
    assert table.circuits == {}


def test_the_circuits_of_a_peer_are_found_from_either_side() -> None:
    table, tokens = make_table()
    circuit = ask(table, tokens)
    assert table.of(A) == table.of(B) == [circuit]
    assert table.of(C) == []


def serve_for(share: FairShare[str], backlog: dict[str, PeerId], duration_ms: int) -> dict[str, int]:
    """Serve keys that always want more; return how many bytes each got."""
    got = dict.fromkeys(backlog, 0)
    now_ms = 0.0
    for key, peer in backlog.items():
        share.want(peer, key)
    while now_ms < duration_ms:
        for key in share.serve(now_ms):
            got[key] += QUANTUM_BYTES
            share.want(backlog[key], key)
        wait_ms = share.wait_ms(now_ms)
        assert wait_ms is not None
        assert wait_ms > 0
        now_ms += wait_ms
    return got


def test_members_share_a_rate_alike_however_many_circuits_they_use() -> None:
    share: FairShare[str] = FairShare(10_000_000, 0)
    greedy = {f"a{number}": A for number in range(9)}
    got = serve_for(share, {**greedy, "b": B}, 10_000)
    of_a = sum(got[key] for key in greedy)
    assert abs(of_a - got["b"]) <= QUANTUM_BYTES
    assert abs(of_a + got["b"] - 100_000_000) < 2_000_000


def test_what_one_member_may_not_use_goes_to_another_only_up_to_its_own_bound() -> None:
    share: FairShare[str] = FairShare(10_000_000, 2_000_000)
    got = serve_for(share, {"a": A, "b": B}, 10_000)
    for one in got.values():
        assert abs(one - 20_000_000) < 500_000


def test_what_was_not_used_is_given_back() -> None:
    share: FairShare[str] = FairShare(1_000_000, 1_000_000)
    share.want(A, "a")
    assert share.serve(1_000_000) == ["a"]
    share.give_back(A, QUANTUM_BYTES)
    share.want(A, "a")
    assert share.serve(1_000_000) == ["a"]


def test_who_wants_no_more_is_not_served() -> None:
    share: FairShare[str] = FairShare(1_000_000, 0)
    share.want(A, "a")
    share.forget(A, "a")
    share.forget(A, "never")
    assert share.serve(0) == []
    assert share.wait_ms(0) is None
    assert FairShare(0, 0).unbounded
