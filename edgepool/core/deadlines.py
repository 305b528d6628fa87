"""When something is due next."""

from __future__ import annotations


def earliest(*deadlines: int | None) -> int | None:
    """Return the earliest of `deadlines`; None if there is none. It is asked after every batch of events."""
    first = None
    for at in deadlines:
        if at is not None and (first is None or at < first):
            first = at
    return first
