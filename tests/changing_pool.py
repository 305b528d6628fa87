"""A small pool whose members change: headers, certificates and handovers with real keys, without a state."""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.model.beacon import BeaconChain
from edgepool.model.block import (
    Block,
    CertifiedBlock,
    Handover,
    Header,
    changed_roster,
    records_root,
)
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId
from edgepool.model.pool import Genesis, Invitation, Member, accept, members_hash, sign_invitation
from edgepool.model.record import Body, DataDemand, DataOffer, SignedRecord, sign_record
from edgepool.model.twin import DataKey
from edgepool.model.vote import PRECOMMIT, Certificate, quorum, sign_vote

NETWORK = "works"
KEY = DataKey("PTVA10212-03", "model")


class ChangingPool:
    """Members 'm0', 'm1', ... and whoever `change` brings in; `height` is that of the last block."""

    def __init__(self, members: int = 4, name: str = "liner", kind: str = "manufacturing") -> None:
        self.coordinator = Signer(sha256(b"coordinator"))
        self.signers: dict[PeerId, Signer] = {}
        roster = tuple(self.person(f"m{i}") for i in range(members))
        tip = BeaconChain(bytes(32), 4).tip
        plan = Invitation(NETWORK, name, kind, self.coordinator.peer, roster, (), (), 5, 1)  # type: ignore[arg-type]
        yes = tuple(accept(self.signers[member.peer], plan, tip) for member in roster)
        self.genesis = Genesis(plan, sign_invitation(self.coordinator, plan), yes)
        self.chain = self.genesis.chain
        self.roster: tuple[Member, ...] = roster
        self.handovers: tuple[Handover, ...] = ()
        self.blocks: list[CertifiedBlock] = []
        self._nonce = 0

    @property
    def height(self) -> int:
        return len(self.blocks)

    def person(self, name: str) -> Member:
        signer = Signer(sha256(name.encode()))
        self.signers[signer.peer] = signer
        return Member(signer.peer, name, "milling", ())

    def signer(self, place: int) -> Signer:
        return self.signers[self.roster[place].peer]

    def record(self, author: Signer, body: Body) -> SignedRecord:
        self._nonce += 1
        return sign_record(author, NETWORK, self.chain, body, 1000, self._nonce)

    def demand(self, author: Signer | None = None) -> SignedRecord:
        return self.record(author or self.signer(0), DataDemand(KEY, 0, "hole", "steel"))

    def offer(self, author: Signer, version: int = 1) -> SignedRecord:
        return self.record(author, DataOffer(KEY, version, sha256(b"data"), 4, "", 4))

    def block(self, *records: SignedRecord, following: Sequence[Member] | None = None) -> CertifiedBlock:
        """Append a block by the present roster, which names `following` as the next one."""
        records = records or (self.demand(),)
        header = Header(
            NETWORK,
            self.chain,
            self.height + 1,
            0,
            self.blocks[-1].block.header.id if self.blocks else bytes.fromhex(self.chain),
            members_hash(self.roster),
            members_hash(self.roster if following is None else following),
            sha256(b"state %d" % self.height),
            records_root(records),
            len(records),
            self.roster[0].peer,
            bytes(32),
            2000 + self.height,
        )
        self.blocks.append(CertifiedBlock(Block(header, records), self.certify(header)))
        return self.blocks[-1]

    def certify(self, header: Header, roster: Sequence[Member] = ()) -> Certificate:
        """Return the votes of a quorum of `roster` (the present one) for a header."""
        roster = roster or self.roster
        terms = (header.network, header.chain, PRECOMMIT, header.height, header.round, header.id)
        pairs = tuple(
            (index, sign_vote(self.signers[member.peer], *terms).signature)
            for index, member in enumerate(roster[: quorum(len(roster))])
        )
        return Certificate(header.height, header.round, header.id, pairs)

    def change(self, outgoing: str = "", incoming: Member | None = None) -> Handover:
        """Append the block that names the next roster, which votes from then on."""
        following = changed_roster(self.roster, outgoing, incoming)
        certified = self.block(following=following)
        handover = Handover(certified.block.header, certified.certificate, PeerId(outgoing), incoming)
        self.roster = following
        self.handovers = (*self.handovers, handover)
        return handover


def twice_changed(members: int = 4) -> ChangingPool:
    """Return a pool that has admitted 'n4' in block 2 and replaced 'm0' by 'n5' in block 4."""
    pool = ChangingPool(members)
    pool.block()
    pool.change(incoming=pool.person("n4"))
    pool.block()
    pool.change(outgoing=pool.roster[0].peer, incoming=pool.person("n5"))
    return pool
