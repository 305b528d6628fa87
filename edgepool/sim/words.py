"""What authors say of changes that are open on a chain: the same rules for members and for trust."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

from edgepool.model.ids import PeerId

MOST_OPENED = 16
"""How many undecided changes one author has; one more drops its oldest that nobody else wants."""

Change = TypeVar("Change", bound=Hashable)


def room_for(
    words: list[tuple[Change, PeerId]], change: Change, author: PeerId
) -> list[tuple[Change, PeerId]] | None:
    """Return the words that stay if `author` says `change`; None if it has too many changes open."""
    opened: dict[Change, list[PeerId]] = {}
    for one, by in words:
        opened.setdefault(one, []).append(by)
    mine = [one for one, authors in opened.items() if authors[0] == author]
    if change in opened or len(mine) < MOST_OPENED:
        return words
    lonely = [one for one in mine if len(opened[one]) == 1]
    return [(one, by) for one, by in words if one not in lonely[:1]] if lonely else None


def passed_on(words: list[tuple[Change, PeerId]], old: PeerId, new: PeerId) -> list[tuple[Change, PeerId]]:
    """Return the words with those of the key `old` as words of `new`, each once."""
    return list(dict.fromkeys((change, new if by == old else by) for change, by in words))
