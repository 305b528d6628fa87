"""A second opinion about one chain: which block may stand, told apart from the code that is tested.

It keeps its own height, parent, beacon, tips and credited work, draws the lottery itself, and counts
certificates itself. Only the records are judged by the contracts. A bug in the core therefore shows as a
disagreement, and is not repeated here.
"""

from __future__ import annotations

import hashlib

from edgepool.core.consensus.lottery import leader_order, lottery_seed, weights
from edgepool.core.ledger.credit import CYCLE_BLOCKS, MAX_STEP_MINUTES
from edgepool.core.ledger.facts import TaskState
from edgepool.core.ledger.state import ChainState
from edgepool.model.beacon import first_beacon
from edgepool.model.block import PRECOMMIT, Block, CertifiedBlock, Header, records_root
from edgepool.model.crypto import verify
from edgepool.model.ids import PeerId
from edgepool.model.pool import BEACON_LENGTH, Genesis
from edgepool.model.record import MachiningCompletion, MachiningProcedure, QualityInspection, SignedRecord

# Bound here, so that a canary that swaps them in the core does not swap them here.
_order, _seed, _weights, _verify, _root = leader_order, lottery_seed, weights, verify, records_root


class ChainOracle:
    """Follows one chain block by block; every problem it names is a violation."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.chain = genesis.chain
        self.network = genesis.invitation.network
        self.members = genesis.members
        self.blocks: list[bytes] = []
        self.places: dict[bytes, tuple[int, int]] = {}
        """Record id -> (height, index in the block)."""
        self._state = ChainState(genesis)
        self._beacon = first_beacon(genesis)
        self._tips = {yes.member: yes.beacon_tip for yes in genesis.acceptances}
        self._reveals: dict[PeerId, int] = {}
        self._minutes: dict[int, dict[PeerId, int]] = {}
        self._credited: dict[tuple[str, int], None] = {}
        self._leaders: tuple[int, tuple[PeerId, ...]] = (-1, ())
        self._certificates: dict[int, dict[object, None]] = {}

    @property
    def height(self) -> int:
        """The height of the last block that stands."""
        return len(self.blocks)

    def leader(self, round: int) -> PeerId:
        """Return whom the lottery gives `round` of the next height."""
        if self._leaders[0] != self.height:
            seed = _seed(self.network, self.chain, self.height + 1, self._beacon)
            # The cycle before last, of the height that is drawn.
            work = self._minutes.get(self.height // CYCLE_BLOCKS - 2, {})
            self._leaders = (self.height, _order(seed, _weights(work, self.members)))
        order = self._leaders[1]
        return order[round % len(order)]

    def next_problem(self, certified: CertifiedBlock) -> str:
        """Say why the block may not be the next one, or return '' and take it."""
        block = certified.block
        problem = (
            self._header_problem(block.header)
            or self._body_problem(block)
            or self.certificate_problem(certified)
        )
        if not problem:
            self._take(block)
        return problem

    def certificate_problem(self, certified: CertifiedBlock) -> str:
        """Say why the certificate does not make the block stand, or return ''."""
        header, certificate = certified.block.header, certified.certificate
        seen = self._certificates.setdefault(header.height, {})
        if certificate in seen:
            return ""
        if (certificate.height, certificate.block_id) != (header.height, header.id):
            return "its certificate is for another block"
        signers: dict[int, None] = {}
        for index, signature in certificate.signatures:
            terms = [self.network, self.chain, PRECOMMIT, header.height, certificate.round, header.id]
            if index < len(self.members) and _verify(self.members[index], "vote", terms, signature):
                signers[index] = None
        if 3 * len(signers) <= 2 * len(self.members):
            return f"only {len(signers)} of {len(self.members)} members have signed its certificate"
        if len(certificate.signatures) != len(signers):
            return "its certificate holds signatures that do not count"
        seen[certificate] = None
        return ""

    def _header_problem(self, header: Header) -> str:
        if (header.network, header.chain, header.height) != (self.network, self.chain, self.height + 1):
            return "it is for another network, chain or height"
        if header.previous != (self.blocks[-1] if self.blocks else bytes.fromhex(self.chain)):
            return "it does not stand on the block before"
        if header.proposer != self.leader(header.round):
            return (
                f"round {header.round} was drawn for {self.leader(header.round)}, not for {header.proposer}"
            )
        if self._reveals.get(header.proposer, 0) >= BEACON_LENGTH:
            return "it reveals something although the packer has revealed all" if header.reveal else ""
        if hashlib.sha256(header.reveal).digest() != self._tips[header.proposer]:
            return "its reveal is not the preimage of the packer's tip"
        return ""

    def _body_problem(self, block: Block) -> str:
        header = block.header
        if (header.records_count, header.records_root) != (len(block.records), _root(block.records)):
            return "its header does not fit its records"
        draft = self._state.draft()
        for index, signed in enumerate(block.records):
            if not self._signed(signed):
                return f"the signature of its record {index} does not hold"
            problem = draft.add(signed) or self._foreign_work(signed)
            if problem:
                return f"its record {index} may not stand: {problem}"
        return ""

    def _foreign_work(self, signed: SignedRecord) -> str:
        """Say whether a record reports a step that was given to another station before this block."""
        body = signed.record.body
        if not isinstance(body, MachiningProcedure | MachiningCompletion | QualityInspection):
            return ""
        task = self._state.tasks.get(body.task)
        step = task.step_of(body.operation_number) if task is not None else None
        foreign = step is not None and step.requirement.station != signed.record.author
        return "it reports the work of another station" if foreign else ""

    def _signed(self, signed: SignedRecord) -> bool:
        return _verify(signed.record.author, "record", [signed.record], signed.signature)

    def _take(self, block: Block) -> None:
        header = block.header
        self._state.apply(block)
        self._beacon = hashlib.sha256(self._beacon + header.reveal).digest()
        if header.reveal:
            self._tips[header.proposer] = header.reveal
            self._reveals[header.proposer] = self._reveals.get(header.proposer, 0) + 1
        for index, signed in enumerate(block.records):
            self.places[signed.id] = (header.height, index)
            self._credit(header.height, signed)
        self.blocks.append(header.id)
        self._certificates.pop(header.height - 100, None)

    # --- work: who else stands for it -----------------------------------------------------------

    def _credit(self, height: int, signed: SignedRecord) -> None:
        body = signed.record.body
        if not isinstance(body, MachiningProcedure | MachiningCompletion | QualityInspection):
            return
        task = self._state.tasks[body.task]
        place = task.operations[body.operation_number]
        if isinstance(body, MachiningProcedure):
            self._stand_for(height, task, place - 1, by=place)
        elif place == task.steps_planned - 1 and any(one.accepted for one in task.steps[place].inspections):
            self._stand_for(height, task, place, by=place - 1)

    def _stand_for(self, height: int, task: TaskState, place: int, by: int) -> None:
        """Credit the step at `place` if the step at `by` is another member's."""
        if place < 0 or by < 0 or not task.steps[place].done or (task.task, place) in self._credited:
            return
        station = task.steps[place].requirement.station
        if station == task.steps[by].requirement.station:
            return
        self._credited[task.task, place] = None
        work = self._minutes.setdefault((height - 1) // CYCLE_BLOCKS, {})
        minutes = min(task.steps[place].requirement.process_minutes, MAX_STEP_MINUTES)
        work[station] = work.get(station, 0) + minutes
