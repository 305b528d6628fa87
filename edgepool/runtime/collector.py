"""The garbage collector, which is in the way while very much is made that lasts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = (20_000, 5, 200)
"""After how much that is new the collector looks at what is young, and how often at the older parts."""


def collect_rarely() -> None:
    """Have the collector of this process look for cycles more rarely; for programs, not for libraries.

    A peer makes much that lasts and next to no cycles. Python's own settings have the collector look through
    a chain's whole state every few seconds of heavy load, and nothing else is done for a tenth of a second.
    """
    gc.set_threshold(*RARELY)


@contextmanager
def paused_collector() -> Iterator[None]:
    """Let the collector rest inside: a chain's state is made without cycles, and is looked through for them
    again and again as it grows, which takes a third of the time that it takes to load it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
