"""The contracts at a chain's door [S3.13]: one for each kind of record, which says why one may not stand.

A contract is a pure rule, registered under (name, version): it reads what the chain knows and the
record, and returns '' or one sentence. It never writes, and it never looks at a record's outer
signature, which is checked once, where the record comes in. Every member must come to the same
answer, so a rule is never edited once chains exist: it gets a new version.
"""

from __future__ import annotations

from functools import lru_cache

from edgepool.core.ledger.facts import MAX_POLICIES, MAX_POLICIES_OF, StepState
from edgepool.core.ledger.governance import (
    ChainAnchorContract,
    EvidenceContract,
    KeySuccessionContract,
    MembershipContract,
    TrustContract,
)
from edgepool.core.ledger.statements import StatementContract
from edgepool.core.ledger.view import VERDICTS_KEPT, Contract, View
from edgepool.core.rights import WRITING, refusal
from edgepool.model.crypto import verify
from edgepool.model.policy import DataPolicy
from edgepool.model.record import (
    MAX_RECORD_BYTES,
    Complaint,
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
    Record,
    SignedRecord,
    TransferReceipt,
    TransmissionConfirmation,
    confirmation_terms,
    kind_of,
)

MAX_INSPECTIONS = 256
"""How many features of one step its station can inspect; it bounds what one step holds in memory."""

MAX_OTHERS_INSPECTIONS = 8
"""How many features of one step each other member can inspect."""


def record_problem(view: View, signed: SignedRecord) -> str:
    """Say why a record may not stand on the chain of `view`, or return ''."""
    record = signed.record
    kind = kind_of(record.body)
    contract = CONTRACTS.get(kind)
    if contract is None:
        return f"no contract here knows records of the kind '{kind}'"
    if record.network != view.network:
        return "the record is for another network"
    if record.chain != view.chain:
        return "the record is for another chain"
    if signed.size_bytes > MAX_RECORD_BYTES:
        return f"the record has {signed.size_bytes} bytes, {MAX_RECORD_BYTES} are allowed"
    problem = author_problem(view, record)
    if problem:
        return problem
    if record.since < view.horizon:
        return (
            f"it was written at height {record.since}, this chain takes records from height "
            f"{view.horizon} on: submit it again"
        )
    if record.since > view.height:
        return f"it was written at height {record.since}, which this chain, at {view.height}, has not reached"
    if view.has_record(signed.id):
        return "the record is on this chain already"
    return contract.problem(view, signed)


def author_problem(view: View, record: Record) -> str:
    """Say why the author of `record` may not write records of its kind here, or return ''."""
    subject, standing = view.author(record.author)
    if not standing:
        return "the author is no member of this pool"
    return refusal(WRITING[kind_of(record.body)], subject, standing)


class RequirementContract:
    """The coordinator gives each step of a task to a member, once, and steps agree about the task."""

    name = "requirement"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this requirement may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, MachiningRequirement)
        if not view.is_member(body.station):
            return "the station is no member of this pool"
        idle = refusal("take work", *view.author(body.station))
        if idle:
            return f"the station cannot do it: {idle}"
        if body.step >= body.steps:
            return f"step {body.step} of a task with {body.steps} steps, which count from 0"
        task = view.task(body.task)
        if task is None:
            return ""
        if task.part != body.part:
            return f"task '{task.task}' is for another part, '{task.part}'"
        if task.steps_planned != body.steps:
            return f"task '{task.task}' has {task.steps_planned} steps, not {body.steps}"
        if body.step in task.steps:
            return f"step {body.step} of task '{task.task}' is required already"
        if body.operation_number in task.operations:
            return f"operation {body.operation_number} of task '{task.task}' is required already"
        return ""


class ProcedureContract:
    """The station that a step was given to starts it, once, when the step before is complete."""

    name = "procedure"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this procedure may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, MachiningProcedure)
        step = _own_step(view, signed, body.task, body.operation_number)
        if isinstance(step, str):
            return step
        if step.procedure is not None:
            return f"operation {body.operation_number} of task '{body.task}' has started already"
        place = step.requirement.step
        task = view.task(body.task)
        before = task.steps.get(place - 1) if task is not None else None
        if place > 0 and (before is None or not before.done):
            return f"step {place - 1} of task '{body.task}' is not complete"
        return ""


class CompletionContract:
    """The station that started a step ends it, once."""

    name = "completion"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this completion may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, MachiningCompletion)
        step = _started_step(view, signed, body.task, body.operation_number)
        if isinstance(step, str):
            return step
        if step.done:
            return f"operation {body.operation_number} of task '{body.task}' is complete already"
        return ""


class SelfInspectionContract:
    """The station that started a step reports what it measured, once for each feature."""

    name = "inspection"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this inspection may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, QualityInspection)
        step = _started_step(view, signed, body.task, body.operation_number)
        return step if isinstance(step, str) else _inspected_problem(step, signed, MAX_INSPECTIONS)


class InspectionContract:
    """A step is inspected by its station once it has started, and by other members once it is complete.

    Everybody reports each feature once.
    """

    name = "inspection"
    version = 2

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this inspection may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, QualityInspection)
        found = view.task(body.task)
        step = found.step_of(body.operation_number) if found is not None else None
        if step is None or step.requirement.station == signed.record.author:
            own = _started_step(view, signed, body.task, body.operation_number)
            return own if isinstance(own, str) else _inspected_problem(own, signed, MAX_INSPECTIONS)
        if not step.done:
            return f"operation {body.operation_number} of task '{body.task}' is not complete"
        return _inspected_problem(step, signed, MAX_OTHERS_INSPECTIONS)


class OfferContract:
    """A member offers data that it holds; all who offer one version mean the same bytes [S3.8].

    What its old key has offered a member may offer once more, so that it can be proved for the new one.
    """

    name = "offer"
    version = 2

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this offer may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, DataOffer)
        problem = body.key.problem()
        if problem:
            return f"not a data key: {problem}"
        newest = view.newest_version(body.key)
        standing = view.offers(body.key, body.version) if newest else ()
        mine = [entry.ref.height for entry in standing if entry.holder == signed.record.author]
        since = view.roster.admitted_at(signed.record.author)
        if mine and max(mine) > since:
            return f"the holder offers version {body.version} already"
        if body.version < newest and not mine:
            return f"version {body.version} is older than version {newest}, which is offered here"
        if standing and standing[0].offer.root != body.root:
            return f"another root is offered here for version {body.version}"
        if standing and standing[0].offer.size_bytes != body.size_bytes:
            return f"another size is offered here for version {body.version}"
        return ""


class DemandContract:
    """A member says which data it needs."""

    name = "demand"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this demand may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, DataDemand)
        problem = body.key.problem()
        return f"not a data key: {problem}" if problem else ""


class PolicyContract:
    """A member says who may have its data, by patterns of keys; of each pattern there is one policy [S2.3].

    Whether there is any data of its under the pattern is not judged: a policy may come before the offer.
    """

    name = "policy"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this policy may not stand, or return ''."""
        body, author = signed.record.body, signed.record.author
        assert isinstance(body, DataPolicy)
        problem = body.pattern.problem()
        if problem:
            return f"not a pattern of data keys: {problem}"
        mine = view.policies_of(author)
        standing = mine.get(body.pattern)
        version = standing.policy.version if standing is not None else 0
        if body.version != version + 1:
            return f"the next policy for {body.pattern} has version {version + 1}, not {body.version}"
        if standing is not None:
            return ""
        if body.terms is None:
            return f"the author has no policy for {body.pattern} that could be taken back"
        if len(mine) >= MAX_POLICIES_OF:
            return f"the author has {MAX_POLICIES_OF} policies here: take one back, or use patterns"
        if sum(len(known) for known in view.policies().values()) >= MAX_POLICIES:
            return f"this chain has {MAX_POLICIES} policies"
        return ""


class ConfirmationContract:
    """Holder and requester have both signed the terms of a transfer [S3.13].

    The requester may be of another pool, and so may the chain that the offer stands on.
    """

    name = "confirmation"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this confirmation may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, TransmissionConfirmation)
        problem = body.key.problem()
        if problem:
            return f"not a data key: {problem}"
        if signed.record.author != body.holder:
            return "a confirmation is written by the holder"
        if body.requester == body.holder:
            return "holder and requester are the same peer"
        if not _requester_agrees(view.network, body):
            return "the requester's signature does not hold"
        return ""


class ReceiptContract:
    """Somebody has got data, and says how much of it came from whom [S3.15]."""

    name = "receipt"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this receipt may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, TransferReceipt)
        problem = body.key.problem()
        if problem:
            return f"not a data key: {problem}"
        holders = [share.holder for share in body.shares]
        if holders != sorted(set(holders)):
            return "the holders are not in order, or one stands twice"
        if signed.record.author in holders:
            return "nobody gets data from itself"
        if not all(share.size_bytes for share in body.shares):
            return "a holder who sent nothing has no share"
        if sum(share.size_bytes for share in body.shares) > body.size_bytes:
            return "the shares are more than the data"
        return ""


class ComplaintContract:
    """Somebody alleges that a holder sent a wrong chunk. It stands as its author's word, no more."""

    name = "complaint"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this complaint may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, Complaint)
        problem = body.key.problem()
        if problem:
            return f"not a data key: {problem}"
        return "nobody complains of itself" if body.holder == signed.record.author else ""


@lru_cache(maxsize=VERDICTS_KEPT)
def _requester_agrees(network: str, body: TransmissionConfirmation) -> bool:
    what = (body.key, body.root, body.requester, body.holder, body.valid_until_ms, body.purpose)
    terms = confirmation_terms(network, *what)
    return verify(body.requester, "confirmation", terms, body.requester_signature)


def _own_step(view: View, signed: SignedRecord, task: str, operation_number: int) -> StepState | str:
    """Return the step that was given to the author, or why there is none."""
    found = view.task(task)
    step = found.step_of(operation_number) if found is not None else None
    if step is None:
        return f"operation {operation_number} of task '{task}' is not required here"
    if step.requirement.station != signed.record.author:
        return f"operation {operation_number} of task '{task}' is given to another station"
    return step


def _started_step(view: View, signed: SignedRecord, task: str, operation_number: int) -> StepState | str:
    """Return the step that was given to the author and started by it, or why there is none."""
    step = _own_step(view, signed, task, operation_number)
    if isinstance(step, StepState) and step.procedure is None:
        return f"operation {operation_number} of task '{task}' has not started"
    return step


def _inspected_problem(step: StepState, signed: SignedRecord, at_most: int) -> str:
    """Say why the author may not inspect one more feature of `step`, or return ''."""
    body = signed.record.body
    assert isinstance(body, QualityInspection)
    mine = step.inspected_by(signed.record.author)
    if len(mine) >= at_most:
        return f"a member makes at most {at_most} inspections of this step"
    if any(inspection.feature == body.feature for inspection in mine):
        return f"feature '{body.feature}' of operation {body.operation_number} is inspected already"
    return ""


_ALL: tuple[Contract, ...] = (
    RequirementContract(),
    ProcedureContract(),
    CompletionContract(),
    InspectionContract(),
    OfferContract(),
    DemandContract(),
    ConfirmationContract(),
    ReceiptContract(),
    ComplaintContract(),
    MembershipContract(),
    TrustContract(),
    EvidenceContract(),
    ChainAnchorContract(),
    StatementContract(),
    PolicyContract(),
    KeySuccessionContract(),
)

_REPLACED: tuple[Contract, ...] = (SelfInspectionContract(),)

REGISTRY: dict[tuple[str, int], Contract] = {
    (contract.name, contract.version): contract for contract in (*_REPLACED, *_ALL)
}
"""Every contract that was ever in force, by name and version."""

CONTRACTS: dict[str, Contract] = {contract.name: contract for contract in _ALL}
"""The contract now in force for each kind of record; a kind without one is refused."""
