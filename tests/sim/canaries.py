"""Bugs on purpose: each canary breaks one rule of the protocol, in this process and for a while.

A check that has never failed proves nothing. Switches are here and nowhere in the product: names are
replaced from outside, and put back. `CANARIES` says for each how it is found: within a budget of seeds
of the fault simulator (with which faults), or by a directed schedule in test_canaries.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from edgepool.core import replay
from edgepool.core.chain import Chain
from edgepool.core.consensus import catchup, engine
from edgepool.core.consensus import votes as votes_module
from edgepool.core.consensus.ballot import Ballot
from edgepool.core.consensus.engine import Engine
from edgepool.core.consensus.votes import VoteBook
from edgepool.core.ledger import contracts
from edgepool.core.ledger.credit import WorkAccount
from edgepool.core.ledger.facts import StepState
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import CommitBlock, VoteState
from edgepool.model import vote as vote_module
from edgepool.model.crypto import sha256
from edgepool.model.record import SignedRecord
from edgepool.model.vote import PRECOMMIT, Certificate, Vote
from edgepool.sim.chaos import Chaos
from edgepool.sim.plan import Fault, Plan, make_plan, parse_kinds
from edgepool.storage.memory import MemoryStore


@dataclass(frozen=True)
class Canary:
    """One bug: how it is switched on, and where it is looked for.

    `rules` are those of edgepool.sim.checkers of which one must be violated; `seeds` bounds the runs.
    Each run has the `faults` of its seed, with one liar of `role`, `cuts` power cuts, `wipes` of an
    observer's disk, `admits` of strangers and `keys` that change (with that of the `coordinator`) added; with
    a `window`, history is forgotten after so many blocks. A `late` liar turns bad when its key changes.
    """

    switch: Callable[[ExitStack], None]
    rules: tuple[str, ...]
    seeds: int
    faults: str = "none"
    role: str = ""
    cuts: int = 0
    heights: int = 30
    wipes: int = 0
    admits: int = 0
    chains: int = 0
    window: int = 0
    keys: int = 0
    keys_ms: int = 900
    coordinator: bool = False
    members: int = 4
    late: str = ""

    def plan(self, seed: int) -> Plan:
        plan = make_plan(seed, self.heights, self.members, parse_kinds(self.faults))
        plan = replace(plan, spares=max(plan.spares, self.admits and 1 + self.admits, bool(self.wipes)))
        draw = Random(f"canary/{seed}")
        faults = [fault for fault in plan.faults if fault.kind != "byzantine"]
        for _ in range(self.cuts):
            place = {"peer": draw.randrange(4), "skip": draw.randrange(4), "for_ms": draw.randrange(400)}
            cut = {**place, "kept": draw.randrange(-1, 2), "said": draw.randrange(4)}
            faults.append(Fault(draw.randrange(4_000), "persist-crash", cut))
        for number in range(self.wipes):
            time_ms = 400 * (1 + number)
            faults.append(Fault(time_ms, "wipe", {"peer": plan.first_spare, "for_ms": 100}))
            faults.append(Fault(time_ms + 150, "heal", {}))
        soon_ms = draw.randrange(1_000, 2_000)
        for spare in range(self.admits):
            where = {"peer": plan.first_spare + 1 + spare, "by": plan.first_spare - 1, "chain": 0}
            faults.append(Fault(soon_ms + 100 * spare, "admit", where))
        faults += self._changing(Random(f"canary/{seed}/keys"))
        if self.coordinator:
            faults.append(Fault(300, "key", {"peer": plan.first_spare - 1}))
        faults.sort(key=lambda fault: fault.time_ms)
        if self.role:
            faults.insert(0, Fault(0, "byzantine", {"peer": draw.randrange(4), "role": self.role}))
        if self.window:
            faults.insert(0, Fault(0, "prune", {"window": self.window, "page_bytes": 4_000}))
        chains = 2 if self.role == "replay" else self.chains or plan.chains
        return replace(plan, faults=tuple(faults), chains=chains)

    def _changing(self, draw: Random) -> list[Fault]:
        """Return the changes of keys, and the liar that comes with them."""
        faults = []
        for number in range(self.keys):
            time_ms = draw.randrange(200, self.keys_ms)
            peer = number % self.members
            faults.append(Fault(time_ms, "key", {"peer": peer}))
            if self.late and not number:
                liar = {"peer": peer, "role": self.late}
                faults.append(Fault(time_ms + draw.randrange(40, 120), "byzantine", liar))
        return faults


@contextmanager
def switched_on(switch: Callable[[ExitStack], None]) -> Iterator[None]:
    with ExitStack() as stack:
        switch(stack)
        yield


def swap(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(patch.object(owner, name, value))


# --- votes and locks ------------------------------------------------------------------------------


def quorum_of_one_half(stack: ExitStack) -> None:
    for module in (vote_module, votes_module):
        swap(stack, module, "quorum", lambda members: members // 2)


def no_lock(stack: ExitStack) -> None:
    swap(stack, Ballot, "acceptable", lambda self, proposal: True)


def lock_forgotten_at_restart(stack: ExitStack) -> None:
    restore = Ballot.restore

    def forget(self: Ballot, saved: Any) -> None:
        restore(self, saved)
        self.locked_round, self.locked_id = -1, b""

    swap(stack, Ballot, "restore", forget)


def votes_forgotten_at_restart(stack: ExitStack) -> None:
    swap(stack, Engine, "_recall", lambda self: False)


def first_vote_only(stack: ExitStack) -> None:
    add = VoteBook.add

    def first(self: VoteBook, vote: Vote) -> bool:
        if self.said(vote.kind, vote.round, vote.voter) is not None:
            return False
        return add(self, vote)

    swap(stack, VoteBook, "add", first)


def polka_of_one_member(stack: ExitStack) -> None:
    """A proposal's or a stranger's polka is believed without counting its voters."""

    def believe(self: Ballot, sender: Any, block_id: bytes, round: int, votes: Any) -> bool:
        self._proven[round] = block_id
        return True

    swap(stack, Ballot, "_prove", believe)


def votes_unverified(stack: ExitStack) -> None:
    swap(stack, Vote, "authentic", lambda self, network, chain: True)


def replay_across_chains(stack: ExitStack) -> None:
    """A vote is believed on this chain although its signature is for another one."""
    genuine = Vote.authentic
    chains: dict[Any, None] = {}

    def authentic(self: Vote, network: str, chain: Any) -> bool:
        chains[chain] = None
        return any(genuine(self, network, one) for one in chains)

    swap(stack, Vote, "authentic", authentic)


# --- storage --------------------------------------------------------------------------------------


def vote_before_persist(stack: ExitStack) -> None:
    """Messages leave first, then what they say is stored."""
    store = Chaos._store

    def perform(self: Chaos, peer: Any, effects: list[Any]) -> None:
        items = [effect.item for effect in effects if hasattr(effect, "item")]
        self._speak(peer, [effect for effect in effects if not hasattr(effect, "notice")])
        if items and not store(self, peer, items):
            return
        self._speak(peer, [effect for effect in effects if hasattr(effect, "notice")])
        self._stirred[peer.id] = peer

    swap(stack, Chaos, "_perform", perform)


def missing_fsync_of_blocks(stack: ExitStack) -> None:
    """A sync makes all durable but the blocks."""
    sync = MemoryStore.sync

    def careless(self: MemoryStore) -> None:
        blocks = [item for item in self._unsynced if isinstance(item, CommitBlock)]
        self._unsynced[:] = [item for item in self._unsynced if not isinstance(item, CommitBlock)]
        sync(self)
        self._unsynced[:] = blocks

    swap(stack, MemoryStore, "sync", careless)


def missing_fsync_of_votes(stack: ExitStack) -> None:
    sync = MemoryStore.sync

    def lazy(self: MemoryStore) -> None:
        votes = [item for item in self._unsynced if isinstance(item, VoteState)]
        self._unsynced[:] = [item for item in self._unsynced if not isinstance(item, VoteState)]
        sync(self)
        self._unsynced[:] = votes[-1:]

    swap(stack, MemoryStore, "sync", lazy)


# --- blocks and certificates ----------------------------------------------------------------------


def duplicate_signers_accepted(stack: ExitStack) -> None:
    """A certificate is counted by its signatures, not by its signers."""

    def problem(self: Certificate, network: str, chain: Any, members: Any) -> str:
        if len(self.signatures) < vote_module.quorum(len(members)):
            return "too few"
        for index, signature in self.signatures:
            vote = Vote(PRECOMMIT, self.height, self.round, self.block_id, members[index], signature)
            if not vote.authentic(network, chain):
                return "bad signature"
        return ""

    swap(stack, Certificate, "problem", problem)


def stale_certificate_accepted(stack: ExitStack) -> None:
    """Whichever block a certificate is for, it makes this one stand."""

    def problem(certified: Any, network: str, chain: Any, members: Any, height: int) -> str:
        if certified.block.header.height != height:
            return "another height"
        return certified.block.body_problem() or certified.certificate.problem(network, chain, members)

    for module in (catchup, engine):
        swap(stack, module, "certified_problem", problem)


def any_block_stands(stack: ExitStack) -> None:
    """Blocks are voted for without looking at their records."""

    def check(self: Chain, block: Any) -> str:
        reason = self.state.header_problem(block.header) or block.body_problem()
        if not reason and block.header.proposer != self.leader(block.header.round):
            reason = "not the leader"
        return reason

    swap(stack, Chain, "check_block", check)


def record_signature_unchecked(stack: ExitStack) -> None:
    swap(stack, SignedRecord, "authentic", lambda self: True)


# --- lottery --------------------------------------------------------------------------------------


def biased_lottery(stack: ExitStack) -> None:
    """The first ticket wins, whatever the weights."""

    def order(seed: bytes, weights: Any) -> tuple[Any, ...]:
        return tuple(sorted(weights, key=lambda peer: sha256(seed + peer.encode())))

    swap(stack, replay, "leader_order", order)


def grindable_beacon(stack: ExitStack) -> None:
    """The beacon absorbs the block's id, which its packer can choose."""
    apply = ChainState.apply

    def absorb(self: ChainState, block: Any, missed: Any = ()) -> None:
        apply(self, block, missed)
        self.beacon = sha256(self.beacon + block.header.id)

    swap(stack, ChainState, "apply", absorb)


def weights_of_the_present_cycle(stack: ExitStack) -> None:
    """Work counts at once, so a packer can choose the weights of the draw that follows."""

    def work(self: ChainState) -> dict[Any, int]:
        earned: dict[Any, int] = {}
        for minutes in self._work.minutes.values():
            for peer, amount in minutes.items():
                earned[peer] = earned.get(peer, 0) + amount
        return {peer: earned[peer] for peer in self.members if earned.get(peer)}

    swap(stack, ChainState, "work", work)


def reveal_unchecked(stack: ExitStack) -> None:
    """A packer may feed the beacon whatever it likes."""
    problem = ChainState.header_problem

    def lax(self: ChainState, header: Any) -> str:
        reason = problem(self, header)
        return "" if "reveals does not lead" in reason else reason

    swap(stack, ChainState, "header_problem", lax)


def self_countersigned_work(stack: ExitStack) -> None:
    """Whoever says so stands for a step, its own station too."""

    def stand_for(self: WorkAccount, height: int, step: StepState, by: Any, faulty: int) -> None:
        if step.credit is None and step.done:
            step.credit = (by, step.earns)
            self._add(height, step.requirement.station, step.earns)

    swap(stack, WorkAccount, "_stand_for", stand_for)


def missed_turns_forgiven(stack: ExitStack) -> None:
    """Letting one's turn pass costs nothing."""
    swap(stack, ChainState, "missed", lambda self: ())


def work_of_others_accepted(stack: ExitStack) -> None:
    """Any member may report the completion of any station's step."""

    def own_step(view: Any, signed: Any, task: str, number: int) -> Any:
        found = view.task(task)
        step = found.step_of(number) if found is not None else None
        return step if step is not None else "not required here"

    swap(stack, contracts, "_own_step", own_step)


# --- going on -------------------------------------------------------------------------------------


def no_repair(stack: ExitStack) -> None:
    """Nobody passes on votes that others have lost."""
    swap(stack, Engine, "_repair", lambda self, peer, status, now: None)
    swap(stack, Ballot, "said_by", lambda self, me: [])


def no_catch_up(stack: ExitStack) -> None:
    swap(stack, Engine, "_serve", lambda self, peer, first, now: None)


def honest_blamed(stack: ExitStack) -> None:
    """Who passes on a vote of an equivocator is accused in its place."""
    admit = Ballot.admit_vote

    def blame(self: Ballot, sender: Any, vote: Vote) -> bool:
        said = self.book.said(vote.kind, vote.round, vote.voter)
        if said is not None and said.block_id != vote.block_id:
            self._blame(sender, "said two things")
        return admit(self, sender, vote)

    swap(stack, Ballot, "admit_vote", blame)


def done_before_durable(stack: ExitStack) -> None:
    """The owner is told before the block is on disk."""
    store, tell = Chaos._store, Chaos._tell

    def perform(self: Chaos, peer: Any, effects: list[Any]) -> None:
        for effect in effects:
            if hasattr(effect, "notice"):
                tell(self, peer, effect.notice)
        items = [effect.item for effect in effects if hasattr(effect, "item")]
        if items and not store(self, peer, items):
            return
        self._speak(peer, [effect for effect in effects if not hasattr(effect, "notice")])
        self._stirred[peer.id] = peer

    swap(stack, Chaos, "_perform", perform)


STORMS = "delay,loss,duplication,reordering,partition,one-way,reset"

CANARIES: dict[str, Canary] = {
    "quorum of one half": Canary(quorum_of_one_half, ("agreement", "validity", "locks"), 2),
    "no lock": Canary(no_lock, ("locks", "agreement"), 20, STORMS, "equivocate"),
    "own votes forgotten after restart": Canary(
        votes_forgotten_at_restart, ("signatures", "locks"), 20, cuts=40
    ),
    "vote before persist": Canary(vote_before_persist, ("signatures", "locks"), 20, cuts=40),
    "missing fsync of blocks": Canary(missing_fsync_of_blocks, ("durability",), 5, cuts=10),
    "missing fsync of votes": Canary(missing_fsync_of_votes, ("signatures", "locks"), 20, cuts=40),
    "acknowledged before durable": Canary(done_before_durable, ("records",), 2),
    "polka of one member": Canary(polka_of_one_member, ("locks", "agreement"), 10, role="forge"),
    "votes unverified": Canary(votes_unverified, ("validity", "locks", "blame"), 10, role="forge"),
    "replay across chains": Canary(replay_across_chains, ("blame", "validity"), 20, role="replay"),
    "duplicate signers accepted": Canary(
        duplicate_signers_accepted, ("validity", "agreement"), 10, role="forge"
    ),
    "stale certificate accepted": Canary(
        stale_certificate_accepted, ("validity", "agreement"), 20, role="forge"
    ),
    "any block stands": Canary(any_block_stands, ("validity", "order"), 10, role="false-work"),
    "record signature unchecked": Canary(record_signature_unchecked, ("validity",), 10, role="false-work"),
    "work of others accepted": Canary(work_of_others_accepted, ("validity",), 10, role="false-work"),
    "reveal unchecked": Canary(reveal_unchecked, ("validity",), 10, role="false-work"),
    "biased lottery": Canary(biased_lottery, ("validity",), 1),
    "grindable beacon": Canary(grindable_beacon, ("validity",), 1),
    "weights of the present cycle": Canary(weights_of_the_present_cycle, ("validity",), 3, heights=100),
    "self-countersigned work": Canary(self_countersigned_work, ("validity",), 8, heights=100),
    "missed turns forgiven": Canary(missed_turns_forgiven, ("validity",), 20, STORMS, heights=100),
    "no repair": Canary(no_repair, ("liveness",), 20, STORMS),
    "no catch-up": Canary(no_catch_up, ("liveness",), 10, STORMS),
    "honest peers blamed": Canary(honest_blamed, ("blame",), 20, STORMS, "equivocate"),
}
"""Every canary that random schedules find, by name, with its budget of seeds."""
