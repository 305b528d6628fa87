"""What of the data that a peer holds may go when space is needed [S3.8].

Least recently used first, and never what is kept for a reason. If not enough can go nothing goes: data
that is refused for want of space harms nothing that is held.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GRACE_MS = 10_000
"""Data that was used within this time does not go: whoever has just got it is about to open it."""


@dataclass(frozen=True, slots=True)
class Held:
    """Whole data that is held: when it was used last, and why it is kept ('' if it may go)."""

    root: bytes
    size_bytes: int
    used_ms: int
    kept: str


def may_go(held: Held, now_ms: int) -> bool:
    """Say whether this data may go. A clock that was set back keeps data for longer, never for less."""
    return not held.kept and held.used_ms + GRACE_MS <= now_ms


def plan_eviction(everything: Iterable[Held], lacking_bytes: int, now_ms: int) -> tuple[bytes, ...] | None:
    """Return the roots to drop so that `lacking_bytes` come free, the least recently used first.

    Fewest bytes are not sought for; but what turns out not to be needed is left. None if all that may
    go is not enough.
    """
    chosen: list[Held] = []
    freed = 0
    for held in sorted(everything, key=lambda one: (one.used_ms, one.root)):
        if freed >= lacking_bytes:
            break
        if may_go(held, now_ms) and held.size_bytes:
            chosen.append(held)
            freed += held.size_bytes
    if freed < lacking_bytes:
        return None
    for held in reversed(chosen):  # the last one may be so large that others need not go
        if freed - held.size_bytes >= lacking_bytes:
            chosen.remove(held)
            freed -= held.size_bytes
    return tuple(held.root for held in chosen)
