"""What transfers must reach, and what a run says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure, by its path in the report, and its limit; `most` if it may not be above it."""

    path: str
    what: str
    limit: float
    most: bool = False
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar beside what was measured."""

    path: str
    what: str
    value: float
    limit: float
    most: bool
    reached: bool


BARS = (
    Bar("single.ratio", "1 GiB from one holder, by the ceiling", 0.9),
    Bar("single.best_peer_ratio", "the same, by the best secure peer", 1.25),
    Bar("single.cpu_s_per_GiB", "processor time for it, both sides", 0.7, most=True, unit="s/GiB"),
    Bar("single.receiver_rss_MiB", "receiver's memory above idle", 96, most=True, unit="MiB"),
    Bar("single.file.receiver_rss_MiB", "the same, into a file", 96, most=True, unit="MiB"),
    Bar("single.large.receiver_rss_MiB", "the same, 8 GiB into a file", 96, most=True, unit="MiB"),
    Bar("rr_1k.ratio", "1 KB there and back, by a bare TLS echo", 2, most=True),
    Bar("small_files.ratio", "small files, by one large one", 0.5),
    *(Bar(f"multi.{k}.fraction", f"{k} x 20 MB/s", 0.94) for k in (1, 2, 4, 8)),
    Bar("mixed.fraction", "holders of 5, 10, 20 and 40 MB/s", 0.94),
    Bar("one_dies.fraction", "one of four dies at a quarter", 0.9),
    Bar("slow_link.ratio", "20 Mbit/s, by a bare TCP copy", 0.95),
    Bar("delay_loss.ratio", "50 ms and 1 % loss, by a bare TCP copy", 0.95),
)


def judge(figures: Mapping[str, Any]) -> list[Verdict]:
    """Return a verdict for each bar whose figure was measured."""
    verdicts = []
    for bar in BARS:
        value = find(figures, bar.path)
        if value is not None:
            reached = value <= bar.limit if bar.most else value >= bar.limit
            verdicts.append(Verdict(bar.path, bar.what, value, bar.limit, bar.most, reached))
    return verdicts


def find(figures: Mapping[str, Any], path: str) -> float | None:
    """Return the figure at 'part.name...', None if it was not measured."""
    found: Any = figures
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, (int, float)) else None
