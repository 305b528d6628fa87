"""A small pool with real keys, for the tests of the ledger: writes records, packs and certifies blocks."""

from __future__ import annotations

from msgspec.structs import replace

from edgepool.core.ledger.state import ChainState
from edgepool.model.beacon import BeaconChain
from edgepool.model.block import Block, CertifiedBlock, Handover, Header, records_root
from edgepool.model.crypto import Signer, sha256
from edgepool.model.identity import Role
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis, Invitation, Member, PoolKind, accept, sign_invitation
from edgepool.model.record import (
    Body,
    ChainAnchor,
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    MembershipChange,
    QualityInspection,
    SignedRecord,
    TransmissionConfirmation,
    confirmation_terms,
    join_terms,
    sign_record,
)
from edgepool.model.succession import KeySuccession, key_succession, succession_terms
from edgepool.model.twin import DataKey
from edgepool.model.vote import (
    PRECOMMIT,
    PREVOTE,
    Certificate,
    Equivocation,
    Said,
    equivocation,
    quorum,
    sign_vote,
)

NETWORK = "works"
KEY = DataKey("PTVA10212-03", "model")


def signer(name: str) -> Signer:
    return Signer(sha256(name.encode()))


class World:
    """Members 0, 1, 2, ..., a coordinator, and somebody from outside.

    `handovers` are those of the blocks packed so far.
    """

    def __init__(
        self,
        members: int = 4,
        beacon_length: int = 300,
        coordinator_votes: bool = False,
        kind: PoolKind = "manufacturing",
        observers: tuple[Role, ...] = (),
    ) -> None:
        self.kind = kind
        self.observers = {role: signer(f"observer, {role}") for role in observers}
        self.coordinator = signer("coordinator")
        self.outsider = signer("outsider")
        self.signers = [signer(f"member {i}") for i in range(members)]
        if coordinator_votes:
            self.signers[-1] = self.coordinator
        self.peers = [one.peer for one in self.signers]
        self.beacons = {
            one.peer: BeaconChain(sha256(one.peer.encode()), beacon_length) for one in self.signers
        }
        self._signer_of = {one.peer: one for one in self.signers}
        self._voters: dict[int, tuple[PeerId, ...]] = {}
        self.handovers: list[Handover] = []
        self.genesis = self.make_genesis()
        self.state = ChainState(self.genesis)
        self._nonce = 0
        self._planned_ms = 0

    def make_genesis(self, network: str = NETWORK) -> Genesis:
        people = tuple(Member(one.peer, f"m{i}", "milling", ()) for i, one in enumerate(self.signers))
        watch = tuple(Member(one.peer, role, "", (), role) for role, one in self.observers.items())
        invitation = Invitation(
            network, "liner", self.kind, self.coordinator.peer, people, watch, ("Milling",), 5, 1
        )
        yes = tuple(accept(one, invitation, self.beacons[one.peer].tip) for one in self.signers)
        return Genesis(invitation, sign_invitation(self.coordinator, invitation), yes)

    def record(self, author: Signer, body: Body) -> SignedRecord:
        self._nonce += 1
        since = self.state.height
        return sign_record(author, NETWORK, self.genesis.chain, body, 1000, self._nonce, since)

    def newcomer(self, name: str) -> Signer:
        """Return the key of somebody who can be admitted."""
        one = signer(name)
        self._signer_of[one.peer] = one
        self.beacons.setdefault(one.peer, BeaconChain(sha256(one.peer.encode()), 300))
        return one

    def change(
        self,
        outgoing: Signer | None = None,
        incoming: Signer | None = None,
        number: int = 0,
        reason: str = "",
    ) -> MembershipChange:
        """Return a change of the members; unless `number` is given it is the next."""
        number = number or self.state.change_number
        left = outgoing.peer if outgoing is not None else PeerId("")
        if incoming is None:
            return MembershipChange(number, left, None, b"", b"", reason)
        member = Member(incoming.peer, "new", "milling", ())
        tip = self.beacons[incoming.peer].tip
        terms = join_terms(NETWORK, self.genesis.chain, number, member, tip)
        return MembershipChange(number, left, member, tip, incoming.sign("join", terms), reason)

    def succession(
        self, old: Signer, new: Signer, number: int = 0, member: Member | None = None
    ) -> MembershipChange:
        """Return the change by which `old` goes on under the key `new`; unless `number` is given the next."""
        number = number or self.state.change_number
        same = next((one for one in self.state.next_roster if one.peer == old.peer), None)
        member = member or Member(new.peer, same.name if same else "", same.machine_type if same else "", ())
        tip = self.beacons[new.peer].tip
        terms = succession_terms(NETWORK, self.genesis.chain, number, old.peer, member, tip)
        by_new, by_old = (one.sign("succession", terms) for one in (new, old))
        return MembershipChange(number, old.peer, member, tip, by_new, "", by_old)

    def new_key(self, old: Signer, new: Signer, **said: str) -> KeySuccession:
        """Return the word by which `old`, who has no vote, goes on under the key `new`."""
        same = next((one for one in self.state.observers if one.peer == old.peer), None)
        member = replace(same or Member(old.peer, "cloud", "", (), "coordinator"), peer=new.peer, **said)
        return key_succession(new, NETWORK, self.genesis.chain, old.peer, member)

    def decide(self, change: MembershipChange) -> Block:
        """Pack a block in which as many members as it takes say the same."""
        voters = self.state.members[: quorum(len(self.state.members))]
        return self.pack(*(self.record(self._signer_of[peer], change) for peer in voters))

    def evidence(self, member: Signer, height: int) -> Equivocation:
        """Return the proof that `member` has voted for two blocks at `height`."""
        place = (NETWORK, self.genesis.chain, PREVOTE, height, 0)
        votes = [sign_vote(member, *place, bytes([one]) * 32) for one in (1, 2)]
        first, second = (Said(vote.block_id, -1, vote.signature) for vote in votes)
        return equivocation(member.peer, PREVOTE, height, 0, (first, second))

    def anchor(self, sub_chain: ChainId, height: int) -> ChainAnchor:
        """Return an anchor of a chain that nobody here knows."""
        return ChainAnchor(sub_chain, Certificate(height, 0, bytes(32), ((0, bytes(64)),)))

    def requirement(
        self,
        step: int,
        station: int,
        *,
        steps: int = 3,
        minutes: int = 120,
        task: str = "T1",
        part: str = "PTVA10212",
        number: int = 0,
        ends_ms: int = 0,
        author: Signer | None = None,
    ) -> SignedRecord:
        """Return a requirement; unless `ends_ms` says when it ends, it is planned after those before."""
        self._planned_ms = ends_ms or self._planned_ms + minutes * 60_000
        number = number or 10 * (step + 1)
        plan = (minutes, 0, self._planned_ms)
        body = MachiningRequirement(task, part, number, "Milling", self.peers[station], step, steps, *plan)
        return self.record(author or self.coordinator, body)

    def procedure(self, step: int, author: int, task: str = "T1") -> SignedRecord:
        body = MachiningProcedure(task, 10 * (step + 1), "Feature-3", "Milling", (1045, 136), 9)
        return self.record(self.signers[author], body)

    def completion(self, step: int, author: int, task: str = "T1") -> SignedRecord:
        return self.record(
            self.signers[author], MachiningCompletion(task, 10 * (step + 1), "Process-m-12", 10)
        )

    def inspection(
        self, step: int, author: int, feature: str = "Feature-3", accepted: bool = True, task: str = "T1"
    ) -> SignedRecord:
        body = QualityInspection(task, 10 * (step + 1), feature, "hole", (10_000, 3_000), accepted)
        return self.record(self.signers[author], body)

    def offer(
        self, author: int, version: int = 1, data: bytes = b"data", size: int = 4, key: DataKey = KEY
    ) -> SignedRecord:
        body = DataOffer(key, version, sha256(data), size, "/ip4/10.0.0.1/tcp/4001", 4)
        return self.record(self.signers[author], body)

    def demand(self, author: int, key: DataKey = KEY) -> SignedRecord:
        return self.record(self.signers[author], DataDemand(key, 0, "hole", "steel"))

    def confirmation(
        self, holder: Signer, requester: Signer, author: Signer | None = None, network: str = NETWORK
    ) -> SignedRecord:
        root = sha256(b"data")
        terms = confirmation_terms(network, KEY, root, requester.peer, holder.peer, 99)
        signature = requester.sign("confirmation", terms)
        body = TransmissionConfirmation(KEY, root, 4, requester.peer, holder.peer, 99, signature)
        return self.record(author or holder, body)

    def step_records(self, step: int, station: int, **given: int) -> list[SignedRecord]:
        """Return requirement, procedure and completion of one step."""
        return [
            self.requirement(step, station, **given),  # type: ignore[arg-type]
            self.procedure(step, station),
            self.completion(step, station),
        ]

    def header(self, records: list[SignedRecord], packer: int = 0) -> Header:
        peer = self.state.members[packer]
        reveal = self.beacons[peer].reveal(self.state.reveals[peer])
        return Header(
            NETWORK,
            self.genesis.chain,
            self.state.height + 1,
            0,
            self.state.last_block_id,
            self.state.members_hash,
            self.state.next_members_hash,
            self.state.root,
            records_root(records),
            len(records),
            peer,
            reveal,
            2000 + self.state.height,
        )

    def pack(self, *records: SignedRecord, packer: int = 0) -> Block:
        """Judge the records as a block, apply it, and return it."""
        draft = self.state.draft()
        for signed in records:
            problem = draft.add(signed)
            assert problem == "", problem
        block = Block(self.header(list(records), packer), records)
        assert self.state.header_problem(block.header) == ""
        self._voters[block.header.height] = self.state.members
        change = self.state.pending_change
        self.state.apply(block)
        if change is not None:
            votes = self.certify(block).certificate
            self.handovers.append(Handover(block.header, votes, change.outgoing, change.incoming))
        return block

    def pack_until(self, height: int) -> None:
        """Pack blocks with a demand each until the state is at `height`."""
        while self.state.height < height:
            author = self._signer_of[self.state.members[0]]
            demand = self.record(author, DataDemand(KEY, 0, "hole", "steel"))
            self.pack(demand, packer=self.state.height % len(self.state.members))

    def certify(self, block: Block) -> CertifiedBlock:
        header = block.header
        pairs = []
        voters = self._voters.get(header.height, self.state.members)
        for index, peer in enumerate(voters[: quorum(len(voters))]):
            vote = sign_vote(
                self._signer_of[peer],
                header.network,
                header.chain,
                PRECOMMIT,
                header.height,
                header.round,
                header.id,
            )
            pairs.append((index, vote.signature))
        return CertifiedBlock(block, Certificate(header.height, header.round, header.id, tuple(pairs)))
