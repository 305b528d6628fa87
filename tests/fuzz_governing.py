"""What the hostile say of the pool itself: members, evidence, anchors, statements, and their proofs."""

from __future__ import annotations

from fuzz_choices import LAST_HEIGHT, LAST_ROUND, Choices
from fuzz_world import (
    COORDINATOR,
    FOREIGN,
    FOREIGN_BLOCKS,
    GENESES,
    HONEST,
    HOSTILE,
    KEYS_OF,
    LIAR,
    NETWORK,
    PUPPETS,
    STRANGER,
)
from msgspec.structs import replace

from edgepool.core.chain import Chain
from edgepool.model.block import Handover, Header
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId
from edgepool.model.message import Votes
from edgepool.model.pool import Member
from edgepool.model.record import ChainAnchor, MembershipChange, Statement, join_terms
from edgepool.model.trust import (
    MAX_ROOT_BYTES,
    AdmitRoot,
    RetireRoot,
    RevokePeer,
    TrustChange,
    TrustStep,
    own_revocation,
)
from edgepool.model.vote import (
    NIL,
    PRECOMMIT,
    PREVOTE,
    PROPOSAL,
    Certificate,
    Equivocation,
    Said,
    Vote,
    equivocation,
    sign_vote,
)


class Governing(Choices):
    """Makes bodies of records that govern pools, and the certificates and handovers that prove them."""

    # --- members ------------------------------------------------------------------------------

    def _change(self, chain: Chain) -> MembershipChange:
        """Return a change of the members: stale or early, of anybody by anybody, signed well or not."""
        number = chain.state.change_number
        number = self._one((number, number, number, number + 1, max(1, number - 1), LAST_ROUND))
        outgoing = self._one((PeerId(""), self._voter(chain).peer, self._peer()))
        if self._cell.manner.forgiving and outgoing in HOSTILE:
            outgoing = self._one(HONEST)  # it stays, whatever it says
        opened = chain.state.open_changes()
        if opened and self._seldom():  # support what somebody else wants, or nearly that
            change = self._one(opened)[0]
            return change if self._often() else self._changed(change, reason="x", number=number)
        if self._often():
            nobody = MembershipChange(number, outgoing, None, b"", b"", self._one(("", "x" * 256)))
            return nobody if self._often() else self._changed(nobody, beacon_tip=b"x", outgoing=PeerId(""))
        comes = self._one((STRANGER, LIAR, COORDINATOR, *PUPPETS[-2:]))
        change = self._admission(chain, number, outgoing, comes)
        if self._often():
            return change
        return self._changed(
            change,
            incoming=self._named(self._peer()),
            beacon_tip=self._one((b"", b"x", self._bytes(32))),
            incoming_signature=self._one((b"", self._bytes(64))),
            number=min(number + 1, LAST_ROUND),
            outgoing=comes.peer,
        )

    def _admission(
        self, chain: Chain, number: int, outgoing: PeerId, comes: Signer, tip: bytes = b""
    ) -> MembershipChange:
        """Return a change by which `comes` is admitted, as it has agreed itself."""
        member, tip = self._named(comes.peer), tip or self._bytes(32)
        signature = comes.sign("join", join_terms(NETWORK, chain.id, number, member, tip))
        return MembershipChange(number, outgoing, member, tip, signature, "")

    def _bearable(self, chain: Chain) -> MembershipChange:
        """Return a change behind which all honest members can stand: one hostile member stays one at most."""
        number = chain.state.change_number
        hostile = [one.peer for one in chain.state.next_roster if one.peer in KEYS_OF]
        others = [one for one in (LIAR, STRANGER) if one.peer not in hostile]
        outgoing = hostile[0] if hostile else PeerId("")
        if hostile and (not others or self._often()):
            return MembershipChange(number, outgoing, None, b"", b"", "")
        return self._admission(chain, number, outgoing, self._one(others))

    def _named(self, peer: PeerId) -> Member:
        return Member(peer, "x", self._one(("", "milling")), self._one(((), ("/" * 256,) * 8)))

    # --- trust --------------------------------------------------------------------------------

    def _trust(self, chain: Chain) -> TrustChange:
        """Return a change of trust: of roots that are none, of anybody's membership, signed well or not."""
        opened = chain.state.trust.open
        if opened and self._seldom():
            change = self._one(opened)[0]
            return change if self._often() else self._changed(change, reason="x")
        change = self._bearable_trust()
        if self._often():
            return change
        step: TrustStep = RevokePeer(self._peer(), self._one((b"", self._bytes(64))))
        if not self._cell.manner.forgiving and self._often():
            step = own_revocation(LIAR, NETWORK)  # all approve that, and exclude it
        return self._changed(change, step=step, reason=self._one(("", "x" * 256)))

    def _bearable_trust(self) -> TrustChange:
        """Return a change of trust that hurts nobody, whoever approves it."""
        der = self._one((b"x", self._bytes(32), bytes(MAX_ROOT_BYTES)))
        until_ms = self._one((0, 1, 2**53))
        step: TrustStep = self._one(
            (
                AdmitRoot(self._one(("x", "\0" * 64)), der),
                RetireRoot(sha256(der), until_ms),
                RevokePeer(PUPPETS[-1].peer),
            )
        )
        return TrustChange(step, "")

    # --- evidence -----------------------------------------------------------------------------

    def _evidence(self, chain: Chain) -> Equivocation:
        """Return what convicts a liar, or what looks like it."""
        found = self._true_evidence(chain)
        if not self._cell.manner.forgiving and self._often():
            return found
        if self._seldom():
            elsewhere = [genesis.chain for genesis in GENESES if genesis.chain != chain.id]
            return self._true_evidence(self._cell.nodes[HONEST[0]].chains[self._one(elsewhere)])
        heard = self._heard_twice()
        if heard is not None and self._often():
            return heard
        # The liar is spared here, whoever is named: honest members would be right to believe it.
        swapped = self._one((found.first, Said(found.second.block_id, 0, found.second.signature)))
        return self._changed(
            replace(found, second=swapped),
            member=self._peer(),
            height=self._one((1, LAST_HEIGHT)),
            round=LAST_ROUND,
            kind=self._one((PROPOSAL, PREVOTE, PRECOMMIT)),
            first=Said(NIL, -1, self._bytes(64)),
        )

    def _true_evidence(self, chain: Chain) -> Equivocation:
        signer = self._voter(chain)
        height, round, kind = self._height(chain), self._round(chain), self._one((PREVOTE, PRECOMMIT))
        votes = [
            sign_vote(signer, NETWORK, chain.id, kind, height, round, block_id)
            for block_id in (NIL, self._rng.randbytes(32))
        ]
        first, second = (Said(vote.block_id, -1, vote.signature) for vote in votes)
        return equivocation(signer.peer, kind, height, round, (first, second))

    def _heard_twice(self) -> Equivocation | None:
        """Return two votes of one honest member for different places, as if they were for one."""
        heard = [self._heard(Votes) for _ in range(4)]
        votes = [vote for message in heard if message is not None for vote in message.votes]
        voters: dict[PeerId, Vote] = {}
        for vote in votes:
            other = voters.setdefault(vote.voter, vote)
            if other.block_id != vote.block_id and vote.voter not in HOSTILE:
                said = tuple(Said(one.block_id, -1, one.signature) for one in (other, vote))
                return equivocation(vote.voter, vote.kind, vote.height, vote.round, (said[0], said[1]))
        return None

    # --- anchors and statements ---------------------------------------------------------------

    def _anchor(self, chain: Chain) -> ChainAnchor:
        others = [genesis.chain for genesis in (*GENESES, FOREIGN)]
        certificate = self._one((self._certificate(chain), self._one(FOREIGN_BLOCKS).certificate))
        return ChainAnchor(self._one((*others, self._chain_text())), certificate)

    def _statement(self) -> Statement:
        """Return a statement for contracts that are registered, whole or full of bugs, or for none."""
        contract, version = self._one((("tally", 1), ("tally", 2), ("tally", 3), ("x" * 64, 65535)))
        start = self._one((b"", b"no", b"r", b"t", b"l", b"w", b"v", b"n", self._rng.randbytes(1)))
        return Statement(contract, version, start + bytes(self._one((0, 1, 19, 63, 2040))))

    # --- what proves them ---------------------------------------------------------------------

    def _certificate(self, chain: Chain) -> Certificate:
        height, round, block_id = self._height(chain), self._round(chain), self._bytes(32)
        mine = sign_vote(LIAR, NETWORK, chain.id, PRECOMMIT, height, round, block_id).signature
        indexes = self._one(((3,), (0, 1, 2), (0, 1, 3), (3, 3, 3), (2, 1, 0), (0, 1, 29), tuple(range(30))))
        return Certificate(height, round, block_id, tuple((index, mine) for index in indexes))

    def _header(self, chain: Chain) -> Header:
        block = self._one(FOREIGN_BLOCKS).block.header
        state = chain.state
        rosters = {"members_hash": state.members_hash, "next_members_hash": self._bytes(32)}
        header = replace(block, chain=chain.id, height=self._height(chain), **rosters)
        return self._changed(header, state_root=self._bytes(32), network="elsewhere", members_hash=bytes(32))

    def _handover(self, chain: Chain) -> Handover:
        """Return a handover that leads nowhere; sometimes it is a true one with something changed."""
        member = self._one((None, self._named(self._peer())))
        if chain.handovers and self._often():
            true = self._one(chain.handovers)
            return self._changed(
                true,
                header=self._header(chain),
                outgoing=self._peer(),
                incoming=member,
                certificate=true.certificate,
            )
        return Handover(self._header(chain), self._certificate(chain), self._one(("", self._peer())), member)

    def _handovers(self, chain: Chain) -> tuple[Handover, ...]:
        """Return handovers in any number and order: true ones, none, doubled, and made up."""
        true = tuple(chain.handovers)
        odd = (self._handover(chain),) * self._one((1, 1, 2, 256))
        return self._one((true, true, (), true[:-1], true[::-1], (*true, *true), (*true, *odd), odd))[:256]
