"""What liars say of a ledger: evidence of what nobody did, unwanted changes, and states that are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from edgepool.core.chain import Chain
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import SavedSnapshot
from edgepool.model.crypto import HASH_BYTES, SIGNATURE_BYTES, Signer, sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Blocks, Message, Proposal, Records, SnapshotHead, SnapshotPage, Votes
from edgepool.model.pool import Member
from edgepool.model.record import (
    Body,
    DataDemand,
    MachiningRequirement,
    MembershipChange,
    SignedRecord,
    join_terms,
    sign_record,
)
from edgepool.model.succession import SUCCESSION_DOMAIN, succession_terms
from edgepool.model.trust import RevokePeer, TrustChange
from edgepool.model.twin import DataKey
from edgepool.model.vote import (
    NIL,
    PRECOMMIT,
    PREVOTE,
    Certificate,
    Equivocation,
    Said,
    Vote,
    equivocation,
    sign_vote,
)
from edgepool.sim import sizes

VOTES_KEPT = 400
CHANGES_KEPT = 50

_Place = tuple[PeerId, int, int, int]
"""Voter, kind, height and round of a vote."""


@dataclass(frozen=True, slots=True)
class Stolen:
    """A key that an honest peer had before; `after` says how high each chain was when that had changed it."""

    signer: Signer
    after: dict[ChainId, int]


def looted(stolen: Stolen, chain: Chain, draw: Random) -> SignedRecord:
    """Return a record by a former key: what whoever had it might have written, or its coordinator."""
    state, victim = chain.state, draw.choice(chain.state.members)
    task = MachiningRequirement(
        f"loot-{draw.random()}", "liner", 10, "milling", victim, 0, 1, 60, 0, 3_600_000
    )
    bodies: list[Body] = [
        DataDemand(DataKey("loot", "model"), 0, "", ""),
        MembershipChange(state.change_number, victim, None, b"", b"", ""),
        TrustChange(RevokePeer(victim), ""),
        task,
    ]
    terms = (state.network, chain.id, draw.choice(bodies), 1, draw.getrandbits(50), state.height)
    return sign_record(stolen.signer, *terms)


class FalseGovernance:
    """Makes records by which `signer` would have honest members convicted, excluded, or outnumbered.

    `friend` is a key that nobody trusts; `stolen` are former keys of others.
    """

    def __init__(
        self, signer: Signer, friend: Signer, network: str, random: Random, stolen: Sequence[Stolen] = ()
    ) -> None:
        self._stolen = stolen
        self._signer = signer
        self._friend = friend
        self._network = network
        self._random = random
        self._votes: dict[ChainId, dict[_Place, Vote]] = {}
        self._changes: list[MembershipChange] = []

    def heard(self, message: Message) -> None:
        """Remember votes, and what was said of members."""
        match message:
            case Votes(chain, votes):
                kept = self._votes.setdefault(chain, {})
                for vote in votes:
                    kept[vote.voter, vote.kind, vote.height, vote.round] = vote
                while len(kept) > VOTES_KEPT:
                    del kept[next(iter(kept))]
            case Records(_, records):
                self._remember(records)
            case Proposal():
                self._remember(message.block.records)
            case Blocks(_, blocks):
                for certified in blocks:
                    self._remember(certified.block.records)
            case _:
                pass

    def record(self, chain: Chain) -> SignedRecord:
        """Return a record that must not stand, or come to nothing."""
        draw = self._random
        if self._stolen and draw.random() < 0.2:
            return looted(draw.choice(self._stolen), chain, draw)
        makers = [self._one_value, self._two_chains, self._not_signed, self._unwilling]
        if chain.state.coordinator != self._signer.peer:
            # What the coordinator proposes, honest members approve: it is trusted in this.
            makers += [self._replayed, self._unwanted, self._accomplice, self._usurper, self._framed]
        if self._stolen:
            makers.append(self._with_a_former_key)
        body = draw.choice(makers)(chain) or self._unwilling(chain)
        height, nonce = chain.state.height, draw.getrandbits(50)
        return sign_record(self._signer, self._network, chain.id, body, 1, nonce, height)

    def _remember(self, records: tuple[SignedRecord, ...]) -> None:
        for signed in records:
            body = signed.record.body
            if isinstance(body, MembershipChange) and body not in self._changes:
                self._changes = [*self._changes, body][-CHANGES_KEPT:]

    def _one_value(self, chain: Chain) -> Body | None:
        """Evidence of a vote that somebody has signed once."""
        vote = self._vote(chain)
        if vote is None:
            return None
        said = Said(vote.block_id, -1, vote.signature)
        return Equivocation(vote.voter, vote.kind, vote.height, vote.round, said, said)

    def _two_chains(self, chain: Chain) -> Body | None:
        """Evidence of two votes that somebody has signed for two chains."""
        here = self._votes.get(chain.id, {})
        for other, votes in self._votes.items():
            places = [at for at, vote in votes.items() if at in here and here[at].block_id != vote.block_id]
            if other != chain.id and places:
                at = self._random.choice(places)
                both = [Said(vote.block_id, -1, vote.signature) for vote in (here[at], votes[at])]
                return equivocation(*at, (both[0], both[1]))
        return None

    def _not_signed(self, chain: Chain) -> Body | None:
        """Evidence of which the accused has signed one half."""
        vote = self._vote(chain)
        if vote is None:
            return None
        other = self._random.randbytes(HASH_BYTES)
        forged = sign_vote(self._signer, self._network, chain.id, vote.kind, vote.height, vote.round, other)
        both = (Said(vote.block_id, -1, vote.signature), Said(other, -1, forged.signature))
        return equivocation(vote.voter, vote.kind, vote.height, vote.round, both)

    def _replayed(self, chain: Chain) -> Body | None:
        """A change that was said before, perhaps under an earlier number or on another chain."""
        return self._random.choice(self._changes) if self._changes else None

    def _unwilling(self, chain: Chain) -> Body:
        """Somebody is to come who has not agreed."""
        draw = self._random
        forged = draw.randbytes(SIGNATURE_BYTES)
        tip, number = draw.randbytes(HASH_BYTES), chain.state.change_number
        return MembershipChange(number, PeerId(""), self._stranger(), tip, forged, "")

    def _unwanted(self, chain: Chain) -> Body:
        """Somebody is to leave whom nobody else wants to."""
        victim = self._random.choice(chain.state.members)
        return MembershipChange(chain.state.change_number, victim, None, b"", b"", "")

    def _accomplice(self, chain: Chain) -> Body:
        """A second key of this member's own is to come."""
        member, number = self._stranger(), chain.state.change_number
        tip = self._random.randbytes(HASH_BYTES)
        agreed = self._friend.sign("join", join_terms(self._network, chain.id, number, member, tip))
        return MembershipChange(number, PeerId(""), member, tip, agreed, "")

    def _usurper(self, chain: Chain) -> Body | None:
        """A key of this member's own is to follow another member's, which has not signed that."""
        others = [one for one in chain.state.roster if one.peer != self._signer.peer]
        return self._succession(chain, self._random.choice(others), self._friend) if others else None

    def _framed(self, chain: Chain) -> Body | None:
        """Somebody else's key, which has not signed that, is to follow this member's."""
        mine = [one for one in chain.state.roster if one.peer == self._signer.peer]
        victim = Signer(sha256(b"somebody honest"))
        return self._succession(chain, mine[0], victim) if mine else None

    def _succession(self, chain: Chain, member: Member, heir: Signer) -> MembershipChange:
        """Return the change by which `heir` follows `member`, as far as this member can sign it."""
        number, tip = chain.state.change_number, self._random.randbytes(HASH_BYTES)
        coming = msgspec.structs.replace(member, peer=heir.peer)
        terms = succession_terms(self._network, chain.id, number, member.peer, coming, tip)
        by_new = (heir if heir is self._friend else self._signer).sign(SUCCESSION_DOMAIN, terms)
        by_old = self._signer.sign(SUCCESSION_DOMAIN, terms)
        return MembershipChange(number, member.peer, coming, tip, by_new, "", by_old)

    def _with_a_former_key(self, chain: Chain) -> Body:
        """Evidence against a key that had no vote any more at that height, or so long ago that it is over."""
        stolen, state = self._random.choice(self._stolen), chain.state
        height = max(state.height, stolen.after.get(chain.id, 0) + 1)
        past = [one for one in state.successions if one.former == stolen.signer.peer]
        if past and past[0].after < past[0].last <= state.horizon and self._random.random() < 0.5:
            height = self._random.randint(past[0].after + 1, past[0].last)
        terms = (self._network, chain.id, PREVOTE, height, 0)
        values = (NIL, self._random.randbytes(HASH_BYTES))
        first, second = (Said(one, -1, sign_vote(stolen.signer, *terms, one).signature) for one in values)
        return equivocation(stolen.signer.peer, PREVOTE, height, 0, (first, second))

    def _stranger(self) -> Member:
        return Member(self._friend.peer, "friend", "milling", ())

    def _vote(self, chain: Chain) -> Vote | None:
        kept = [vote for vote in self._votes.get(chain.id, {}).values() if vote.voter != self._signer.peer]
        return self._random.choice(kept) if kept else None


class FalseSnapshots:
    """Hands peers that are behind states that were never their pool's, by `signer`."""

    def __init__(self, signer: Signer, network: str, random: Random) -> None:
        self._signer = signer
        self._network = network
        self._random = random
        self._false: dict[tuple[ChainId, int], tuple[bytes, bytes]] = {}
        """Chain and height -> a false state, and its root."""
        self._lies: dict[tuple[PeerId, int], str] = {}

    def bend(self, chain: Chain, receiver: PeerId, message: SnapshotHead | SnapshotPage) -> list[Message]:
        """Return what is sent instead of a head or a page."""
        saved = chain._server._saved or chain.engine._server._source.snapshot(chain.id)
        if saved is None or saved.height != message.height:
            return [message]
        data, root = self._made_up(chain, saved)
        lies = ("pages", "pages", "state", "state", "roster", "size", "none")
        lie = self._lies.setdefault((receiver, saved.height), self._random.choice(lies))
        if isinstance(message, SnapshotHead):
            return [self._head(chain, message, lie, root)]
        if lie == "none":
            return [message]
        start = message.page * sizes.page_bytes()
        part = data[start : start + len(message.data)]
        return [msgspec.structs.replace(message, data=part)]

    def press(self, chain: Chain, receiver: PeerId) -> list[Message]:
        """Return a head for somebody who has not asked, to be there before others are."""
        source = chain.engine._server._source
        saved = source.snapshot(chain.id)
        after = source.block(chain.id, saved.height + 1) if saved is not None else None
        if saved is None or after is None:
            return []
        terms = (saved.height, len(saved.state), after.block.header, after.certificate, saved.handovers)
        return self.bend(chain, receiver, SnapshotHead(chain.id, *terms))

    def _head(self, chain: Chain, head: SnapshotHead, lie: str, root: bytes) -> SnapshotHead:
        change = msgspec.structs.replace
        if lie == "state":
            header = change(head.header, state_root=root)
            return change(head, header=header, certificate=self._certificate(chain, header.height, header.id))
        if lie == "roster":
            return change(head, handovers=head.handovers[:-1] if head.handovers else ())
        if lie == "size":
            return change(head, size_bytes=head.size_bytes + self._random.choice((-1, 1, 10_000)))
        return head

    def _certificate(self, chain: Chain, height: int, block_id: bytes) -> Certificate:
        """A certificate with this member's signature in every place."""
        vote = sign_vote(self._signer, self._network, chain.id, PRECOMMIT, height, 0, block_id)
        places = range(len(chain.state.members))
        return Certificate(height, 0, block_id, tuple((place, vote.signature) for place in places))

    def _made_up(self, chain: Chain, saved: SavedSnapshot) -> tuple[bytes, bytes]:
        """Return a state of the same size in which the lottery was different, and its root."""
        key = (chain.id, saved.height)
        if key not in self._false:
            state = ChainState.restore(chain.genesis, saved.state)
            state.beacon = self._random.randbytes(HASH_BYTES)
            self._false[key] = (state.snapshot(), state.root)
        return self._false[key]
