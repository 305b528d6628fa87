"""The three promises of a budget, and that changes take effect at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgepool.core.transfer.budget import (
    DEFAULT_PRIORITY,
    QUANTUM_BYTES,
    Budget,
    BudgetPlan,
    Hours,
    burst_bytes,
)
from edgepool.model.ids import PeerId

PEERS = [PeerId(name) for name in ("a", "b", "c")]
KINDS = ["model", "surface", "telemetry"]
RATES = st.one_of(st.none(), st.integers(1_000, 50_000_000))
PLANS = st.builds(
    BudgetPlan,
    bytes_s=RATES,
    per_peer_bytes_s=RATES,
    priorities=st.dictionaries(st.sampled_from(KINDS), st.integers(1, 9)),
)
SIZES = st.integers(1, 300_000)


@dataclass
class Flow:
    """Asks again as soon as it has been granted what it asked for: one outstanding ask at a time."""

    peer: PeerId
    kind: str
    size_bytes: int


FLOWS = st.lists(
    st.builds(Flow, st.sampled_from(PEERS), st.sampled_from(KINDS), SIZES), min_size=1, max_size=6
)
STEPS = st.lists(st.integers(0, 200), min_size=1, max_size=40)


class Recorded(Budget):
    """A budget that writes down each grant."""

    def __init__(self, plan: BudgetPlan, now_ms: int = 0, minute: int = 0) -> None:
        super().__init__(plan, now_ms, minute)
        self.grants: list[tuple[int, PeerId, str, int]] = []

    def _grant(self, ask, now_ms, done):  # type: ignore[no-untyped-def]
        self.grants.append((now_ms, ask.peer, ask.kind, ask.quantum))
        super()._grant(ask, now_ms, done)

    def moved(self, kind: str) -> int:
        return sum(size for _, _, one, size in self.grants if one == kind)


def play(budget: Recorded, flows: list[Flow], steps: list[int], rounds: int = 400) -> None:
    """Let flows ask for ever while time passes; what may move at once without limits is cut off."""
    now_ms = 0
    for ticket, flow in enumerate(flows):
        budget.ask(ticket, flow.peer, flow.kind, flow.size_bytes)
    for step in steps:
        now_ms += step
        for _ in range(rounds):
            done = budget.advance(now_ms, 0)
            no_waste(budget, now_ms)
            for ticket in done:
                budget.ask(ticket, flows[ticket].peer, flows[ticket].kind, flows[ticket].size_bytes)
            if not done:
                break


def no_waste(budget: Budget, now_ms: int) -> None:
    waiting = [ask for asks in budget._waiting.values() for ask in asks]
    may = [ask for ask in waiting if budget._peer(ask.peer, now_ms).has(ask.quantum)]
    assert not may or any(not budget._machine.has(ask.quantum) for ask in may), "bytes wait for nothing"


def never_above(grants: list[tuple[int, int]], bytes_s: int) -> None:
    """Check every window: the sum up to each grant, less the least that any earlier window began with."""
    sum_bytes, least = 0, 0.0
    for at_ms, size_bytes in grants:
        least = min(least, sum_bytes - bytes_s * at_ms / 1000)
        sum_bytes += size_bytes
        excess = sum_bytes - bytes_s * at_ms / 1000 - least
        assert excess <= burst_bytes(bytes_s) + 1


@settings(deadline=None)
@given(PLANS, FLOWS, STEPS)
def test_no_window_sees_more_than_the_rate_and_one_burst(
    plan: BudgetPlan, flows: list[Flow], steps: list[int]
) -> None:
    budget = Recorded(plan)
    play(budget, flows, steps, rounds=50)
    if plan.bytes_s is not None:
        never_above([(at, size) for at, _, _, size in budget.grants], plan.bytes_s)
    if plan.per_peer_bytes_s is not None:
        for peer in PEERS:
            never_above(
                [(at, size) for at, one, _, size in budget.grants if one == peer], plan.per_peer_bytes_s
            )


@settings(deadline=None, max_examples=50)
@example({"model": 3}, 1_057_033, [QUANTUM_BYTES + 1] * 3)  # all are granted their last byte in one moment
@given(
    st.dictionaries(st.sampled_from(KINDS), st.integers(1, 9), max_size=3),
    st.integers(1_000_000, 20_000_000),
    st.lists(st.integers(QUANTUM_BYTES, 5 * QUANTUM_BYTES), min_size=3, max_size=3),
)
def test_kinds_that_wait_share_by_their_priorities(
    priorities: dict[str, int], bytes_s: int, sizes: list[int]
) -> None:
    budget = Recorded(BudgetPlan(bytes_s, priorities=priorities))
    flows = [Flow(PEERS[0], kind, size) for kind, size in zip(KINDS, sizes, strict=True)]
    for ticket, flow in enumerate(flows):  # two of each, so that each kind waits nearly always
        budget.ask(ticket, flow.peer, flow.kind, flow.size_bytes)
        budget.ask(ticket + 3, flow.peer, flow.kind, flow.size_bytes)
    for now_ms in range(0, 3_000, 2):
        for ticket in budget.advance(now_ms, 0):
            flow = flows[ticket % 3]
            budget.ask(ticket, flow.peer, flow.kind, flow.size_bytes)
    weights = {kind: priorities.get(kind, DEFAULT_PRIORITY) for kind in KINDS}
    moved = sum(budget.moved(kind) for kind in KINDS)
    for kind in KINDS:
        share = moved * weights[kind] / sum(weights.values())
        assert abs(budget.moved(kind) - share) <= burst_bytes(bytes_s) + 4 * QUANTUM_BYTES


@settings(deadline=None)
@given(PLANS, PLANS, FLOWS, st.integers(0, 500))
def test_a_change_takes_effect_at_once_and_saves_nothing_up(
    before: BudgetPlan, after: BudgetPlan, flows: list[Flow], at_ms: int
) -> None:
    budget = Recorded(before)
    for ticket, flow in enumerate(flows):
        budget.ask(ticket, flow.peer, flow.kind, flow.size_bytes)
    budget.advance(at_ms, 0)
    budget.change(after, at_ms, 0)
    budget.grants.clear()
    for ticket, flow in enumerate(flows):
        budget.ask(100 + ticket, flow.peer, flow.kind, flow.size_bytes)
    for now_ms in range(at_ms, at_ms + 300, 20):
        budget.advance(now_ms, 0)
    if after.bytes_s is not None:
        never_above([(at, size) for at, _, _, size in budget.grants], after.bytes_s)
    if after.bytes_s is None and after.per_peer_bytes_s is None:
        assert budget.waiting == 0


@given(FLOWS, RATES, RATES)
def test_who_is_told_when_to_come_again_gets_something_then(
    flows: list[Flow], bytes_s: int | None, per_peer: int | None
) -> None:
    budget = Recorded(BudgetPlan(bytes_s, per_peer))
    for ticket, flow in enumerate(flows):
        budget.ask(ticket, flow.peer, flow.kind, flow.size_bytes)
    budget.advance(0, 0)
    now_ms = 0
    idle = 0
    for _ in range(100):
        at_ms = budget.wakeup_at(now_ms)
        if at_ms is None:
            assert budget.waiting == 0
            return
        assert at_ms > now_ms
        before = len(budget.grants)
        budget.advance(at_ms - 1, 0)
        assert len(budget.grants) == before, "it could have come earlier"
        budget.advance(at_ms, 0)
        # Somebody who has waited for its peer may stand in front now, with more to wait for.
        idle = idle + 1 if len(budget.grants) == before else 0
        assert idle < len(flows)
        now_ms = at_ms


def test_production_hours_begin_and_end_by_themselves() -> None:
    day = BudgetPlan(10_000_000, hours=(Hours(6 * 60, 22 * 60, 1_000_000), Hours(23 * 60, 60, 2_000_000)))
    rates = {minute: day.bytes_s_at(minute) for minute in (0, 59, 60, 359, 360, 1319, 1320, 1379, 1380)}
    assert rates == {
        0: 2_000_000,
        59: 2_000_000,
        60: 10_000_000,
        359: 10_000_000,
        360: 1_000_000,
        1319: 1_000_000,
        1320: 10_000_000,
        1379: 10_000_000,
        1380: 2_000_000,
    }
    budget = Budget(day, 0, 359)
    assert budget.bytes_s == 10_000_000
    budget.ask(1, PEERS[0], "model", 5_000_000)
    budget.advance(10, 360)
    assert budget.bytes_s == 1_000_000


def test_a_ticket_that_is_given_up_leaves_room_for_others() -> None:
    budget = Budget(replace(BudgetPlan(), bytes_s=QUANTUM_BYTES), 0, 0)
    budget.ask(1, PEERS[0], "model", 2 * QUANTUM_BYTES)
    budget.ask(2, PEERS[1], "model", QUANTUM_BYTES)
    assert budget.advance(0, 0) == []
    budget.cancel(1)
    assert budget.advance(1_000, 0) == [2]
    assert budget.waiting == 0
