"""Reduces a failing fault plan to a small one that still fails in the same way, by delta debugging.

Every fault carries its own end, so any subset of a plan is a plan. Fewer heights, no second chain and no
spares are tried too, and then shorter and milder faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from edgepool.sim.plan import PLACES, Fault, Plan
from edgepool.sim.run import Result, run_plan

MOST_RUNS = 400


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The smallest plan that was found, what it violates, and how many runs it took."""

    plan: Plan
    violation: str
    runs: int
    faults_before: int


class Shrinker:
    """Looks for smaller plans; `run` is how a plan is run, `most_runs` bounds the work."""

    def __init__(self, run: Callable[[Plan], Result] = run_plan, most_runs: int = MOST_RUNS) -> None:
        self._run = run
        self._runs_left = most_runs
        self._most_runs = most_runs
        self._rule = ""
        self._violation = ""

    def shrink(self, plan: Plan) -> Shrunk | None:
        """Return a smallest failing plan, or None if `plan` does not fail."""
        before = len(plan.faults)
        violation = self._violation_of(plan)
        if not violation:
            return None
        self._rule, self._violation = violation.partition(":")[0], violation
        smaller: Plan | None = plan
        while smaller is not None:
            plan = smaller
            smaller = self._pass(plan)
        return Shrunk(plan, self._violation, self._most_runs - self._runs_left, before)

    def _pass(self, plan: Plan) -> Plan | None:
        """Try everything once; return a smaller plan, or None if nothing could be taken away."""
        first = plan
        plan = self._fewer_heights(plan)
        plan = self._fewer_faults(plan)
        if plan.chains > 1:
            plan = self._try(replace(plan, chains=1)) or plan
        if plan.spares > _spares_named(plan):
            plan = self._try(replace(plan, spares=_spares_named(plan))) or plan
        plan = self._milder_faults(plan)
        return plan if plan != first else None

    def _fewer_heights(self, plan: Plan) -> Plan:
        heights = 1
        while heights < plan.heights:
            smaller = self._try(replace(plan, heights=heights))
            if smaller is not None:
                return smaller
            heights *= 2
        return plan

    def _fewer_faults(self, plan: Plan) -> Plan:
        """Zeller's ddmin over the faults: drop ever smaller parts."""
        size = max(1, len(plan.faults) // 2)
        while plan.faults:
            start = 0
            dropped = False
            while start < len(plan.faults):
                rest = plan.faults[:start] + plan.faults[start + size :]
                smaller = self._try(replace(plan, faults=rest))
                if smaller is not None:
                    plan, dropped = smaller, True
                else:
                    start += size
            if size == 1 and not dropped:
                break
            size = max(1, size // 2)
        return plan

    def _milder_faults(self, plan: Plan) -> Plan:
        for place in range(len(plan.faults)):
            for milder in _milder(plan.faults[place]):
                faults = (*plan.faults[:place], milder, *plan.faults[place + 1 :])
                smaller = self._try(replace(plan, faults=faults))
                if smaller is not None:
                    plan = smaller
                    break
        return plan

    def _try(self, plan: Plan) -> Plan | None:
        if self._runs_left <= 0:
            return None
        violation = self._violation_of(plan)
        if violation.partition(":")[0] != self._rule:
            return None
        self._violation = violation
        return plan

    def _violation_of(self, plan: Plan) -> str:
        self._runs_left -= 1
        violations = self._run(plan).violations
        return violations[0] if violations else ""


def _spares_named(plan: Plan) -> int:
    """Return how many spares the faults of a plan are about."""
    named = [0]
    for fault in plan.faults:
        places = [fault.arguments.get(name) for name in PLACES]
        side = fault.arguments.get("side")
        places += side if isinstance(side, list) else []
        named += [place - plan.first_spare + 1 for place in places if isinstance(place, int)]
    return max(named)


def _milder(fault: Fault) -> Sequence[Fault]:
    """Return variants of `fault` that do less: shorter, then with smaller numbers."""
    variants = []
    for name, least in (("for_ms", 100), ("skip", 0), ("said", 0), ("most_ms", 30), ("links", 0)):
        value = fault.arguments.get(name)
        if isinstance(value, int) and value > least:
            variants.append(replace(fault, arguments={**fault.arguments, name: least}))
            if value // 2 > least:
                variants.append(replace(fault, arguments={**fault.arguments, name: value // 2}))
    return variants


def shrink(plan: Plan, most_runs: int = MOST_RUNS) -> Shrunk | None:
    """Reduce a failing plan; None if it does not fail."""
    return Shrinker(most_runs=most_runs).shrink(plan)
