"""Byzantine members: an honest node inside, whose words are bent on their way out.

A liar signs with its own key only (and with old ones, its own and others', that nobody trusts), sees what
its node sees, and says whatever suits its role to whomever it likes. Roles are named in plan.ROLES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import msgspec

from edgepool.core.chain import Chain
from edgepool.core.node import Node
from edgepool.model.block import Block, CertifiedBlock, records_root
from edgepool.model.crypto import SIGNATURE_BYTES, Signer, sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.lineage import Lineage, follow
from edgepool.model.message import (
    Blocks,
    Hello,
    Message,
    Polka,
    Proposal,
    Records,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
    Status,
    Votes,
    sign_proposal,
)
from edgepool.model.record import (
    MachiningCompletion,
    MachiningProcedure,
    Record,
    SignedRecord,
    sign_record,
)
from edgepool.model.vote import NIL, PRECOMMIT, PREVOTE, Certificate, Vote, sign_vote
from edgepool.sim.falsehoods import FalseGovernance, FalseSnapshots, Stolen, looted

MESSAGES_KEPT = 300
VOTES_KEPT_A_HEIGHT = 24
HEIGHTS_KEPT = 400

Saying = tuple[PeerId, PeerId, Message]
"""Who seems to speak, to whom, and what."""
Chains = (
    Records,
    Proposal,
    Votes,
    Polka,
    Status,
    Blocks,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
)


class Liar:
    """Bends what the node of one Byzantine member says, by its role.

    `stolen` are the former keys of others, and `former` is the one that it has had itself.
    """

    def __init__(
        self,
        signer: Signer,
        role: str,
        network: str,
        random: Random,
        stolen: Sequence[Stolen] = (),
        former: Signer | None = None,
    ) -> None:
        self.role = role
        self._signer = signer
        self._stolen = stolen
        self._old = former or Signer(sha256(b"old key of " + signer.peer.encode()))
        self._network = network
        self._random = random
        self._blocks: dict[ChainId, Block] = {}
        self._kept: list[Message] = []
        self._bent: tuple[Proposal | None, Proposal | None] = (None, None)
        self._votes: dict[tuple[ChainId, int], list[Vote]] = {}
        self._governance = FalseGovernance(signer, self._old, network, random, stolen)
        self._snapshots = FalseSnapshots(signer, network, random)
        self._bend: Callable[[Node, PeerId, Message], list[Message]] = {
            "silent": self._silent,
            "equivocate": self._equivocate,
            "flood": self._flood,
            "false-work": self._false_work,
            "withhold": self._withhold,
            "replay": self._replay,
            "old-key": self._old_key,
            "forge": self._forge,
            "govern": self._false_work,
            "false-snapshot": self._false_snapshot,
        }[role]

    def heard(self, message: Message) -> None:
        """Remember what can be used later."""
        if isinstance(message, Proposal):
            self._blocks[message.chain] = message.block
        if self.role == "govern":
            self._governance.heard(message)
        if self.role != "replay" or not isinstance(message, Chains):
            return
        if len(self._kept) < MESSAGES_KEPT:
            self._kept.append(message)
        else:
            self._kept[self._random.randrange(MESSAGES_KEPT)] = message
        if isinstance(message, Votes):
            for vote in message.votes:
                kept = self._votes.setdefault((message.chain, vote.height), [])
                if len(kept) < VOTES_KEPT_A_HEIGHT and len(self._votes) < HEIGHTS_KEPT:
                    kept.append(vote)

    def speak(self, node: Node, receiver: PeerId, message: Message) -> list[Saying]:
        """Return what is sent instead of `message` to `receiver`."""
        self.heard(message)
        if not isinstance(message, Chains):
            return [(node.peer, receiver, message)]
        said: list[Saying] = []
        for one in self._bend(node, receiver, message):
            said.append((node.peer, receiver, one))
            if self.role == "old-key" and one is not message:
                said.append((self._old.peer, receiver, one))
        if isinstance(message, Status):
            said += [(node.peer, receiver, one) for one in self._after_its_time(node, message.chain)]
            said += self._with_stolen_keys(node, receiver, message.chain)
        return said

    def _after_its_time(self, node: Node, name: ChainId) -> list[Message]:
        """Who was excluded goes on voting, on the blocks that it still hears of."""
        chain, block = node.chains.get(name), self._blocks.get(name)
        if chain is None or chain.member or self.role in ("silent", "withhold"):
            return []
        ids = [NIL] if block is None else [NIL, block.header.id]
        height, round = chain.engine.height + self._random.randrange(3), self._random.randrange(2)
        votes = (self._vote(name, kind, height, round, one) for kind in (PREVOTE, PRECOMMIT) for one in ids)
        return [Votes(name, tuple(votes))]

    def _with_stolen_keys(self, node: Node, receiver: PeerId, name: ChainId) -> list[Saying]:
        """Votes, a record and a line of keys by a former key of somebody else, on a link of it too."""
        chain, draw = node.chains.get(name), self._random
        if chain is None or not self._stolen or self.role in ("silent", "withhold") or draw.random() > 0.3:
            return []
        stolen = draw.choice(self._stolen)
        thief, height = stolen.signer, max(chain.engine.height, stolen.after.get(name, 0) + 1)
        votes = tuple(
            sign_vote(thief, self._network, name, kind, height, chain.engine.round, block_id)
            for kind in (PREVOTE, PRECOMMIT)
            for block_id in (NIL, draw.randbytes(32))
        )
        said = (Votes(name, votes), Records(name, (looted(stolen, chain, draw),)))
        mine = Lineage((follow(thief, self._signer, self._network),))
        return [
            (node.peer, receiver, mine),
            *((speaker, receiver, one) for speaker in (node.peer, thief.peer) for one in said),
        ]

    # --- roles: each returns what to send in place of one message --------------------------------

    def _silent(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        return [message] if isinstance(message, Hello) else []

    def _withhold(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        """Blocks, proposals and votes reach some only; who that is changes with the height."""
        if isinstance(message, Records | Status):
            return [message] if self._random.random() < 0.7 else []
        chain = node.chains.get(message.chain)  # type: ignore[union-attr]
        height = chain.engine.height if chain is not None else 0
        favoured = sha256(f"{height}/{receiver}".encode())[0] < 128
        return [message] if favoured or self._random.random() < 0.1 else []

    def _equivocate(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        """Two blocks and two votes for each place: one half of the pool hears this, the other that."""
        first = self._half(receiver)
        if isinstance(message, Proposal) and message.block.header.proposer == self._signer.peer:
            if message.valid_round != -1:
                return [message]
            other = self._sign(message, self._sibling(message.block))
            both = self._random.random()
            return [message, other] if both < 0.1 else [message if first else other]
        if isinstance(message, Votes) and message.votes[0].voter == self._signer.peer:
            vote = message.votes[0]
            return [message, *self._second_votes(message.chain, vote)] if not first else [message]
        return [message]

    def _second_votes(self, chain: ChainId, vote: Vote) -> list[Message]:
        block = self._blocks.get(chain)
        ids = [NIL]
        if block is not None and block.header.height == vote.height:
            ids += [block.header.id, self._sibling(block).header.id]
        return [
            Votes(chain, (self._vote(chain, kind, vote.height, vote.round, block_id),))
            for kind in (PREVOTE, PRECOMMIT)
            for block_id in ids
            if block_id != vote.block_id and self._random.random() < 0.7
        ]

    def _flood(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        """Votes for values that do not exist fill the slots before those that matter come."""
        if not isinstance(message, Votes) or message.votes[0].voter != self._signer.peer:
            return [message]
        vote, draw = message.votes[0], self._random
        noise = tuple(
            self._vote(message.chain, kind, vote.height + later, vote.round + ahead, draw.randbytes(32))
            for later in (0, 1)
            for ahead in (0, 1, 15)
            for kind in (PREVOTE, PRECOMMIT)
        )
        status = Status(message.chain, vote.height + draw.randrange(1000), draw.randrange(50), 3, 1)
        return [Votes(message.chain, noise), message, status]

    def _false_work(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        """Work that was not done, or not by its author, in records and in own proposals."""
        draw = self._random
        chain = node.chains.get(message.chain) if isinstance(message, Chains) else None
        if chain is None:
            return [message]
        if isinstance(message, Proposal) and message.block.header.proposer == self._signer.peer:
            if message.valid_round == -1:
                return [self._false_proposal(chain, message)]
        elif isinstance(message, Votes) and draw.random() < 0.05:
            return [message, Records(message.chain, (self._false_record(chain),))]
        return [message]

    def _false_proposal(self, chain: Chain, proposal: Proposal) -> Proposal:
        """Every other proposal is false, and then it is the same to everybody."""
        if self._bent[0] != proposal:
            false = self._random.random() < 0.5
            block = self._false_block(chain, proposal.block)
            self._bent = (proposal, self._sign(proposal, block) if false else proposal)
        bent = self._bent[1]
        assert bent is not None
        return bent

    def _false_block(self, chain: Chain, block: Block) -> Block:
        header = block.header
        if self._random.random() < 0.3:
            field = self._random.choice(("reveal", "state_root", "members_hash", "next_members_hash"))
            false = msgspec.structs.replace(header, **{field: self._random.randbytes(32)})
            return Block(false, block.records)
        records = (*block.records, self._false_record(chain))[-4:]
        root = records_root(records)
        return Block(msgspec.structs.replace(header, records_root=root, records_count=len(records)), records)

    def _false_record(self, chain: Chain) -> SignedRecord:
        """Return a record of what was not done, or nobody wants."""
        return self._governance.record(chain) if self.role == "govern" else self._false_step(chain)

    def _false_step(self, chain: Chain) -> SignedRecord:
        """Return a completion or a start of a step that is another's, perhaps in the other's name."""
        draw = self._random
        tasks = list(chain.state.tasks.values())
        task = draw.choice(tasks) if tasks else None
        steps = list(task.steps.values()) if task is not None else []
        step = draw.choice(steps).requirement if steps else None
        name, number = (step.task, step.operation_number) if step is not None else ("invented", 10)
        body: MachiningProcedure | MachiningCompletion = MachiningCompletion(name, number, "lathe", 1)
        if draw.random() < 0.5:
            body = MachiningProcedure(name, number, "hole", "milling", (), 1)
        nonce, since = draw.getrandbits(50), chain.state.height
        if step is None or step.station == self._signer.peer or draw.random() < 0.5:
            return sign_record(self._signer, self._network, chain.id, body, 1, nonce, since)
        record = Record(self._network, chain.id, step.station, 1, nonce, since, body)
        return SignedRecord(record, self._signer.sign("record", [record]))

    def _false_snapshot(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        """Who is behind gets few blocks, and a state that is not the pool's."""
        if isinstance(message, Blocks) and self._random.random() < 0.5:
            return [msgspec.structs.replace(message, blocks=message.blocks[:1])]
        chain = node.chains.get(message.chain) if isinstance(message, Chains) else None
        if chain is not None and isinstance(message, SnapshotHead | SnapshotPage):
            return self._snapshots.bend(chain, receiver, message)
        if chain is not None and isinstance(message, Status) and self._random.random() < 0.3:
            return [message, *self._snapshots.press(chain, receiver)]
        return [message]

    def _replay(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        """What was said once, on this chain or another, is said again where it does not belong."""
        draw = self._random
        if draw.random() > 0.15 or not self._kept:
            return [message]
        again: list[Message] = [message]
        old = draw.choice(self._kept)
        again.append(old)
        for chain in node.chains.values():
            if chain.id != old.chain and receiver in chain.people:  # type: ignore[union-attr]
                again.append(msgspec.structs.replace(old, chain=chain.id))
            for other in node.chains:
                votes = self._votes.get((other, chain.engine.height), [])
                if other != chain.id and votes:
                    again.append(Votes(chain.id, tuple(votes)))
        return again

    def _old_key(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        """Votes and proposals signed with a key that is no longer, or never was, a member's."""
        if isinstance(message, Votes) and self._random.random() < 0.2:
            vote, old = message.votes[0], self._old
            by_old = sign_vote(
                old, self._network, message.chain, vote.kind, vote.height, vote.round, vote.block_id
            )
            stolen = msgspec.structs.replace(by_old, voter=self._signer.peer)
            return [message, Votes(message.chain, (by_old,)), Votes(message.chain, (stolen,))]
        if isinstance(message, Proposal) and self._random.random() < 0.2:
            block, round = message.block, message.round
            return [sign_proposal(self._old, self._network, message.chain, round, block, -1, ())]
        return [message]

    def _forge(self, node: Node, receiver: PeerId, message: Message) -> list[Message]:
        """Certificates and polkas that prove nothing, and proposals out of turn."""
        if not isinstance(message, Votes | Proposal) or self._random.random() < 0.5:
            return [message]
        chain = node.chains.get(message.chain)
        block = self._blocks.get(message.chain)
        if chain is None or block is None or block.header.height != chain.engine.height or not chain.member:
            return [message]
        other = self._sibling(block)
        forgeries = (
            self._own_certificate(chain, other, 1),
            self._own_certificate(chain, other, len(chain.state.members)),
            self._stale_certificate(node, chain, other),
            self._own_polka(chain, other),
            self._usurped(chain, block),
            self._baseless(chain, other),
            self._in_the_name_of(chain, self._random.choice((other.header.id, NIL))),
        )
        forged = self._random.choice(forgeries)
        return [message, forged] if forged is not None else [message]

    def _own_certificate(self, chain: Chain, block: Block, times: int) -> Blocks:
        """A certificate with this member's signature only, as often as asked for."""
        header = block.header
        vote = self._vote(chain.id, PRECOMMIT, header.height, header.round, header.id)
        place = chain.state.members.index(self._signer.peer)
        signatures = ((place, vote.signature),) * times
        certificate = Certificate(header.height, header.round, header.id, signatures)
        return Blocks(chain.id, (CertifiedBlock(block, certificate),))

    def _stale_certificate(self, node: Node, chain: Chain, block: Block) -> Blocks | None:
        """The genuine certificate of the block before, under another block."""
        before = chain.engine._server._source.block(chain.id, block.header.height - 1)
        return Blocks(chain.id, (CertifiedBlock(block, before.certificate),)) if before is not None else None

    def _own_polka(self, chain: Chain, block: Block) -> Polka:
        header = block.header
        vote = self._vote(chain.id, PREVOTE, header.height, chain.engine.round, header.id)
        return Polka(chain.id, block, (vote,) * len(chain.state.members))

    def _usurped(self, chain: Chain, block: Block) -> Proposal:
        """A block of this member's own in a round that was drawn for another."""
        header = msgspec.structs.replace(block.header, proposer=self._signer.peer)
        proposal = Proposal(chain.id, header.round, block, -1, (), bytes(SIGNATURE_BYTES))
        return self._sign(proposal, Block(header, block.records))

    def _baseless(self, chain: Chain, block: Block) -> Proposal:
        """A proposal that claims a polka which its votes do not make."""
        round = chain.engine.round + 1
        vote = self._vote(chain.id, PREVOTE, block.header.height, round - 1, block.header.id)
        polka = (vote,) * len(chain.state.members)
        return sign_proposal(self._signer, self._network, chain.id, round, block, round - 1, polka)

    def _in_the_name_of(self, chain: Chain, block_id: bytes) -> Votes:
        """Another member's votes, with this member's signature."""
        height, round = chain.engine.height, chain.engine.round
        victim = self._random.choice([peer for peer in chain.state.members if peer != self._signer.peer])
        votes = (self._vote(chain.id, kind, height, round, block_id) for kind in (PREVOTE, PRECOMMIT))
        return Votes(chain.id, tuple(msgspec.structs.replace(vote, voter=victim) for vote in votes))

    # --- tools ----------------------------------------------------------------------------------

    def _half(self, receiver: PeerId) -> bool:
        return sha256(f"{self._signer.peer}/{receiver}".encode())[0] < 128

    def _vote(self, chain: ChainId, kind: int, height: int, round: int, block_id: bytes) -> Vote:
        return sign_vote(self._signer, self._network, chain, kind, height, round, block_id)

    def _sign(self, proposal: Proposal, block: Block) -> Proposal:
        return sign_proposal(self._signer, self._network, proposal.chain, proposal.round, block, -1, ())

    def _sibling(self, block: Block) -> Block:
        """Return the same block with another clock: as valid as the first, with another id."""
        return Block(msgspec.structs.replace(block.header, time_ms=block.header.time_ms + 1), block.records)
