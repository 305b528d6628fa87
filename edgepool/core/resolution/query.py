"""Algorithm 2: who has the data? [S3.13, node query; S3.14]

A peer looks in its main chains, then in its sub-chains; only if nothing is there does it ask the
connected members of its pools, who do the same in chains that nobody on the way has looked in, and
so on outward. A search keeps its id all the way, so that a peer which is reached by two ways asks
on only once; the second time it answers at once from its own chains. Every peer on the way waits
for a share of its asker's budget, so answers come back before the asker gives up.

No offer of another peer counts before its proof has been checked, by whoever passes it on too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from edgepool.core.deadlines import earliest
from edgepool.core.machine import Effect, Failed, FindData, Instant, Misbehaved, Notify, Send
from edgepool.core.resolution.directory import Directory
from edgepool.model.codec import encode
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import MAX_OFFERS, MAX_VISITED, OfferProof, Query, QueryAnswer
from edgepool.model.record import DataOffer
from edgepool.model.twin import DataKey

T = TypeVar("T")

FIRST_HOPS = 3
"""How often the question of a searching peer is passed outward by others."""
MAX_BUDGET_MS = 60_000
ANSWER_BYTES = 1024 * 1024
"""An answer with more than one offer is not longer, so that it fits into a frame."""
_MIN_BUDGET_MS = 10
_MAX_GATHERED = 64


@dataclass(frozen=True, slots=True)
class Found:
    """An own search has ended with `offers`, perhaps none, which are proven."""

    query: int
    ticket: int
    offers: tuple[OfferProof, ...]
    give_up_ms: int
    purpose: str


class Gathered:
    """Offers that fit a question, each holder and root once; of version 0 only the newest."""

    def __init__(self, key: DataKey, version: int) -> None:
        self.key = key
        self.version = version
        self._offers: dict[tuple[PeerId, bytes], tuple[int, OfferProof]] = {}

    @property
    def offers(self) -> tuple[OfferProof, ...]:
        """The proofs, nearest first."""
        return tuple(proof for _, proof in self._offers.values())

    def answers(self, proof: OfferProof) -> bool:
        """Say whether `proof` is about an offer of the key and version that were asked for."""
        offer = proof.record.record.body
        if not isinstance(offer, DataOffer) or offer.key != self.key:
            return False
        return self.version in (0, offer.version)

    def wants(self, proof: OfferProof) -> bool:
        """Say whether `proof`, if true, adds to what is known."""
        offer = proof.record.record.body
        assert isinstance(offer, DataOffer)
        newest = next(iter(self._offers.values()), (0,))[0]
        if offer.version != newest:
            return offer.version > newest
        holder = proof.record.record.author
        return (holder, offer.root) not in self._offers and len(self._offers) < _MAX_GATHERED

    def add(self, proof: OfferProof) -> None:
        """Keep `proof`, which is wanted and true."""
        offer = proof.record.record.body
        assert isinstance(offer, DataOffer)
        if self._offers and next(iter(self._offers.values()))[0] < offer.version:
            self._offers.clear()
        self._offers[proof.record.record.author, offer.root] = (offer.version, proof)


@dataclass(slots=True)
class _Search:
    """A search under way, for this peer's owner (`asker` None) or on behalf of `asker`."""

    asker: PeerId | None
    ticket: int
    deadline_ms: int
    give_up_ms: int
    gathered: Gathered
    visited: dict[ChainId, None]
    waiting: dict[PeerId, None]
    purpose: str = ""


class Searches:
    """All searches that this peer takes part in, at most `limit` own and `limit` for others."""

    def __init__(
        self, *, own: PeerId, directory: Directory, check_proof: Callable[[OfferProof], str], limit: int
    ) -> None:
        self._own = own
        self._directory = directory
        self._check_proof = check_proof
        self._limit = limit
        self._searches: dict[int, _Search] = {}
        self._seen: dict[tuple[int, PeerId], None] = {}
        self._asked_on: dict[int, None] = {}

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        return earliest(*[search.deadline_ms for search in self._searches.values()])

    def begin(self, query: int, ticket: int, command: FindData, now: Instant) -> list[Effect | Found]:
        """Search for this peer's owner; Found comes at once, or from a later call.

        A quarter of the budget, at most 1 s, is left for the network status query that follows.
        """
        budget_ms = max(0, min(command.budget_ms, MAX_BUDGET_MS))
        search_ms = budget_ms - min(1_000, budget_ms // 4)
        search = _Search(
            asker=None,
            ticket=ticket,
            deadline_ms=now.monotonic_ms + search_ms,
            give_up_ms=now.monotonic_ms + budget_ms,
            gathered=Gathered(command.key, command.version),
            visited={},
            waiting={},
            purpose=command.purpose,
        )
        outward = self._look(search, ())
        self._remember(self._asked_on, query)
        hops_left = FIRST_HOPS if search_ms >= _MIN_BUDGET_MS else -1
        effects = self._ask_on(query, search, outward, hops_left, search_ms)
        own = [number for number, other in self._searches.items() if other.asker is None]
        if len(own) > self._limit:
            oldest = self._searches.pop(own[0])
            reason = f"the search was given up for newer ones: {self._limit} can run at a time"
            effects.append(Notify(Failed(oldest.ticket, reason, refused=False)))
        return effects

    def receive_query(self, peer: PeerId, message: Query, now: Instant) -> list[Effect | Found]:
        """Answer `peer` from the own chains, or ask on and answer later."""
        if (message.query, peer) in self._seen:
            return []
        self._remember(self._seen, (message.query, peer))
        share_ms = message.budget_ms * 4 // 5
        search = _Search(
            asker=peer,
            ticket=0,
            deadline_ms=now.monotonic_ms + share_ms,
            give_up_ms=now.monotonic_ms + share_ms,
            gathered=Gathered(message.key, message.version),
            visited=dict.fromkeys(message.visited),
            waiting={},
        )
        outward = self._look(search, (peer,))
        hops_left = message.hops_left - 1
        again = message.query in self._asked_on or message.query in self._searches
        if again or share_ms < _MIN_BUDGET_MS or self._has_enough_of(peer):
            hops_left = -1
        self._remember(self._asked_on, message.query)
        return self._ask_on(message.query, search, outward, hops_left, share_ms)

    def receive_answer(self, peer: PeerId, message: QueryAnswer, now: Instant) -> list[Effect | Found]:
        """Take what `peer` found; only an answer that is waited for counts."""
        search = self._searches.get(message.query)
        if search is None or peer not in search.waiting:
            return []
        problem = self._gather(search.gathered, message.offers)
        effects: list[Effect | Found] = [Notify(Misbehaved(peer, problem))] if problem else []
        search.visited.update(dict.fromkeys(message.visited[: MAX_VISITED - len(search.visited)]))
        return effects + self._no_longer_waiting(message.query, search, peer)

    def peer_down(self, peer: PeerId) -> list[Effect | Found]:
        """Wait no longer for `peer`, and search no longer for it."""
        effects: list[Effect | Found] = []
        for query, search in list(self._searches.items()):
            if search.asker == peer:
                del self._searches[query]
            elif peer in search.waiting:
                effects += self._no_longer_waiting(query, search, peer)
        return effects

    def wake(self, now: Instant) -> list[Effect | Found]:
        """End the searches whose time is over with what they have."""
        effects: list[Effect | Found] = []
        for query, search in list(self._searches.items()):
            if search.deadline_ms <= now.monotonic_ms:
                effects += self._end(query, search)
        return effects

    def _look(self, search: _Search, without: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
        """Look in the own chains that are not visited; return whom to ask on if nothing is there."""
        directory, gathered = self._directory, search.gathered
        chains = [
            chain for chain in directory.main_chains() + directory.sub_chains() if chain not in search.visited
        ]
        neighbours: dict[PeerId, None] = {}
        for chain in chains:
            outward = search.asker is not None
            for proof in directory.offers(chain, gathered.key, gathered.version, outward=outward):
                if gathered.wants(proof):
                    gathered.add(proof)
            neighbours.update(dict.fromkeys(directory.neighbours(chain)))
        search.visited.update(dict.fromkeys(chains[: MAX_VISITED - len(search.visited)]))
        return tuple(peer for peer in neighbours if peer != self._own and peer not in without)

    def _ask_on(
        self,
        query: int,
        search: _Search,
        outward: tuple[PeerId, ...],
        hops_left: int,
        budget_ms: int,
    ) -> list[Effect | Found]:
        if search.gathered.offers or not outward or hops_left < 0:
            return self._end(query, search)
        search.waiting = dict.fromkeys(outward)
        self._searches[query] = search
        key, version = search.gathered.key, search.gathered.version
        question = Query(query, key, version, hops_left, budget_ms, tuple(search.visited))
        return [Send(peer, question) for peer in outward]

    def _gather(self, gathered: Gathered, offers: Iterable[OfferProof]) -> str:
        """Keep the offers that are wanted and true; say what is wrong with the first that is not."""
        first_problem = ""
        for proof in offers:
            if not gathered.answers(proof):
                problem = "it answers with an offer of other data"
            elif not gathered.wants(proof):
                continue
            else:
                problem = self._check_proof(proof)
                if problem:
                    problem = f"it answers with an offer that is not proven: {problem}"
                else:
                    gathered.add(proof)
            first_problem = first_problem or problem
        return first_problem

    def _no_longer_waiting(self, query: int, search: _Search, peer: PeerId) -> list[Effect | Found]:
        del search.waiting[peer]
        return [] if search.waiting else self._end(query, search)

    def _end(self, query: int, search: _Search) -> list[Effect | Found]:
        if self._searches.get(query) is search:
            del self._searches[query]
        if search.asker is None:
            return [Found(query, search.ticket, search.gathered.offers, search.give_up_ms, search.purpose)]
        answer = QueryAnswer(query, _fitting(search.gathered.offers), tuple(search.visited))
        return [Send(search.asker, answer)]

    def _has_enough_of(self, peer: PeerId) -> bool:
        """Say whether no more is asked on for `peer`, who may use an eighth of the room at most."""
        askers = [search.asker for search in self._searches.values() if search.asker is not None]
        return len(askers) >= self._limit or askers.count(peer) >= max(1, self._limit // 8)

    def _remember(self, memory: dict[T, None], item: T) -> None:
        memory[item] = None
        if len(memory) > 8 * self._limit:
            del memory[next(iter(memory))]


def _fitting(offers: tuple[OfferProof, ...]) -> tuple[OfferProof, ...]:
    """Return as many of `offers` as one answer may hold: proofs of large pools are large."""
    fitting: list[OfferProof] = []
    size_bytes = 0
    for offer in offers[:MAX_OFFERS]:
        size_bytes += len(encode(offer))
        if fitting and size_bytes > ANSWER_BYTES:
            break
        fitting.append(offer)
    return tuple(fitting)
