"""The garbage collector, which is in the way while very much is made that lasts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
