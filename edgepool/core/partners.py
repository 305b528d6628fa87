"""Whom this peer keeps links to, and to whom no more [S3.6].

A link is wanted as long as one reason for it stands: the settings name that peer, or a pool in which this one
has a part does. What else asks for a link (an invitation, a newcomer that is to be asked, a search) needs it
for a while, and a transfer as long as a holder confirms it for, at most. When the last reason is gone
nobody dials that peer any more. A link that stands is left alone: what still goes over it may go on.

Who is revoked, and whose place no other key has, is let in nowhere: a pool that names it is no reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from edgepool.core.chain import Chain
from edgepool.core.deadlines import earliest
from edgepool.core.heirs import Heirs
from edgepool.core.machine import Instant, UnwantLink, WantLink
from edgepool.core.rendezvous import Rendezvous
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Member

ASKED_MS = 60_000
"""So long is a link wanted that was asked for once: longer than anything waits for one."""
CONFIRMED_MS = 10 * 60_000
"""So long is one to a holder wanted that was to confirm a transfer: as long as that can be valid."""
MAX_KEPT = 4096
"""How many such links are remembered, of either kind; the one that lapses first goes."""


class Partners:
    """Of one peer, which keeps `chains`; `revoked` says who is let in no more. Nothing given is changed."""

    def __init__(
        self,
        chains: Mapping[ChainId, Chain],
        heirs: Heirs,
        rendezvous: Rendezvous,
        revoked: Callable[[], Collection[PeerId]],
    ) -> None:
        self._chains = chains
        self._heirs = heirs
        self._rendezvous = rendezvous
        self._revoked = revoked
        self._known_revoked: frozenset[PeerId] = frozenset()
        self._asked = _Lapsing(ASKED_MS)
        self._confirmed = _Lapsing(CONFIRMED_MS)

    @property
    def deadline(self) -> int | None:
        """When a link is wanted no more that was asked for, in monotonic ms."""
        return earliest(self._asked.deadline, self._confirmed.deadline)

    def needs(self, peer: PeerId) -> bool:
        """Say whether a link to `peer` is to be kept, for whatever reason."""
        return peer in self._asked.until or peer in self._confirmed.until or self._stands(peer)

    def in_pools(self) -> list[Member]:
        """Return whom the pools have in which this peer has a part, each once."""
        people = {peer: one for chain in self._chains.values() for peer, one in chain.people.items()}
        return [one for peer, one in people.items() if self._in_a_pool(peer)]

    def wanted(self, member: Member, instead_of: PeerId | None, now: Instant) -> list[WantLink | UnwantLink]:
        """A link to `member` is asked for, in place of one to its old key `instead_of`, if it has one."""
        peer = member.peer
        if self._is_out(peer) and not self._stands(peer):
            return [UnwantLink(instead_of)] if instead_of else []
        dropped = self._asked.keep(peer, now) if not self._stands(peer) else []
        want = WantLink(self._rendezvous.where_now(member), instead_of)
        return [want, *self._unless_needed(dropped)]

    def confirming(self, holder: Member, now: Instant) -> list[WantLink | UnwantLink]:
        """A transfer from `holder`, perhaps linked, is to be confirmed: the link is needed to its end."""
        dropped = self._confirmed.keep(holder.peer, now)  # whatever pools it is in by then
        asked = [] if self._stands(holder.peer) else self.wanted(holder, None, now)
        return [*asked, *self._unless_needed(dropped)]

    def left(self, peer: PeerId) -> list[UnwantLink]:
        """A pool has `peer` no more: return what follows. What it was asked for before is over, too."""
        self._asked.until.pop(peer, None)
        return self._unless_needed([peer])

    def trust_changed(self) -> list[UnwantLink]:
        """Return whom nobody dials any more since it is revoked."""
        if len(self._revoked()) == len(self._known_revoked):
            return []
        revoked = frozenset(self._revoked())
        new, self._known_revoked = revoked - self._known_revoked, revoked
        for peer in new:
            if self._is_out(peer):
                self._asked.until.pop(peer, None)
                self._confirmed.until.pop(peer, None)
        return self._unless_needed(sorted(new))

    def wake(self, now: Instant) -> list[UnwantLink]:
        """Let go of what was asked for long ago."""
        return self._unless_needed([*self._asked.lapsed(now), *self._confirmed.lapsed(now)])

    def _unless_needed(self, peers: Iterable[PeerId]) -> list[UnwantLink]:
        """One reason for links to these is gone: return what follows."""
        return [UnwantLink(peer) for peer in peers if not self.needs(peer)]

    def _stands(self, peer: PeerId) -> bool:
        return self._in_a_pool(peer) or any(one.peer == peer for one in self._heirs.known_members())

    def _in_a_pool(self, peer: PeerId) -> bool:
        named = any(chain.present(peer) is not None for chain in self._chains.values())
        return named and not self._is_out(peer)

    def _is_out(self, peer: PeerId) -> bool:
        """Say whether `peer` is revoked, and not because it has another key by now."""
        return peer in self._revoked() and self._heirs.heir(peer) == peer


class _Lapsing:
    """Peers that are kept for so long, each from when it was kept last; `until` says until when, in order."""

    def __init__(self, for_ms: int) -> None:
        self.until: dict[PeerId, int] = {}
        self._for_ms = for_ms

    @property
    def deadline(self) -> int | None:
        return next(iter(self.until.values()), None)

    def keep(self, peer: PeerId, now: Instant) -> list[PeerId]:
        """Keep one more; return who has to go for it."""
        self.until.pop(peer, None)
        self.until[peer] = now.monotonic_ms + self._for_ms
        return [self._first()] if len(self.until) > MAX_KEPT else []

    def lapsed(self, now: Instant) -> list[PeerId]:
        """Forget those whose time is over, and return them."""
        gone = []
        while self.until and next(iter(self.until.values())) <= now.monotonic_ms:
            gone.append(self._first())
        return gone

    def _first(self) -> PeerId:
        peer = next(iter(self.until))
        del self.until[peer]
        return peer
