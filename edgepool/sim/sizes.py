"""Small sizes for a run: history that would take months to be forgotten is forgotten in seconds.

The window of records known by id, the steps in which state is forgotten and snapshots are taken, and the
pages of snapshots are constants of the protocol. In a run with a 'prune' in its plan they are replaced from
outside, for all peers alike, and put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgepool.config import Limits
from edgepool.core import adoption, pruning, snapshots
from edgepool.core.ledger import chainfacts, window
from edgepool.sim.plan import Plan

SMALL_CHAIN_BYTES = 1
"""Every look at the size of what is stored finds it too large."""


def limits_of(plan: Plan) -> Limits:
    """Return the limits of the peers of `plan`."""
    return Limits(chain_bytes=SMALL_CHAIN_BYTES) if _prune(plan) else Limits()


def page_bytes() -> int:
    """Return how many bytes the pages of snapshots have at present."""
    size: int = vars(snapshots)["SNAPSHOT_PAGE_BYTES"]
    return size


@contextmanager
def sizes_of(plan: Plan) -> Iterator[None]:
    """Replace the sizes by those of `plan`."""
    small = _prune(plan)
    if small is None:
        yield
        return
    blocks, page = small
    wanted = (
        (window, "WINDOW_BLOCKS", blocks),
        (chainfacts, "FORGET_BLOCKS", max(2, blocks // 2)),
        (pruning, "CHECK_BLOCKS", max(2, blocks // 2)),
        (adoption, "SNAPSHOT_PAGE_BYTES", page),
        (snapshots, "SNAPSHOT_PAGE_BYTES", page),
    )
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    try:
        for module, name, size in wanted:
            setattr(module, name, size)
        yield
    finally:
        for module, name, size in before:
            setattr(module, name, size)


def _prune(plan: Plan) -> tuple[int, int] | None:
    """Return the window in blocks and the page in bytes that `plan` asks for, if it does."""
    for fault in plan.faults:
        if fault.kind == "prune":
            return int(str(fault.arguments["window"])), int(str(fault.arguments["page_bytes"]))
    return None
