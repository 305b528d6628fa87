"""The cloud layer of the workshop: forms pools and allots tasks, and is not needed for anything else.

It keeps no state but its chains and a journal of intents (journal.py). Killed at any instant, it
comes back, catches up, and goes on where it was; meanwhile the stations work on [S3.18].
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic, time

from edgepool.core.pools.formation import Create, Reuse, Wait, choose
from edgepool.errors import EdgepoolError, LocalError, Refused, Unavailable
from edgepool.gateway.pools import form_fixed_pools, gather_members
from edgepool.gateway.witnesses import LEAST_MEMBERS, keep_witnesses, witnesses_for
from edgepool.model.ids import PeerId
from edgepool.model.pool import Genesis, Member
from edgepool.model.record import MachiningRequirement
from edgepool.model.twin import DataKey
from edgepool.peer.peer import Peer
from edgepool.peer.values import BlockAdded, EventsMissed, LinkChanged, PoolEntered
from edgepool.workshop.board import Board, see
from edgepool.workshop.events import CaughtUp, Fault, Note, PoolStands, TaskAllotted, TaskEnded, Tell
from edgepool.workshop.journal import Intent, Journal
from edgepool.workshop.orders import Task, Workshop, plan
from edgepool.workshop.twindata import STATION_KINDS

LOOK_EVERY_S = 1.0
CATCH_UP_S = 10.0
NEWS_S = 1.0
EXPERIENCE_S = 15.0
PATIENCE_S = 5.0
RETRY_S = 0.2
MAX_RETRY_S = 3.0


class Coordinator:
    """Allots `tasks` to the machines of `workshop`."""

    def __init__(
        self,
        peer: Peer,
        workshop: Workshop,
        tasks: tuple[Task, ...],
        journal: Journal,
        tell: Tell,
    ) -> None:
        self._peer = peer
        self._workshop = workshop
        self._tasks = {task.number: task for task in tasks}
        self._journal = journal
        self._tell = tell
        self._free_ms: dict[str, int] = {}
        """From when on each station has nothing planned."""
        self._told_ended: set[str] = set()
        self._told_few = False
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._started = 0.0

    async def run(self) -> None:
        """Coordinate until cancelled."""
        known = bool(self._peer.chains)
        self._started = monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            with suppress(Unavailable):  # then the pools get their witnesses as these come
                await gather_members(self._peer, self._workshop.witness_names, PATIENCE_S)
            fixed = await form_fixed_pools(self._peer, self._note_pool)
            group.create_task(keep_witnesses(self._peer, self._note))
            for genesis in fixed:
                self._tell_pool(genesis)
            if known:
                await self._catch_up()
                duration_ms = round(1000 * (monotonic() - self._started))
                board = self._board()
                self._tell(CaughtUp(len(board.history), len(board.ended), duration_ms))
            await self._experience_published(fixed)
            while True:
                board = self._board()
                self._tell_ended(board)
                self._allot(board, group)
                # Not wait_for: before Python 3.12 it loses a cancellation that comes with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._changed.wait()
                self._changed.clear()

    async def _watch(self) -> None:
        async for event in self._peer.watch():
            if isinstance(event, BlockAdded | PoolEntered | LinkChanged | EventsMissed):
                self._changed.set()

    # --- beginning --------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Wait until enough members of each pool are linked, and they have had time to bring news.

        Not needed for safety, since the chains refuse what they have already; it only makes the
        first look at the workshop a true one.
        """
        deadline = monotonic() + CATCH_UP_S
        while monotonic() < deadline:
            chains = self._peer.status().chains
            if all(len(chain.members) - len(chain.missing) >= chain.quorum for chain in chains):
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(NEWS_S)

    async def _experience_published(self, fixed: tuple[Genesis, ...]) -> None:
        """Wait until the stations have published what they know, so that others can ask for it."""
        deadline = monotonic() + EXPERIENCE_S
        machines = self._workshop.function_of
        wanted = [
            (genesis.chain, DataKey(member.name, kind))
            for genesis in fixed
            for member in genesis.invitation.members
            if member.name in machines
            for kind in STATION_KINDS
        ]
        while wanted and monotonic() < deadline:
            wanted = [(chain, key) for chain, key in wanted if not self._peer.chain_state(chain).offers(key)]
            await asyncio.sleep(0.05)
        if wanted:
            self._note(f"{len(wanted)} documents of stations are still missing, such as {wanted[0][1]}")

    # --- allotting --------------------------------------------------------------------------

    def _board(self) -> Board:
        chains = [(genesis, self._peer.chain_state(genesis.chain)) for genesis in self._peer.pools]
        connected = [identity.peer for identity in self._peer.connected()]
        return see(self._workshop, self._tasks.values(), chains, self._journal.intents, connected)

    def _allot(self, board: Board, group: asyncio.TaskGroup) -> None:
        """Write an intent for each task that can be given out now, and set about all open intents."""
        hopeless: set[tuple[str, ...]] = set()
        for task in board.waiting:
            if task.combination in hopeless:
                continue
            intent = self._choose(task, board)
            if intent is None:
                hopeless.add(task.combination)
                continue
            self._journal.write(intent)
            board = self._board()
        for intent in board.unstated:
            if intent.task not in self._under_way:
                self._under_way[intent.task] = group.create_task(self._carry_out(intent))

    def _choose(self, task: Task, board: Board) -> Intent | None:
        """Decide by Algorithm 1 who makes `task`; None if nobody can just now."""
        choice = choose(
            task.combination,
            board.history,
            board.fixed_pools,
            self._workshop.capabilities,
            self._workshop.tasks_per_machine,
        )
        match choice:
            case Reuse(pool):
                name = next(g.invitation.name for g in self._peer.pools if g.chain == pool.chain)
                return Intent(task.number, name, tuple(pool.stations), True)
            case Create(stations):
                return Intent(task.number, self._new_name(), tuple(stations), False)
            case Wait():
                return None

    def _new_name(self) -> str:
        used = {genesis.invitation.name for genesis in self._peer.pools} | set(self._journal.pools)
        number = 1
        while f"pool-{number:02d}" in used:
            number += 1
        return f"pool-{number:02d}"

    async def _carry_out(self, intent: Intent) -> None:
        """Form the pool unless it stands, and put the requirements of all steps on its chain."""
        try:
            genesis = self._standing(intent) or await self._form(intent)
            await self._state(intent, genesis)
            members = {member.peer: member.name for member in genesis.invitation.members}
            stations = tuple(members[PeerId(station)] for station in intent.stations)
            part = self._tasks[intent.task].part
            self._tell(TaskAllotted(intent.task, part, intent.pool, intent.reused, stations, _now_ms()))
        except LocalError as error:
            self._fault(f"allot task {intent.task}", error)
        except (Refused, Unavailable) as error:
            # The pool could not be formed: the task goes back, to be given to other machines.
            self._fault(f"form {intent.pool} for task {intent.task}", error)
            await asyncio.sleep(RETRY_S)
            self._journal.write(
                Intent(intent.task, intent.pool, intent.stations, intent.reused, given_up=True)
            )
        finally:
            self._under_way.pop(intent.task, None)
            self._changed.set()

    def _standing(self, intent: Intent) -> Genesis | None:
        for genesis in self._peer.pools:
            if genesis.invitation.name == intent.pool and genesis.invitation.kind == "manufacturing":
                return genesis
        return None

    async def _form(self, intent: Intent) -> Genesis:
        stations = [self._member(PeerId(station)) for station in intent.stations]
        # Behind the stations, so that these are still the steps of the route, in their order.
        members = [*stations, *witnesses_for(self._peer, stations)]
        if len(members) < LEAST_MEMBERS and not self._told_few:
            self._told_few = True
            self._note(f"pools of fewer than {LEAST_MEMBERS} machines bear no liar: no witnesses are linked")
        combination = self._tasks[intent.task].combination
        me = self._member(self._peer.id)
        genesis = await self._peer.form_pool(
            intent.pool, "manufacturing", members, combination=combination, observers=[me]
        )
        self._tell_pool(genesis)
        return genesis

    def _member(self, peer: PeerId) -> Member:
        member = self._peer.member(peer)
        if member is None:
            raise Unavailable(f"peer {peer} is not connected")
        return member

    async def _state(self, intent: Intent, genesis: Genesis) -> None:
        """Put each requirement on chain that is not there yet; goes on until all are."""
        pause_s = RETRY_S
        planned = self._requirements(intent)
        while True:
            state = self._peer.chain_state(genesis.chain)
            task = state.tasks.get(intent.task)
            missing = [body for body in planned if task is None or body.step not in task.steps]
            if not missing:
                return
            outcomes = await asyncio.gather(
                *(self._peer.submit(body, chain=genesis.chain) for body in missing),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if isinstance(outcome, LocalError) or (
                    isinstance(outcome, BaseException) and not isinstance(outcome, EdgepoolError)
                ):
                    raise outcome
                if isinstance(outcome, EdgepoolError):
                    self._fault(f"state task {intent.task}", outcome)
            if any(isinstance(outcome, BaseException) for outcome in outcomes):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_RETRY_S)

    def _requirements(self, intent: Intent) -> list[MachiningRequirement]:
        task = self._tasks[intent.task]
        self._see_plans()
        completions_ms = plan(task, intent.stations, _now_ms(), self._free_ms)
        requirements = []
        steps = zip(task.steps, intent.stations, completions_ms, strict=True)
        for place, (step, station, completion_ms) in enumerate(steps):
            requirements.append(
                MachiningRequirement(
                    task.number,
                    task.part,
                    step.operation_number,
                    step.operation,
                    PeerId(station),
                    place,
                    len(task.steps),
                    step.process_minutes,
                    step.outside_minutes,
                    completion_ms,
                )
            )
        return requirements

    def _see_plans(self) -> None:
        """Take note of what is planned on all chains: after a restart, nothing else says it."""
        for genesis in self._peer.pools:
            for task in self._peer.chain_state(genesis.chain).tasks.values():
                for step in task.steps.values():
                    station, end_ms = step.requirement.station, step.requirement.planned_completion_ms
                    self._free_ms[station] = max(self._free_ms.get(station, 0), end_ms)

    # --- telling ----------------------------------------------------------------------------

    def _tell_ended(self, board: Board) -> None:
        for ended in board.ended:
            if ended.task not in self._told_ended:
                self._told_ended.add(ended.task)
                self._tell(TaskEnded(ended.task, ended.part, ended.pool, ended.completion_ms))

    def _tell_pool(self, genesis: Genesis) -> None:
        invitation = genesis.invitation
        members = tuple(member.name for member in invitation.members)
        self._tell(
            PoolStands(invitation.name, invitation.kind, members, tuple(invitation.combination), _now_ms())
        )

    def _note_pool(self, text: str) -> None:
        """Tell what holds a fixed pool up, unless it is only that machines are still starting."""
        if monotonic() - self._started > PATIENCE_S:
            self._note(text)

    def _note(self, text: str) -> None:
        self._tell(Note(self._peer.name, text))

    def _fault(self, what: str, error: EdgepoolError) -> None:
        self._tell(Fault(self._peer.name, what, str(error), _now_ms()))


def _now_ms() -> int:
    return int(time() * 1000)
