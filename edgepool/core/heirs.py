"""Which key has the place of one that this peer's settings name, by now [S3.6].

Settings name keys, and keys change. A peer that has changed its key says on each link which keys it had
before (model/lineage.py); the chains of this peer say the same of their people. `Heirs` keeps both, for the
keys that the settings name and those that have followed them, and whose word is taken for a coordinator's.

What a chain has decided counts before what somebody says. Of several that say they follow one key the first
is believed, as long as this peer runs: who has got hold of a former key displaces nobody.

A coordinator's key changes on one chain after the other. So a former key that only chains speak of is trusted
beside its heir until it is revoked, or the heir speaks for itself, which it does when all chains are done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from edgepool.config import PeerSettings
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import Effect, KeySucceeded, Misbehaved, Notify, Send, WantLink
from edgepool.core.rights import Subject
from edgepool.errors import DecodeError
from edgepool.model.ids import PeerId, short, split_address
from edgepool.model.lineage import Line, Lineage, line_problem
from edgepool.model.pool import Member

MAX_FOLLOWED = 4096
"""So many changes of keys are kept, of those that somebody says as of those that chains have decided."""


class Heirs:
    """The heirs of the keys that one peer, `me`, has in its settings; `line` is that of its own key."""

    def __init__(self, settings: PeerSettings, me: PeerId, line: Line = ()) -> None:
        self.coordinators: dict[PeerId, None] = {}
        """Whose word is taken for a coordinator's now: always this object."""
        self.line = line
        self._me = me
        self._settings = settings
        self._judges = {PeerId(peer): None for peer in settings.coordinators}
        if settings.role == "coordinator":
            self._judges[me] = None
        self._named = self._judges | dict.fromkeys(_others_named(settings))
        # Which key follows which: as somebody says who is linked, and as chains have decided.
        self._said = {PeerId(one.former): PeerId(one.heir) for one in line}
        self._decided: dict[PeerId, PeerId] = {}
        self._revoked: frozenset[PeerId] = frozenset()
        self._heard: dict[PeerId, Line] = {}
        self._renew()

    # --- what is known ------------------------------------------------------------------------

    def heir(self, peer: PeerId) -> PeerId:
        """Return the key that has the place of `peer` by now, itself if none has followed it."""
        *_, last = self._line_of(peer)
        return last

    def of_address(self, address: str) -> str:
        """Return an address with the keys that have the places of those in it; at most two stand in one."""
        parts = address.split("/")
        for place in range(1, len(parts)):
            if parts[place - 1] == "p2p":
                parts[place] = self.heir(PeerId(parts[place]))
        return "/".join(parts)

    def known_members(self) -> tuple[Member, ...]:
        """Return whom to keep a link to from the start, under the keys that they have by now.

        The settings were checked before.
        """
        settings, members = self._settings, list[Member]()
        for known in settings.known_peers:
            address = self.of_address(known.address)
            peer = split_address(address).peer
            assert peer is not None
            members.append(Member(peer, known.name, "", (address,)))
        if settings.transport != "tls" and settings.libp2p.mdns:
            named = [self._me, *(member.peer for member in members)]
            # The local network may say where they are.
            members += [Member(one, short(one), "", ()) for one in self.coordinators if one not in named]
        return tuple(members)

    # --- what is heard ------------------------------------------------------------------------

    def peer_up(self, peer: PeerId) -> list[Effect]:
        """A link stands: say which keys this peer had before."""
        self._heard.pop(peer, None)
        return [Send(peer, Lineage(self.line))] if self.line else []

    def peer_down(self, peer: PeerId) -> None:
        """The link is gone; what was said on it stays believed."""
        self._heard.pop(peer, None)

    def receive(self, subject: Subject, message: Lineage) -> list[Effect]:
        """Take what a linked peer, who is `subject` by its certificate, says of its former keys."""
        peer, line = subject.peer, message.line
        if self._heard.get(peer) == line:
            return []  # it may have been under way when the link was made anew
        if peer in self._heard:
            return [Notify(Misbehaved(peer, "says again and again which keys it had before"))]
        self._heard[peer] = line
        first = next((place for place, one in enumerate(line) if self._stands_for(one.former)), None)
        if first is None:
            return []  # of nobody whom we know by that key
        problem = line_problem(line, self._settings.network, peer)
        if problem:
            return [Notify(Misbehaved(peer, problem))]
        news = {PeerId(one.former): PeerId(one.heir) for one in line[first:]}
        if subject.role != "coordinator" and any(self._is_judge(former) for former in news):
            return [Notify(Misbehaved(peer, "is no coordinator, and says that it was one"))]
        if any(self.heir(former) not in (former, *news.values()) for former in news) or self._me in news:
            return []  # somebody else has that place
        if any(former in self._revoked and former not in self._decided for former in news):
            return []  # it was stolen: of whose key changed in peace, the chain says so
        return self._take(self._said, news)

    def follow(self, state: ChainState, revoked: Collection[PeerId]) -> list[Effect]:
        """Take in whose keys a chain of this peer's has changed, and who is revoked on all of them."""
        if len(revoked) != len(self._revoked):
            self._revoked = frozenset(revoked)
            self._renew()
        changes = [(one.former, one.heir) for one in state.successions]
        return [effect for former, heir in changes for effect in self.succeeded(former, heir)]

    def succeeded(self, former: PeerId, heir: PeerId) -> list[Effect]:
        """A chain of this peer's has decided that `heir` follows `former`."""
        if former == self._me or former in self._decided or former == heir:
            return []
        return self._take(self._decided, {former: heir})

    # --- the table ------------------------------------------------------------------------------

    def _take(self, table: dict[PeerId, PeerId], news: Mapping[PeerId, PeerId]) -> list[Effect]:
        before = {former: self.heir(former) for former in (*self._named, *news)}
        old = dict(table)
        table.update(news)
        if len(table) > MAX_FOLLOWED or any(self._runs_in_a_circle(former) for former in news):
            table.clear()
            table.update(old)
            return []
        self._renew()
        changed = {former: self.heir(former) for former, heir in before.items() if self.heir(former) != heir}
        known = {member.peer: member for member in self.known_members()}
        effects: list[Effect] = []
        for former, heir in changed.items():
            effects.append(Notify(KeySucceeded(former, heir)))
            if heir in known:
                effects.append(WantLink(known[heir], former))
        return effects

    def _runs_in_a_circle(self, start: PeerId) -> bool:
        seen = set[PeerId]()
        for key in self._line_of(start):
            if key in seen:
                return True
            seen.add(key)
        return False

    def _line_of(self, peer: PeerId) -> Iterator[PeerId]:
        """Yield `peer`, and those that have followed it one after the other."""
        following: PeerId | None = peer
        while following is not None:
            yield following
            following = self._decided.get(following) or self._said.get(following)

    def _stands_for(self, peer: PeerId) -> bool:
        return peer in _all_of(map(self._line_of, self._named))

    def _is_judge(self, peer: PeerId) -> bool:
        return peer in _all_of(map(self._line_of, self._judges))

    def _renew(self) -> None:
        self.coordinators.clear()
        for judge in self._judges:
            *formers, last = self._line_of(judge)
            going = [one for one in formers if one not in self._said and one not in self._revoked]
            self.coordinators.update(dict.fromkeys((*going, last)))


def _all_of(lines: Iterable[Iterator[PeerId]]) -> Iterator[PeerId]:
    return (peer for line in lines for peer in line)


def _others_named(settings: PeerSettings) -> Iterator[PeerId]:
    """Yield the peers that stand in addresses of the settings; what is no address names nobody."""
    known = [one.address for one in settings.known_peers]
    for address in (*known, *settings.conduits, *settings.libp2p.relays):
        try:
            found = split_address(address)
        except DecodeError:
            continue
        yield from (peer for peer in (found.conduit, found.peer) if peer is not None)
