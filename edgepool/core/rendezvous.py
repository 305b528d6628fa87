"""Rendezvous at coordinators: how peers find each other that have moved since their pool was formed [S3.6].

Each peer tells the coordinators that it trusts, when a link to one stands, where it can be dialled. A
coordinator keeps that as long as the link stands and KEPT_MS longer, and hands it to those who have a pool in
common with that peer: to each when its link comes up, and when somebody says something new. What the pool
itself says already is not told, so that nothing is sent in a plant where nobody has moved.

A coordinator can keep silent, but invent nothing: each record is signed by the peer that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from msgspec.structs import replace

from edgepool.core.chain import Chain
from edgepool.core.directory import ChainDirectory
from edgepool.core.machine import Effect, Instant, Misbehaved, Notify, Send, WantLink
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.message import MAX_TOLD, Hello, Reachable
from edgepool.model.pool import Member
from edgepool.model.whereabouts import MAX_ADDRESSES, Whereabouts, sign_whereabouts

KEPT_MS = 24 * 3_600_000
"""So long a coordinator remembers where a peer was whose link is gone."""
MAX_KEPT = 1024
"""Of so many peers is it known where they are; of those without a link the first that lapses goes."""
WORDS_OF_A_LINK = 16
"""So often a peer may say on one link where it is: once, and again if it moves or its clock went back."""


class Rendezvous:
    """Both sides of it, for one peer. `directory` and `revoked` are looked at, never changed.

    `coordinators` are those who are trusted at any time; others may take their places.
    """

    def __init__(
        self,
        signer: Signer,
        network: str,
        coordinators: Collection[PeerId],
        directory: ChainDirectory,
        revoked: Callable[[], Collection[PeerId]],
    ) -> None:
        self.addresses: tuple[str, ...] = ()
        """Where this peer can be dialled; set before anything else, and by `moved`."""
        self.said: dict[PeerId, tuple[str, ...]] = {}
        """Where those who are linked say that they can be dialled."""
        self._signer = signer
        self._network = network
        self._coordinators = coordinators
        self._chains = directory.chains
        self._linked = directory.connected_peers
        self._revoked = revoked
        self._kept: dict[PeerId, Whereabouts] = {}
        # When records of peers without a link are forgotten, in monotonic ms, the first that lapses first.
        self._lapsing: dict[PeerId, int] = {}
        self._words: dict[PeerId, int] = {}
        self._number = 0

    @property
    def deadline(self) -> int | None:
        """When something is to be forgotten."""
        return next(iter(self._lapsing.values()), None)

    def wake(self, now: Instant) -> None:
        """Forget what has lapsed."""
        while self._lapsing and next(iter(self._lapsing.values())) <= now.monotonic_ms:
            self._forget(next(iter(self._lapsing)))

    # --- what is known ------------------------------------------------------------------------

    def where_now(self, member: Member) -> Member:
        """Return a member with the addresses that it has said last before those that its pool knows."""
        record = self._kept.get(member.peer)
        said = (*self.said.get(member.peer, ()), *(record.addresses if record is not None else ()))
        if not said:
            return member
        return replace(member, addresses=tuple(dict.fromkeys((*said, *member.addresses)))[:MAX_ADDRESSES])

    def of_chain(self, chain: Chain) -> tuple[Whereabouts, ...]:
        """Return what is known of the people of a chain, by peer id; nothing of those who are revoked."""
        revoked = self._revoked()
        people = sorted(peer for peer in chain.people if peer in self._kept and peer not in revoked)
        return tuple(self._kept[peer] for peer in people)

    # --- events -------------------------------------------------------------------------------

    def peer_up(self, peer: PeerId, now: Instant) -> list[Effect]:
        """A link stands: say where we are, to a coordinator signed so that it can tell others."""
        self._words[peer] = 0
        self._lapsing.pop(peer, None)
        effects: list[Effect] = [Send(peer, Hello(self.addresses))]
        if peer in self._coordinators and self.addresses:
            effects.append(self._own(peer, now))
        return effects

    def followed(self, heir: PeerId, now: Instant) -> list[Effect]:
        """A key has the place of one that the settings name: if it is a coordinator's, say where we are."""
        is_new = heir in self._coordinators and heir in self._linked
        return [self._own(heir, now)] if is_new and self.addresses else []

    def moved(self, addresses: tuple[str, ...], now: Instant) -> list[Effect]:
        """This peer can be dialled elsewhere by now: say so to all who are linked."""
        self.addresses = addresses
        return [*(Send(peer, Hello(addresses)) for peer in self._linked), *self._own_to_all(now)]

    def peer_down(self, peer: PeerId, now: Instant) -> None:
        """The link is gone: from now on, what is known of the peer ages."""
        self.said.pop(peer, None)
        self._words.pop(peer, None)
        self._lapsing.pop(peer, None)
        if peer in self._kept:
            self._lapsing[peer] = now.monotonic_ms + KEPT_MS

    def tell(self, peer: PeerId) -> list[Effect]:
        """As a coordinator, tell a linked peer where its partners are, as far as its pools do not say."""
        if self._signer.peer not in self._coordinators or peer not in self._linked:
            return []
        news: dict[PeerId, Whereabouts] = {}
        for chain in self._common(peer):
            for record in self.of_chain(chain):
                if record.peer != peer and record.addresses != chain.people[record.peer].addresses:
                    news[record.peer] = record
        every = tuple(news.values())
        return [Send(peer, Reachable(every[i : i + MAX_TOLD])) for i in range(0, len(every), MAX_TOLD)]

    def receive(self, peer: PeerId, message: Hello | Reachable, now: Instant) -> list[Effect]:
        """Take what a peer says of itself, or a coordinator of others."""
        if isinstance(message, Hello):
            self.said[peer] = message.addresses
            return []
        serves = self._signer.peer in self._coordinators
        if serves and (peer not in self._coordinators or message.records[0].peer == peer):
            return self._registered(peer, message, now)
        if peer in self._coordinators:
            return [effect for record in message.records for effect in self._told(record, now)]
        return []

    # --- at the coordinator -------------------------------------------------------------------

    def _registered(self, peer: PeerId, message: Reachable, now: Instant) -> list[Effect]:
        """Keep what a linked peer says of itself, and pass it on to its partners."""
        self._words[peer] = self._words.get(peer, 0) + 1
        record = message.records[0]
        if self._words[peer] > WORDS_OF_A_LINK:
            return [Notify(Misbehaved(peer, "says again and again where it is"))]
        if len(message.records) > 1 or record.peer != peer or not record.authentic(self._network):
            return [Notify(Misbehaved(peer, "says where others are, or without its own signature"))]
        known = self._kept.get(peer)
        if known is not None and known.number > record.number:
            # Its clock has gone back: with what it sees it makes a number that others take for newer.
            return [Send(peer, Reachable((known,)))]
        if not self._keep(record, now) or (known is not None and known.addresses == record.addresses):
            return []
        moved = [
            chain
            for chain in self._common(peer)
            if known is not None or record.addresses != chain.people[peer].addresses
        ]
        others = dict.fromkeys(other for chain in moved for other in chain.people)
        told = [other for other in others if other in self._linked and other != peer]
        return [*self._wanted(peer), *[Send(other, Reachable((record,))) for other in told]]

    def _wanted(self, peer: PeerId) -> list[Effect]:
        """Ask for a link to a peer that some pool of ours has, where it is now."""
        present = [member for chain in self._chains.values() if (member := chain.present(peer))]
        return [WantLink(self.where_now(present[-1]))] if present else []

    def _common(self, peer: PeerId) -> Iterator[Chain]:
        return (chain for chain in self._chains.values() if peer in chain.people)

    # --- at the others ------------------------------------------------------------------------

    def _told(self, record: Whereabouts, now: Instant) -> list[Effect]:
        """Take a coordinator's word for where somebody is, who has signed it."""
        peer = record.peer
        known = self._number if peer == self._signer.peer else self._number_of(peer)
        if record.number <= known or peer in self._revoked():
            return []
        if peer != self._signer.peer and not any(chain.present(peer) for chain in self._chains.values()):
            return []
        if not record.authentic(self._network):
            return []
        if peer == self._signer.peer:
            # An earlier word of ours, from before our clock went back: the next one is to count.
            self._number = min(record.number, 2**53 - 1)
            return self._own_to_all(now)
        return self._wanted(peer) if self._keep(record, now) else []

    def _number_of(self, peer: PeerId) -> int:
        record = self._kept.get(peer)
        return -1 if record is None else record.number

    def _own_to_all(self, now: Instant) -> list[Effect]:
        linked = [peer for peer in self._coordinators if peer in self._linked]
        return [self._own(peer, now) for peer in linked] if self.addresses else []

    def _own(self, coordinator: PeerId, now: Instant) -> Effect:
        self._number = max(self._number + 1, now.wall_ms)
        own = sign_whereabouts(self._signer, self._network, self.addresses, self._number)
        return Send(coordinator, Reachable((own,)))

    # --- the table ----------------------------------------------------------------------------

    def _keep(self, record: Whereabouts, now: Instant) -> bool:
        """Keep a record; False if there is no room, since all others are of linked peers."""
        peer = record.peer
        if peer not in self._kept and len(self._kept) >= MAX_KEPT:
            if not self._lapsing:
                return False
            self._forget(next(iter(self._lapsing)))
        self._kept[peer] = record
        self._lapsing.pop(peer, None)
        if peer not in self._linked:
            self._lapsing[peer] = now.monotonic_ms + KEPT_MS
        return True

    def _forget(self, peer: PeerId) -> None:
        del self._kept[peer], self._lapsing[peer]
