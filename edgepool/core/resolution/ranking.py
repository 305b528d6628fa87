"""Which holder first? Network status query and state scheduling [S3.13].

Each holder is asked how busy it is and whether it still has the data. Those that have it come
sorted by network load, processing load, round trip and peer id, so that equal answers give the
same order everywhere; those that did not answer in time come last, for they may yet be reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgepool.core.deadlines import earliest
from edgepool.core.machine import (
    Done,
    Effect,
    Failed,
    Instant,
    Notify,
    RankedOffer,
    Send,
    WantLink,
)
from edgepool.core.resolution.directory import Directory
from edgepool.model.ids import PeerId, short
from edgepool.model.message import LoadQuery, LoadReport, OfferProof
from edgepool.model.pool import Member
from edgepool.model.record import DataOffer

MAX_HOLDERS_ASKED = 8
STATUS_TIMEOUT_MS = 1_000


def rank(offers: Iterable[RankedOffer]) -> tuple[RankedOffer, ...]:
    """Return `offers` best first: reachable ones by load, then round trip, then peer id.

    Those that this peer may not have come last.
    """
    return tuple(
        sorted(
            offers,
            key=lambda offer: (
                bool(offer.refusal),
                not offer.reachable,
                offer.network_load_percent,
                offer.processing_load_percent,
                offer.round_trip_ms,
                offer.holder.peer,
            ),
        )
    )


@dataclass(slots=True)
class _StatusQuery:
    """Holders of one search: what is known of each offer; `waiting` has when each was asked.

    The time is None for a holder to which there is no link yet.
    """

    ticket: int
    purpose: str
    deadline_ms: int
    offers: dict[tuple[PeerId, bytes], RankedOffer]
    waiting: dict[tuple[PeerId, bytes], int | None]

    def question(self, number: int, holder: PeerId, root: bytes) -> LoadQuery:
        """Return what to ask the holder of an offer."""
        offer = self.offers[holder, root].proof.record.record.body
        assert isinstance(offer, DataOffer)
        return LoadQuery(number, offer.key, root, self.purpose)


class StatusQueries:
    """The network status queries of this peer's searches, at most `limit` at a time."""

    def __init__(self, *, own: PeerId, directory: Directory, limit: int) -> None:
        self._own = own
        self._directory = directory
        self._limit = limit
        self._queries: dict[int, _StatusQuery] = {}

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        return earliest(*[query.deadline_ms for query in self._queries.values()])

    def begin(
        self,
        number: int,
        ticket: int,
        proofs: tuple[OfferProof, ...],
        give_up_ms: int,
        now: Instant,
        purpose: str = "",
    ) -> list[Effect]:
        """Ask the holders of `proofs`; Done(ticket, tuple[RankedOffer, ...]) follows within 1 s.

        At most 8 holders are asked, connected ones first; the others count as not reached.
        """
        deadline_ms = min(now.monotonic_ms + STATUS_TIMEOUT_MS, give_up_ms)
        query = _StatusQuery(ticket, purpose, deadline_ms, {}, {})
        holders: dict[PeerId, Member] = {}
        for proof in proofs:
            offer = self._unreached(proof)
            root = _root(proof)
            if offer.holder.peer != self._own:
                holders[offer.holder.peer] = offer.holder
                query.offers[offer.holder.peer, root] = offer
            elif self._directory.holds(root):
                query.offers[self._own, root] = self._own_offer(offer)
        order = sorted(holders.values(), key=lambda holder: not self._directory.connected(holder.peer))
        effects: list[Effect] = []
        for holder in order[:MAX_HOLDERS_ASKED]:
            effects += self._ask(number, query, holder, now)
        self._queries[number] = query
        if len(self._queries) > self._limit:
            oldest = self._queries.pop(next(iter(self._queries)))
            reason = f"the search was given up for newer ones: {self._limit} can run at a time"
            effects.append(Notify(Failed(oldest.ticket, reason, refused=False)))
        return effects + self._end_if_complete(number)

    def receive_query(self, peer: PeerId, message: LoadQuery, now: Instant) -> list[Effect]:
        """Tell `peer` how busy this peer is, whether it holds the data, and whether `peer` may have it."""
        network_percent, processing_percent = self._directory.load()
        holds = self._directory.holds(message.root)
        refusal = ""
        if holds:
            wanted = (message.key, message.root, message.purpose)
            refusal = self._directory.admit(peer, *wanted, now.wall_ms)[1]
        loads = (network_percent, processing_percent)
        return [Send(peer, LoadReport(message.query, message.root, holds, *loads, refusal[:256]))]

    def receive_report(self, peer: PeerId, message: LoadReport, now: Instant) -> list[Effect]:
        """Take what a holder says of itself; only a report that is waited for counts."""
        query = self._queries.get(message.query)
        key = (peer, message.root)
        asked_ms = query.waiting.get(key) if query else None
        if query is None or asked_ms is None:
            return []
        del query.waiting[key]
        offer = query.offers.pop(key)
        if message.holds:
            query.offers[key] = RankedOffer(
                proof=offer.proof,
                holder=offer.holder,
                network_load_percent=message.network_load_percent,
                processing_load_percent=message.processing_load_percent,
                round_trip_ms=now.monotonic_ms - asked_ms,
                reachable=True,
                refusal=message.refusal,
            )
        return self._end_if_complete(message.query)

    def peer_up(self, peer: PeerId, now: Instant) -> list[Effect]:
        """Ask a holder to which there was no link."""
        effects: list[Effect] = []
        for number, query in self._queries.items():
            for holder, root in [key for key, asked_ms in query.waiting.items() if asked_ms is None]:
                if holder == peer:
                    query.waiting[holder, root] = now.monotonic_ms
                    effects.append(Send(peer, query.question(number, holder, root)))
        return effects

    def peer_down(self, peer: PeerId) -> list[Effect]:
        """Wait no longer for a holder that was asked and is gone."""
        effects: list[Effect] = []
        for number, query in list(self._queries.items()):
            for key in [key for key, asked_ms in query.waiting.items() if asked_ms is not None]:
                if key[0] == peer:
                    del query.waiting[key]
            effects += self._end_if_complete(number)
        return effects

    def wake(self, now: Instant) -> list[Effect]:
        """End the queries whose time is over."""
        effects: list[Effect] = []
        for number, query in list(self._queries.items()):
            if query.deadline_ms <= now.monotonic_ms:
                query.waiting.clear()
                effects += self._end_if_complete(number)
        return effects

    def _unreached(self, proof: OfferProof) -> RankedOffer:
        author = proof.record.record.author
        came = [handover.incoming for handover in proof.handovers if handover.incoming is not None]
        named = [member for member in (*proof.genesis.invitation.people(), *came) if member.peer == author]
        holder = self._directory.member(author) or (named[-1] if named else None)
        if holder is None:
            offer = proof.record.record.body
            assert isinstance(offer, DataOffer)
            holder = Member(author, short(author), "", (offer.address,) if offer.address else ())
        return RankedOffer(
            proof=proof,
            holder=holder,
            network_load_percent=100,
            processing_load_percent=100,
            round_trip_ms=0,
            reachable=False,
        )

    def _own_offer(self, offer: RankedOffer) -> RankedOffer:
        network_percent, processing_percent = self._directory.load()
        return RankedOffer(
            proof=offer.proof,
            holder=offer.holder,
            network_load_percent=network_percent,
            processing_load_percent=processing_percent,
            round_trip_ms=0,
            reachable=True,
        )

    def _ask(self, number: int, query: _StatusQuery, holder: Member, now: Instant) -> list[Effect]:
        roots = [root for peer, root in query.offers if peer == holder.peer]
        linked = self._directory.connected(holder.peer)
        for root in roots:
            query.waiting[holder.peer, root] = now.monotonic_ms if linked else None
        if not linked:
            return [WantLink(holder)]
        return [Send(holder.peer, query.question(number, holder.peer, root)) for root in roots]

    def _end_if_complete(self, number: int) -> list[Effect]:
        query = self._queries.get(number)
        if query is None or query.waiting:
            return []
        del self._queries[number]
        return [Notify(Done(query.ticket, rank(query.offers.values())))]


def _root(proof: OfferProof) -> bytes:
    offer = proof.record.record.body
    assert isinstance(offer, DataOffer)
    return offer.root
