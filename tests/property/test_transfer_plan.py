"""The plan of a transfer under every order of events: each chunk once, nobody owes more than allowed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgepool.core.transfer.plan import MAX_WINDOW, MIN_WINDOW, Ask, Plan

NAMES = ("a", "b", "c", "d", "e")


class Transfer(RuleBasedStateMachine):
    """Sources come, deliver (in order or late), fall silent, cheat and go; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0.0
        self.count = 12
        self.plan = Plan(self.count, {3})
        self.accepted: set[int] = {3}
        self.owed: dict[str, list[int]] = {}
        self.has: dict[str, set[int]] = {}

    def take(self, asks: list[Ask]) -> None:
        for ask in asks:
            assert ask.index in self.has[ask.source], "asked for what it does not have"
            assert ask.index not in self.owed[ask.source], "asked twice from one source"
            assert ask.index not in self.accepted, "asked for what is there"
            self.owed[ask.source].append(ask.index)
            assert len(self.owed[ask.source]) <= MAX_WINDOW

    @rule(name=st.sampled_from(NAMES), has=st.none() | st.sets(st.integers(0, 11)))
    def come(self, name: str, has: set[int] | None) -> None:
        if name not in self.owed:
            self.plan.add(name, has)
            self.owed[name] = []
            self.has[name] = set(range(self.count)) if has is None else set(has)

    @rule(name=st.sampled_from(NAMES), more=st.sets(st.integers(0, 11)))
    def extend(self, name: str, more: set[int]) -> None:
        self.plan.extend(name, more)
        if name in self.has and self.has[name] != set(range(self.count)):
            self.has[name] |= more

    @rule(name=st.sampled_from(NAMES))
    def go(self, name: str) -> None:
        self.plan.lose(name)
        self.owed.pop(name, None)
        self.has.pop(name, None)

    @rule(passed_ms=st.sampled_from([0.0, 0.5, 40.0, 5000.0]))
    def ask(self, passed_ms: float) -> None:
        self.now_ms += passed_ms
        self.take(self.plan.asks(self.now_ms))

    @precondition(lambda self: any(self.owed.values()))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, owed in self.owed.items() if owed)))
        index = self.owed[name].pop(0)
        assert self.plan.arrived(name, index, self.now_ms) is (index not in self.accepted)
        self.accepted.add(index)

    @rule(index=st.integers(0, 11))
    def deliver_late(self, index: int) -> None:
        """A source that was given up had one more on its way."""
        assert self.plan.arrived("gone", index, self.now_ms) is (index not in self.accepted)
        self.accepted.add(index)

    @invariant()
    def agrees(self) -> None:
        assert self.plan.missing == self.count - len(self.accepted)
        assert self.plan.whole is (len(self.accepted) == self.count)
        assert {name: list(self.plan.owed(name)) for name in self.plan.sources} == self.owed

    def teardown(self) -> None:
        """One honest source is enough, however silent all others are."""
        self.plan.add("last")
        self.owed["last"], self.has["last"] = [], set(range(self.count))
        for _ in range(60):
            self.now_ms += 100
            self.take(self.plan.asks(self.now_ms))
            for index in self.owed["last"]:
                self.plan.arrived("last", index, self.now_ms)
                self.accepted.add(index)
            self.owed["last"] = []
        assert self.plan.whole


TestTransfer = Transfer.TestCase
TestTransfer.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(max_examples=40, deadline=None)
@given(paces=st.lists(st.sampled_from([5, 10, 20, 40]), min_size=1, max_size=5), count=st.integers(40, 300))
def test_the_end_comes_about_when_all_paces_together_allow_it(paces: list[int], count: int) -> None:
    """In a world where each source sends a chunk every 100/pace ms, nobody slow holds up the end."""
    plan = Plan(count)
    for number in range(len(paces)):
        plan.add(str(number))
    next_ms = dict.fromkeys(plan.sources, 0.0)
    now_ms = 0.0
    wasted = 0
    while not plan.whole:
        for ask in plan.asks(now_ms):
            if len(plan.owed(ask.source)) == 1:
                next_ms[ask.source] = now_ms
        busy = [name for name in plan.sources if plan.owed(name)]
        due_ms = {name: max(next_ms[name], 0) + 100 / paces[int(name)] for name in busy}
        first = min(busy, key=lambda name: due_ms[name])
        now_ms = next_ms[first] = due_ms[first]
        wasted += not plan.arrived(first, plan.owed(first)[0], now_ms)
    ideal_ms = 100 * count / sum(paces)
    assert now_ms <= ideal_ms + 2 * 100 / max(paces) + 100 / sum(paces) * len(paces) * MIN_WINDOW
