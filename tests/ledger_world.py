"""A small pool with real keys, for the tests of the ledger: writes records, packs and certifies blocks."""

from __future__ import annotations

from edgepool.core.ledger.state import ChainState
from edgepool.model.beacon import BeaconChain
from edgepool.model.block import (
    PRECOMMIT,
    Block,
    Certificate,
    CertifiedBlock,
    Header,
    quorum,
    records_root,
    sign_vote,
)
from edgepool.model.crypto import Signer, sha256
from edgepool.model.pool import Genesis, Invitation, Member, accept, sign_invitation
from edgepool.model.record import (
    Body,
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
    SignedRecord,
    TransmissionConfirmation,
    confirmation_terms,
    sign_record,
)
from edgepool.model.twin import DataKey

NETWORK = "works"
KEY = DataKey("PTVA10212-03", "model")


def signer(name: str) -> Signer:
    return Signer(sha256(name.encode()))


class World:
    """Members 0, 1, 2, ..., a coordinator, and somebody from outside."""

    def __init__(self, members: int = 4, beacon_length: int = 300, coordinator_votes: bool = False) -> None:
        self.coordinator = signer("coordinator")
        self.outsider = signer("outsider")
        self.signers = [signer(f"member {i}") for i in range(members)]
        if coordinator_votes:
            self.signers[-1] = self.coordinator
        self.peers = [one.peer for one in self.signers]
        self.beacons = {
            one.peer: BeaconChain(sha256(one.peer.encode()), beacon_length) for one in self.signers
        }
        self.genesis = self.make_genesis()
        self.state = ChainState(self.genesis)
        self._nonce = 0

    def make_genesis(self, network: str = NETWORK) -> Genesis:
        people = tuple(Member(one.peer, f"m{i}", "milling", ()) for i, one in enumerate(self.signers))
        invitation = Invitation(
            network, "liner", "manufacturing", self.coordinator.peer, people, (), ("Milling",), 5, 1
        )
        yes = tuple(accept(one, invitation, self.beacons[one.peer].tip) for one in self.signers)
        return Genesis(invitation, sign_invitation(self.coordinator, invitation), yes)

    def record(self, author: Signer, body: Body) -> SignedRecord:
        self._nonce += 1
        return sign_record(author, NETWORK, self.genesis.chain, body, 1000, self._nonce)

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
    ) -> SignedRecord:
        body = MachiningRequirement(
            task, part, number or 10 * (step + 1), "Milling", self.peers[station], step, steps, minutes, 0, 9
        )
        return self.record(self.coordinator, body)

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
        peer = self.peers[packer]
        reveal = self.beacons[peer].reveal(self.state.reveals[peer])
        return Header(
            NETWORK,
            self.genesis.chain,
            self.state.height + 1,
            0,
            self.state.last_block_id,
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
        self.state.apply(block)
        return block

    def pack_until(self, height: int) -> None:
        """Pack blocks with a demand each until the state is at `height`."""
        while self.state.height < height:
            self.pack(self.demand(0), packer=self.state.height % len(self.peers))

    def certify(self, block: Block) -> CertifiedBlock:
        header = block.header
        pairs = []
        for index, one in enumerate(self.signers[: quorum(len(self.signers))]):
            vote = sign_vote(
                one, header.network, header.chain, PRECOMMIT, header.height, header.round, header.id
            )
            pairs.append((index, vote.signature))
        return CertifiedBlock(block, Certificate(header.height, header.round, header.id, tuple(pairs)))
