"""Who is who on one chain, whatever key it has at the time: for the second opinions about it.

The core puts a new key wherever its state has the old one. The oracles do it the other way round: all that
they remember is of persons, and a key is looked up when it is read. So neither repeats a fault of the other.
"""

from __future__ import annotations

from edgepool.model.ids import PeerId


class Persons:
    """The keys of persons, each a number; whoever was never mentioned becomes a new one."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._keys: list[str] = []

    def of(self, key: str) -> int:
        """Return whose key `key` is by now."""
        person = self._of.get(key)
        if person is None:
            person = self._of[key] = len(self._keys)
            self._keys.append(key)
        return person

    def key(self, person: int) -> PeerId:
        """Return the present key of a person."""
        return PeerId(self._keys[person])

    def pass_on(self, old: str, new: str) -> None:
        """From now on the person with the key `old` has `new`; the old one is somebody else's, if anybody's.

        What was said of the new key before, as of a stranger's, is the person's too.
        """
        person = self.of(old)
        del self._of[old]
        self._of[new] = person
        self._keys[person] = new
