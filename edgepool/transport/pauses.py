"""For how long a peer whose link was ended for misbehaviour is neither dialled nor let in."""

from __future__ import annotations

import asyncio

from edgepool.model.ids import PeerId

RELINK_PAUSE_S = 2.0
_MAX_PAUSED = 4096


class Pauses:
    """The peers that have to wait, by the clock of the running event loop."""

    def __init__(self) -> None:
        self._until_s: dict[PeerId, float] = {}

    def begin(self, peer: PeerId) -> None:
        """A peer has to wait from now on."""
        now_s = asyncio.get_running_loop().time()
        if len(self._until_s) >= _MAX_PAUSED:
            self._until_s = {one: until_s for one, until_s in self._until_s.items() if until_s > now_s}
        self._until_s[peer] = now_s + RELINK_PAUSE_S

    def lasts(self, peer: PeerId) -> bool:
        """Say whether a peer has to wait still."""
        return self._until_s.get(peer, 0.0) > asyncio.get_running_loop().time()
