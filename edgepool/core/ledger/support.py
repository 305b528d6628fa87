"""Changes that are open on a chain, each with who has written it: members and trust are decided by these.

An open table has the changes in the order in which they were opened, each with its authors in theirs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from edgepool.model.ids import PeerId
from edgepool.model.vote import quorum

C = TypeVar("C")
V = TypeVar("V")
Open = tuple[tuple[C, tuple[PeerId, ...]], ...]

MAX_OPENED = 16
"""How many undecided changes one author can have opened in one table.

The limit is for each author, or one who is to be excluded could fill the table and stay. Who opens one
more gives up its oldest that nobody else supports.
"""


def supporters(opened: Open[C], change: C) -> tuple[PeerId, ...]:
    """Return who has written `change`, if it is open."""
    return next((authors for one, authors in opened if one == change), ())


def is_full_for(opened: Open[C], author: PeerId) -> bool:
    """Say whether `author` can open no other change, since others support all that it has opened."""
    mine = [authors for _, authors in opened if authors[0] == author]
    return len(mine) >= MAX_OPENED and all(len(authors) > 1 for authors in mine)


def with_support(opened: Open[C], author: PeerId, change: C) -> Open[C]:
    """Return the table after `author` has written `change`."""
    table = dict(opened)
    if change not in table:
        mine = [one for one, authors in opened if authors[0] == author]
        if len(mine) >= MAX_OPENED:
            del table[next(one for one in mine if len(table[one]) == 1)]
    table[change] = (*table.get(change, ()), author)
    return tuple(table.items())


def first_decided(opened: Open[C], voters: Collection[PeerId]) -> C | None:
    """Return the oldest change that a quorum of `voters` has written, or None."""
    needed = quorum(len(voters))
    for change, authors in opened:
        if sum(author in voters for author in authors) >= needed:
            return change
    return None


def renamed(peers: tuple[PeerId, ...], former: PeerId, heir: PeerId) -> tuple[PeerId, ...]:
    """Return `peers` with `heir` in the place of `former`, each once."""
    return tuple(dict.fromkeys(heir if peer == former else peer for peer in peers))


def rekeyed(table: dict[PeerId, V], former: PeerId, heir: PeerId) -> dict[PeerId, V]:
    """Return `table` with what it has of `former` under `heir`, at the same place; `heir` has had nothing."""
    return {heir if peer == former else peer: value for peer, value in table.items() if peer != heir}
