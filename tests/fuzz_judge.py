"""What honest members owe each other, whatever the hostile say; every breach is told as Broken.

Nobody honest signs two values, no two of them see different blocks or states, none of them is accused,
convicted or sent away, the roster changes only for a reason, and no data is believed that no pool has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fuzz_world import COORDINATOR, FOREIGN_BLOCKS, GENESES, HONEST, KEYS_OF

from edgepool.core.chain import Chain
from edgepool.core.machine import RankedOffer
from edgepool.model.block import CertifiedBlock
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import MembershipChange, SignedRecord
from edgepool.model.trust import RevokePeer, TrustChange
from edgepool.model.vote import Equivocation

K = TypeVar("K")
V = TypeVar("V")
KNOWN = (*HONEST, *KEYS_OF)
GUARDED = tuple(genesis.chain for genesis in GENESES)
"""The chains of which most members are honest."""


class Broken(AssertionError):
    """An honest node did what no honest node may do."""


class Judge:
    """Watches one cell. `manual` says that members do not approve what the coordinator wants."""

    def __init__(self, *, manual: bool) -> None:
        self.manual = manual
        self.wanted: dict[tuple[str, str], None] = {}
        """Who is to go and who is to come by the wish of an honest member's owner."""
        self._said: dict[tuple[PeerId, ChainId, int, int, int], bytes] = {}
        self._stood: dict[tuple[ChainId, int], bytes] = {}
        self._roots: dict[tuple[ChainId, int], bytes] = {}
        self._genuine: dict[bytes, None] = dict.fromkeys(one.block.header.id for one in FOREIGN_BLOCKS)
        self._authors: dict[tuple[ChainId, MembershipChange], list[PeerId]] = {}
        self._revoked: dict[PeerId, None] = {}
        self._accused: dict[tuple[ChainId, PeerId], None] = {}

    def says(self, peer: PeerId, chain: ChainId, kind: int, place: tuple[int, int], value: bytes) -> None:
        """Note what an honest member has signed at a (height, round); it must be the first time."""
        if keep(self._said, (peer, chain, kind, *place), value, 4096) != value:
            raise Broken(f"two values signed at height and round {place}, kind {kind}")

    def blames(self, blamed: PeerId, reason: str) -> None:
        """Only the hostile are to be blamed."""
        if blamed in HONEST:
            raise Broken(f"an honest member is blamed: {reason}")

    def commits(self, certified: CertifiedBlock) -> None:
        """A block stands for an honest member: no other may at that height."""
        header = certified.block.header
        if keep(self._stood, (header.chain, header.height), header.id, 4096) != header.id:
            raise Broken(f"two blocks stand at height {header.height}")
        keep(self._genuine, header.id, None, 20_000)
        for signed in certified.block.records:
            body, author = signed.record.body, signed.record.author
            if isinstance(body, MembershipChange):
                keep(self._authors, (header.chain, body), [], 1024).append(author)
            elif isinstance(body, TrustChange) and isinstance(body.step, RevokePeer):
                keep(self._revoked, PeerId(body.step.peer), None)
            elif isinstance(body, Equivocation):
                keep(self._accused, (header.chain, body.member), None)

    def looks_at(self, chain: Chain) -> None:
        """See whether an honest member's chain is as it must be, after anything has happened to it."""
        if chain.id not in GUARDED:
            return
        state = chain.state
        if keep(self._roots, (chain.id, state.height), state.root, 1024) != state.root:
            raise Broken(f"two states at height {state.height}")
        staying = [member.peer for member in state.next_roster]
        for peer in HONEST:
            if peer in state.convicted():
                raise Broken("an honest member is convicted")
            if peer not in staying:
                raise Broken("an honest member is excluded")
            if state.trust.is_revoked(peer):
                raise Broken("an honest member is revoked")
        if any(peer not in KNOWN for peer in staying):
            raise Broken("somebody is a member who has never agreed")
        if state.pending_change is not None and not self._reason(chain.id, state.pending_change):
            raise Broken("members have changed without a reason")

    def believes(self, found: Sequence[RankedOffer]) -> None:
        """An honest member takes these offers for true."""
        for offer in found:
            proof = offer.proof
            if proof.header.id not in self._genuine or not proof.record.authentic():
                raise Broken("an offer is believed that no pool has on its chain")

    def confirms(self, record: SignedRecord) -> None:
        """An honest member takes this for its holder's confirmation."""
        if not record.authentic():
            raise Broken("a forged confirmation is believed")

    def _reason(self, chain: ChainId, change: MembershipChange) -> bool:
        authors = self._authors.get((chain, change), [])
        coming = change.incoming.peer if change.incoming is not None else ""
        return (
            (not self.manual and COORDINATOR.peer in authors)
            or change.outgoing in authors
            or change.outgoing in self._revoked
            or (chain, change.outgoing) in self._accused
            or (change.outgoing, coming) in self.wanted
        )


def keep(memory: dict[K, V], key: K, value: V, most: int = 64) -> V:
    """Return what is remembered under `key`, now `value` if nothing was; the oldest is forgotten."""
    if len(memory) > most:
        del memory[next(iter(memory))]
    return memory.setdefault(key, value)
