"""A peer's counters and gauges as Prometheus reads them (text exposition format 0.0.4).

`Peer.metrics()` is a flat mapping of names to numbers; a name may carry labels, as in
`edgepool_received_bytes_total{kind="model"}`. Names that end in `_total` are counters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FAMILY = re.compile(r"[^a-zA-Z0-9_:]")


def render_metrics(metrics: Mapping[str, float]) -> str:
    """Return `metrics` in Prometheus text format, one family after the other, by name."""
    families: dict[str, list[str]] = {}
    for name in sorted(metrics):
        family, labels = _split(name)
        families.setdefault(family, []).append(f"{family}{labels} {_number(metrics[name])}")
    lines: list[str] = []
    for family, samples in families.items():
        lines.append(f"# TYPE {family} {'counter' if family.endswith('_total') else 'gauge'}")
        lines += samples
    return "\n".join(lines) + "\n"


def _split(name: str) -> tuple[str, str]:
    """Return the family (made legal, and ours by its prefix) and the labels with their braces."""
    bare, brace, labels = name.partition("{")
    family = _FAMILY.sub("_", bare)
    if not family.startswith("edgepool_"):
        family = "edgepool_" + family
    return family, brace + labels.replace("\n", " ")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
