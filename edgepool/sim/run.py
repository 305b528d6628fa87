"""Runs a fault plan from beginning to end and says what came of it.

After each episode everything is mended, and the pool must go on: every honest member gets a record
onto each chain, and all honest peers come to one height and one state, within a bounded time and number of
rounds. Liars of whom an honest member has two signatures lose their vote within a bounded number of heights.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import msgspec

from edgepool.core.ledger.proof import prove_kept, standing_fault
from edgepool.core.verification import ChainChecker
from edgepool.model.codec import encode
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import DataDemand
from edgepool.model.twin import DataKey
from edgepool.sim.chaos import Chaos
from edgepool.sim.checkers import Violation
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.plan import KINDS, Plan, make_plan
from edgepool.sim.sizes import sizes_of
from edgepool.sim.world import SimPeer

HEAL_LIMIT_MS = 60_000
"""Within this much virtual time after healing, all must stand at one height with new records."""
HEAL_ROUNDS = 10
"""Within as many rounds after healing, the height that was stuck must be decided."""
MS_A_HEIGHT = 20_000
"""More virtual time than this for each height, and the pool counts as stuck."""
HEAL_P99_MS = 15_000
"""Of many healings, 99 of 100 take at most this much virtual time."""
HEALINGS_JUDGED = 100
CONVICT_HEIGHTS = 16
"""Within as many heights after healing, liars of whom there is proof have lost their votes."""
ANCHOR_LIMIT_MS = 60_000
"""Within as much virtual time of rest, the head of a sub-chain is anchored on its main chain."""
ANSWER_LIMIT_MS = 120_000
"""Within as much virtual time after that, each owner knows whether its record stands or never will."""
PROBE_RETRY_MS = 1_000


class Result(msgspec.Struct, frozen=True):
    """What a run came to. `faults` are those injected, by kind; `blocks` those of all its chains.

    `happened` counts what the ledgers did: members that came and went, snapshots, and so on. `heal_p99_ms`
    and `heal_rounds` are the slowest (99 of 100) of its healings; virtual time.
    """

    seed: int
    heights: int
    members: int
    faults: dict[str, int]
    happened: dict[str, int]
    violations: list[str]
    trace: str
    virtual_ms: int
    blocks: int
    steps: int
    heals_ms: list[int]
    heal_rounds: int
    accused: dict[str, int]

    @property
    def heal_p99_ms(self) -> int:
        """The time that 99 of 100 healings took at most, in virtual ms."""
        return percentile(self.heals_ms, 99)


def run_seed(seed: int, heights: int, members: int, faults: Sequence[str] = KINDS) -> Result:
    """Make the plan of `seed` and run it. `faults` are kinds of plan.KINDS."""
    return run_plan(make_plan(seed, heights, members, faults))


def run_plan(plan: Plan) -> Result:
    """Run `plan`; the first violation ends it and stands in the result."""
    with ideal_signatures(plan.heights), sizes_of(plan):
        collecting = gc.isenabled()
        gc.disable()  # worlds are small and short, and full of cycles that live as long as they do
        try:
            return _Run(plan).result()
        finally:
            if collecting:
                gc.enable()
                gc.collect(1)


def percentile(values: Sequence[int], percent: int) -> int:
    """Return the nearest-rank percentile of `values`; 0 if there are none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0


def slow_healing(heals_ms: Sequence[int]) -> str:
    """Say that healings took too long, where there are enough of them to tell; or return ''."""
    slowest_ms = percentile(heals_ms, 99)
    if len(heals_ms) < HEALINGS_JUDGED or slowest_ms <= HEAL_P99_MS:
        return ""
    return f"liveness: 99 of 100 healings took up to {slowest_ms} ms, {HEAL_P99_MS} ms are allowed"


def combined_trace(traces: Sequence[str]) -> str:
    """Return the one trace, or one hash over several."""
    return traces[0] if len(traces) == 1 else hashlib.sha256("".join(traces).encode()).hexdigest()


@dataclass(slots=True)
class _Probe:
    """A record by which a member shows that it can still write on a chain."""

    peer: SimPeer
    chain: ChainId
    ticket: int = 0
    asked_ms: int = 0
    life: int = -1
    """Which life of the peer was asked: who opens again under a new key has forgotten it."""


@dataclass(slots=True)
class _Healing:
    """When a healing began, and where each chain's highest honest members stood then."""

    began_ms: int
    places: dict[ChainId, tuple[int, int]] = field(default_factory=dict)


class _Run:
    """One run of one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = Random(f"{plan.seed}/probe")
        self._heals_ms: list[int] = []
        self._heal_rounds = 0
        self._world = Chaos(plan)

    def result(self) -> Result:
        """Run to the end, or to the first violation."""
        violations: list[str] = []
        try:
            self._run()
        except Violation as violation:
            violations.append(str(violation))
        world, plan = self._world, self._plan
        oracles = world.judge.oracles.values()
        return Result(
            seed=plan.seed,
            heights=plan.heights,
            members=plan.members,
            faults=dict(sorted(world.faults.injected.items())),
            happened=dict(sorted(world.judge.happened.items())),
            violations=violations,
            trace=world.trace,
            virtual_ms=world.now_ms,
            blocks=sum(oracle.height for oracle in oracles),
            steps=world.steps,
            heals_ms=self._heals_ms,
            heal_rounds=self._heal_rounds,
            accused={world.judge.names.get(peer, "a stranger"): n for peer, n in world.judge.accused.items()},
        )

    def _run(self) -> None:
        world = self._world
        world.form()
        start_ms = world.now_ms
        for fault in self._plan.faults:
            self._until(start_ms + fault.time_ms)
            if fault.kind == "heal":
                began_ms = world.now_ms
                self._heal()
                start_ms += world.now_ms - began_ms
            else:
                world.inject(fault)
            if self._height() >= self._plan.heights:
                break
            world.work(True)
        world.work(True)
        limit_ms = MS_A_HEIGHT * self._plan.heights
        if not world.run_until(lambda: self._height() >= self._plan.heights, limit_ms):
            raise Violation("liveness", f"only {self._height()} heights after {world.now_ms} ms")
        self._heal()
        if not world.run_until(self._anchored, ANCHOR_LIMIT_MS):
            raise Violation("liveness", f"a sub-chain's head is not anchored after {ANCHOR_LIMIT_MS} ms")

        for chain in world.chains:
            self._verify_anew(chain)

    def _verify_anew(self, chain: ChainId) -> None:
        """See that somebody with nothing but the genesis can check what revoked members have ever said."""
        followers = self._world.followers(chain)
        store = next((peer.store for peer in followers if peer.store.block(chain, 1) is not None), None)
        oracle = self._world.judge.oracles[chain]
        if store is None or not oracle.revoked:
            return
        checker, height = ChainChecker(oracle.genesis), 1
        while (certified := store.block(chain, height)) is not None:
            problem = checker.check(encode(certified))
            if problem:
                raise Violation("trust", f"block {height} can be checked no more by a stranger: {problem}")
            height += 1

    def _until(self, time_ms: int) -> None:
        """Run up to `time_ms`, or up to the wanted height."""
        world, heights = self._world, self._plan.heights
        if not world.run_until(lambda: self._height() >= heights, max(0, time_ms - world.now_ms)):
            world.now_ms = max(world.now_ms, time_ms)

    def _height(self) -> int:
        return self._world.judge.oracles[self._world.chains[0]].height

    # --- healing --------------------------------------------------------------------------------

    def _heal(self) -> None:
        world = self._world
        world.work(False)
        world.faults.heal()
        healing = _Healing(world.now_ms)
        for chain in world.chains:
            engines = [peer.node.chains[chain].engine for peer in world.followers(chain) if _on(peer, chain)]
            healing.places[chain] = max((engine.height, engine.round) for engine in engines)
        probes = [_Probe(peer, chain) for chain in world.chains for peer in self._writers(chain)]
        if not world.run_until(lambda: self._proven(probes), HEAL_LIMIT_MS):
            raise Violation("liveness", f"{HEAL_LIMIT_MS} ms after healing: {self._stuck(probes)}")
        self._heals_ms.append(world.now_ms - healing.began_ms)
        self._check_rounds(healing)
        self._convict(healing)
        if not world.run_until(self._at_rest, ANSWER_LIMIT_MS):
            names = [*world.owners.unanswered(), *world.keys.unsettled()]
            raise Violation("liveness", f"owners never get an answer: {', '.join(names)}")
        for peer in world.honest:
            self._check_at_rest(peer)
        world.judge.forget_promises()

    def _at_rest(self) -> bool:
        """Say whether nobody waits for anything."""
        world = self._world
        return not world.owners.unanswered() and not world.keys.unsettled() and self._level()

    def _writers(self, chain: ChainId) -> list[SimPeer]:
        """Return the honest peers who have a vote on the next heights of `chain`."""
        oracle = self._world.judge.oracles[chain]
        return [
            peer
            for peer in self._world.honest
            if peer.id in oracle.members and peer.id in oracle.newest_members
            if not self._world.is_cut(peer.id)
        ]

    def _proven(self, probes: list[_Probe]) -> bool:
        """Say whether all probes stand, one after the other, and all honest peers are at one height."""
        world = self._world
        while probes:
            probe = probes[0]
            is_out = probe.peer.id not in self._voters(probe.chain) or world.is_cut(probe.peer.id)
            if world.done(probe.ticket) or is_out:
                probes.pop(0)
                continue
            if probe.life != probe.peer.life or (
                world.refusal(probe.ticket) and world.now_ms - probe.asked_ms >= PROBE_RETRY_MS
            ):
                key = DataKey("probe", "model")
                probe.asked_ms, probe.life = world.now_ms, probe.peer.life
                body = DataDemand(key, 0, "", "")
                probe.ticket = world.put(probe.peer, body, probe.chain, self._random)
            return False
        return self._level()

    def _voters(self, chain: ChainId) -> tuple[PeerId, ...]:
        return self._world.judge.oracles[chain].newest_members

    def _level(self) -> bool:
        """Say whether all honest peers who should be are at one height on each chain; no key waits."""
        world = self._world
        return not world.keys.passing() and all(
            len({world.height(peer, chain) for peer in world.followers(chain)}) == 1 for chain in world.chains
        )

    def _check_rounds(self, healing: _Healing) -> None:
        for chain, (height, round) in healing.places.items():
            decided = self._world.judge.oracles[chain].rounds
            if len(decided) < height:
                raise Violation("liveness", f"height {height} was not decided by the probes")
            rounds = decided[height - 1] - round
            self._heal_rounds = max(self._heal_rounds, rounds)
            if rounds > HEAL_ROUNDS:
                raise Violation("liveness", f"height {height} took {rounds} rounds after healing")

    def _convict(self, healing: _Healing) -> None:
        """See that nobody keeps a vote of whom there is proof that it lies."""
        world = self._world
        for chain in world.chains:
            if not world.run_until(partial(self._rid_of_revoked, chain), ANSWER_LIMIT_MS):
                raise Violation("trust", f"who is revoked keeps a vote {ANSWER_LIMIT_MS} ms after healing")
            if not world.run_until(partial(self._innocent, chain), ANSWER_LIMIT_MS):
                raise Violation("liveness", f"a liar keeps its vote {ANSWER_LIMIT_MS} ms after healing")
            heights = world.judge.oracles[chain].height - healing.places[chain][0]
            limit = CONVICT_HEIGHTS + 2 * len(self._voters(chain))
            if world.caught and heights > limit:
                raise Violation("liveness", f"liars had their votes for {heights} heights after healing")

    def _rid_of_revoked(self, chain: ChainId) -> bool:
        """Say whether nobody has a vote who is revoked."""
        return not any(self._world.is_cut(peer) for peer in self._voters(chain))

    def _innocent(self, chain: ChainId) -> bool:
        """Say whether nobody has a vote of whom an honest member, in its present life, has the proof."""
        world, voters = self._world, self._voters(chain)
        people = {peer.id: peer for peer in world.honest if peer.id in voters and not world.is_cut(peer.id)}
        return not any(
            where == chain
            and world.judge.oracles[chain].person(liar) in voters
            and not world.judge.oracles[chain].convicts_no_more(liar)
            and any(one in people and people[one].life == life for one, life in witnesses.items())
            for (where, liar), witnesses in world.caught.items()
        )

    def _check_at_rest(self, peer: SimPeer) -> None:
        """See that `peer` has all that it should have, and that it can prove what it must."""
        world = self._world
        chains = [chain for chain in world.chains if peer in world.followers(chain)]
        world.judge.at_rest(peer.id, peer.store, chains)
        for chain in chains:
            known = peer.node.chains[chain]
            if chain == world.chains[0]:
                world.judge.trust.at_rest(peer.id, peer.node.trust)
            world.judge.stands_at(peer.id, chain, known.state.height, known.state.root)
            for height, index in world.judge.provable(peer.id, chain):
                kept = peer.store.kept(chain, height, index)
                proof = prove_kept(known.genesis, known.handovers, kept) if kept is not None else None
                fault = standing_fault(proof) if proof is not None else None
                if proof is None or fault is not None:
                    text = f"{peer.name} cannot prove the offer at {height}/{index}, which is pruned: {fault}"
                    raise Violation("records", text)

    def _anchored(self) -> bool:
        """Say whether the head of the sub-chain, if there is one, stands on the main chain."""
        world = self._world
        if len(world.chains) == 1:
            return True
        main, sub = (world.judge.oracles[chain] for chain in world.chains)
        both = [peer for peer in self._writers(main.chain) if peer in self._writers(sub.chain)]
        return not both or main.anchored.get(sub.chain, 0) >= sub.height

    def _stuck(self, probes: list[_Probe]) -> str:
        world = self._world
        places = []
        for chain in world.chains:
            for peer in world.followers(chain):
                if not _on(peer, chain):
                    places.append(f"{peer.name} is not on the chain")
                    continue
                engine = peer.node.chains[chain].engine
                places.append(f"{peer.name} {engine.height}/{engine.round}/{engine.step}")
        passing = f"; keys change of {', '.join(world.keys.passing())}" if world.keys.passing() else ""
        return f"{len(probes)} probes wait{passing}; height/round/step: {', '.join(places)}"


def _on(peer: SimPeer, chain: ChainId) -> bool:
    return chain in peer.node.chains
