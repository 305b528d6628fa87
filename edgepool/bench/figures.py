"""Figures: medians of alternating rounds, each with its ratio to the bare thing measured beside it.

Absolute values say something about one machine in one minute; ratios last. So everything is measured
in rounds that alternate with the bare thing (a library call, a plain socket), and a figure's ratio is
the median of the rounds' ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from time import thread_time

_CALIBRATE_S = 0.002


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure. `name` is its stable key within its part, `what` a phrase for people.

    `value` is the median, `lowest` and `highest` are those of the rounds. `bare` is the median of the
    bare thing, which `beside` names, in the same unit, and `ratio` is value by bare; all three are
    None and '' where there is no such thing. A unit that ends in '/s' is better when higher.
    """

    name: str
    what: str
    unit: str
    value: float
    lowest: float
    highest: float
    bare: float | None = None
    ratio: float | None = None
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Rounds:
    """What alternating rounds gave, in seconds for one unit of work; `bare` may be empty."""

    ours: tuple[float, ...]
    bare: tuple[float, ...] = ()

    def figure(self, name: str, what: str, unit: str, beside: str = "", *, amount: float = 0.0) -> Figure:
        """Return the figure in `unit`: 'us', 'ms' or 's', or a rate of `amount` units of work."""
        return figure_of(
            name,
            what,
            unit,
            [_in_unit(seconds, unit, amount) for seconds in self.ours],
            [_in_unit(seconds, unit, amount) for seconds in self.bare],
            beside,
        )


def figure_of(
    name: str,
    what: str,
    unit: str,
    ours: Sequence[float],
    bare: Sequence[float] = (),
    beside: str = "",
) -> Figure:
    """Return the figure of the rounds' values; `bare` is empty or has one value for each round."""
    if not bare:
        return Figure(name, what, unit, median(ours), min(ours), max(ours))
    ratio = median(one / other for one, other in zip(ours, bare, strict=True))
    return Figure(name, what, unit, median(ours), min(ours), max(ours), median(bare), ratio, beside)


def alternate(ours: Callable[[], float], bare: Callable[[], float], rounds: int) -> Rounds:
    """Run both in turn, `rounds` times after one that does not count; each returns its seconds."""
    ours(), bare()
    pairs = [(ours(), bare()) for _ in range(rounds)]
    return Rounds(tuple(one for one, _ in pairs), tuple(other for _, other in pairs))


def timed(call: Callable[[], object], round_s: float, units: int = 1) -> Callable[[], float]:
    """Return what calls `call` for about `round_s` and returns the seconds for one of its `units`.

    Seconds of this thread's processor time, so that other programs disturb less.
    """
    calls = 1
    while (took_s := _time_calls(call, calls)) < _CALIBRATE_S:
        calls *= 2
    calls = max(1, round(calls * round_s / took_s))
    return lambda: _time_calls(call, calls) / calls / units


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of `values` (not empty) do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _time_calls(call: Callable[[], object], calls: int) -> float:
    start_s = thread_time()
    for _ in repeat(None, calls):
        call()
    return thread_time() - start_s


def _in_unit(seconds: float, unit: str, amount: float) -> float:
    if unit.endswith("/s"):
        return amount / seconds
    return seconds * {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
