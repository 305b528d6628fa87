"""Bugs on purpose in what a ledger says of itself: members, evidence, snapshots, pruning; see canaries."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from canaries import STORMS, Canary, swap
from msgspec.structs import replace

from edgepool.core import adoption
from edgepool.core.adoption import Adopted, SnapshotFetcher
from edgepool.core.anchoring import Anchoring
from edgepool.core.chain import Chain
from edgepool.core.consensus import catchup, engine
from edgepool.core.intake import Intake
from edgepool.core.ledger import draft as draft_module
from edgepool.core.ledger import governance
from edgepool.core.ledger.contracts import CONTRACTS
from edgepool.core.ledger.governance import MembershipContract
from edgepool.core.ledger.root import EntrySum
from edgepool.core.ledger.roster import Roster
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import Effect, Persist, Prune
from edgepool.core.membership import Governance, MembershipPolicy
from edgepool.core.pruning import Pruner
from edgepool.model.block import Header
from edgepool.model.ids import PeerId
from edgepool.model.record import SignedRecord, kind_of
from edgepool.model.vote import Equivocation, quorum

CHANGES = "admit,exclude,replace,leave"

# --- members --------------------------------------------------------------------------------------


def membership_one_height_early(stack: ExitStack) -> None:
    """What is decided in block h is in force from h + 1."""
    closed, close = Roster.closed, ChainState._close

    def at_once(self: Roster, height: int) -> Roster:
        after = closed(self, height)
        return replace(after, present=after.following)

    def admit(self: ChainState, ids: Any) -> None:
        close(self, ids)
        change = self.pending_change
        if change is not None:
            self.tips = {member: self.tips.get(member, change.beacon_tip) for member in self.members}
            self.reveals = {member: self.reveals.get(member, 0) for member in self.members}
            self.packed = {member: self.packed.get(member, 0) for member in self.members}

    swap(stack, Roster, "closed", at_once)
    swap(stack, ChainState, "_close", admit)


def old_roster_accepted(stack: ExitStack) -> None:
    """A certificate of those who voted on the height before makes a block stand too."""
    problem = catchup.certified_problem

    def lax(certified: Any, network: str, chain: Any, members: Any, height: int) -> str:
        reason = problem(certified, network, chain, members, height)
        before = _BEFORE.get(tuple(members))
        return problem(certified, network, chain, before, height) if reason and before else reason

    meet = catchup.Company.meet

    def remember(self: Any) -> list[PeerId]:
        met = meet(self)
        if self.members != self.members_before:
            _BEFORE[self.members] = self.members_before
        return met

    for module in (catchup, engine):
        swap(stack, module, "certified_problem", lax)
    swap(stack, catchup.Company, "meet", remember)
    stack.callback(_BEFORE.clear)


_BEFORE: dict[tuple[PeerId, ...], tuple[PeerId, ...]] = {}


def approvals_of_strangers_count(stack: ExitStack) -> None:
    """Whoever has written a change has approved it, a coordinator without a vote too."""

    def counted(self: Roster) -> Roster:
        for change, authors in self.open:
            if len(authors) >= quorum(len(self.present)):
                return replace(self, decided=change, number=self.number + 1, open=())
        return self

    swap(stack, Roster, "counted", counted)


def old_numbers_accepted(stack: ExitStack) -> None:
    """A change may stand again when others have been decided meanwhile."""
    problem = MembershipContract.problem

    def lax(self: Any, view: Any, signed: SignedRecord) -> str:
        body: Any = signed.record.body
        if body.number >= view.roster.number:
            return problem(self, view, signed)
        fresh = replace(signed.record, body=replace(body, number=view.roster.number))
        reason = problem(self, view, replace(signed, record=fresh))
        return "" if "signature" in reason and not body.terms_problem(view.network, view.chain) else reason

    swap(stack, MembershipContract, "problem", lax)


def everything_approved(stack: ExitStack) -> None:
    """Members approve whatever somebody proposes."""
    swap(stack, MembershipPolicy, "_approves", lambda self, *of_it: True)


def excluded_still_counted(stack: ExitStack) -> None:
    """Who was excluded loses its turns, but its votes count on."""

    def members(self: Chain) -> tuple[PeerId, ...]:
        return (*self.state.members, *(peer for peer in self.state.former if peer not in self.state.members))

    swap(stack, Chain, "members", members)


# --- evidence -------------------------------------------------------------------------------------


def one_value_convicts(stack: ExitStack) -> None:
    """Evidence need not hold two values."""
    problem = Equivocation.problem

    def lax(self: Equivocation, network: str, chain: Any) -> str:
        reason = problem(self, network, chain)
        return "" if "the same" in reason else reason

    convict_by(stack, lax)


def other_chains_convict(stack: ExitStack) -> None:
    """Each half of the evidence may be of any chain of the network."""
    from edgepool.model import vote as vote_module

    verify = vote_module.verify
    chains: dict[Any, None] = {}

    def anywhere(peer: Any, domain: str, terms: list[Any], signature: bytes) -> bool:
        chains[terms[1]] = None
        return any(verify(peer, domain, [terms[0], chain, *terms[2:]], signature) for chain in chains)

    def problem(self: Equivocation, network: str, chain: Any) -> str:
        with ExitStack() as inner:
            swap(inner, vote_module, "verify", anywhere)
            return genuine(self, network, chain)

    genuine = Equivocation.problem
    convict_by(stack, problem)


def convict_by(stack: ExitStack, problem: Any) -> None:
    """Judge evidence by `problem`, and forget all verdicts before and afterwards."""
    swap(stack, Equivocation, "problem", problem)
    governance._evidence_problem.cache_clear()
    stack.callback(governance._evidence_problem.cache_clear)


def evidence_kept_back(stack: ExitStack) -> None:
    """Nobody tells of what it has seen."""
    swap(stack, Governance, "_evidence", lambda self, state: [])


# --- snapshots and pruning ------------------------------------------------------------------------


def root_unchecked(stack: ExitStack) -> None:
    """A state is taken over whatever its root is."""

    def finish(self: SnapshotFetcher, fetch: Any, now_ms: int) -> list[Any]:
        data = b"".join(fetch.pages)
        state = self._restore(self._genesis, data)
        self._stop()
        return [Adopted(fetch.head.height, fetch.head.handovers, state, data)]

    swap(stack, SnapshotFetcher, "_finish", finish)


def head_unchecked(stack: ExitStack) -> None:
    """A header is believed without the votes of those who had to sign it."""
    swap(stack, adoption, "head_problem", lambda head, genesis, height, handovers: "")


def pruned_above_the_horizon(stack: ExitStack) -> None:
    """Blocks go as soon as there is a snapshot, although records in them could come again."""

    def at_once(self: Pruner, state: ChainState, stored_bytes: int) -> list[Effect]:
        height = self._saved_height
        if height <= self._pruned_height:
            return []
        self._pruned_height, self._first = height, None
        return [Persist(Prune(self._chain, height, tuple(state.standing_places(height))))]

    swap(stack, Pruner, "_prune", at_once)


def old_records_accepted(stack: ExitStack) -> None:
    """A record may be older than all that is remembered."""
    problem, door = draft_module.record_problem, Intake._door

    def lax(view: Any, signed: SignedRecord) -> str:
        reason = problem(view, signed)
        if "takes records from height" not in reason or view.has_record(signed.id):
            return reason
        return CONTRACTS[kind_of(signed.record.body)].problem(view, signed)

    def open_door(self: Intake, signed: SignedRecord) -> str:
        reason = door(self, signed)
        return "" if "forgotten" in reason else reason

    swap(stack, draft_module, "record_problem", lax)
    swap(stack, Intake, "_door", open_door)


def proofs_pruned_too(stack: ExitStack) -> None:
    """Nothing stays of dropped blocks, the offers that stand neither."""
    swap(stack, ChainState, "standing_places", lambda self, height: ())


def root_keeps_what_is_forgotten(stack: ExitStack) -> None:
    """The running sum is not what somebody computes who restores the state."""
    swap(stack, EntrySum, "remove", lambda self, entry: None)


def state_root_unchecked(stack: ExitStack) -> None:
    """A packer may commit to any state."""
    problem = ChainState.header_problem

    def lax(self: ChainState, header: Header) -> str:
        return problem(self, replace(header, state_root=self.root))

    swap(stack, ChainState, "header_problem", lax)


def nothing_anchored(stack: ExitStack) -> None:
    """Heads of sub-chains are not kept on the main chain."""
    swap(stack, Anchoring, "deadline", None)


LEDGER_CANARIES: dict[str, Canary] = {
    "membership one height early": Canary(membership_one_height_early, ("validity", "members"), 5, CHANGES),
    "approvals of strangers count": Canary(
        approvals_of_strangers_count, ("validity", "members"), 20, CHANGES
    ),
    "change under an old number": Canary(
        old_numbers_accepted, ("validity",), 20, CHANGES, "govern", heights=60
    ),
    "everything approved": Canary(everything_approved, ("members",), 5, role="govern"),
    "excluded members still counted": Canary(
        excluded_still_counted, ("validity", "agreement", "liveness"), 20, STORMS, "equivocate"
    ),
    "one value convicts": Canary(one_value_convicts, ("validity", "members"), 5, role="govern"),
    "other chains convict": Canary(
        other_chains_convict, ("validity", "members"), 20, role="govern", chains=2
    ),
    "evidence kept back": Canary(evidence_kept_back, ("liveness",), 3, role="equivocate"),
    "snapshot without its root": Canary(
        root_unchecked, ("history", "order"), 20, role="false-snapshot", heights=120, wipes=8, window=6
    ),
    "snapshot without a certificate": Canary(
        head_unchecked, ("history", "order"), 20, role="false-snapshot", heights=120, wipes=8, window=6
    ),
    "pruned above the horizon": Canary(pruned_above_the_horizon, ("history",), 1, window=6),
    "old records accepted": Canary(old_records_accepted, ("validity",), 10, role="replay", window=6),
    "proofs pruned too": Canary(proofs_pruned_too, ("records",), 2, window=6),
    "root keeps what is forgotten": Canary(
        root_keeps_what_is_forgotten, ("validity", "history"), 2, window=6
    ),
    "state root unchecked": Canary(state_root_unchecked, ("validity",), 10, role="false-work"),
    "nothing anchored": Canary(nothing_anchored, ("liveness",), 1, chains=2),
}
"""Every canary of the ledger that random schedules find, by name, with its budget of seeds."""
