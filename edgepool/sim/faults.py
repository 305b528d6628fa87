"""How the faults of a plan come over a world, and how all of them are mended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from edgepool.core.machine import Item, VoteState
from edgepool.errors import StorageError
from edgepool.model.ids import PeerId
from edgepool.sim.network import NetworkConditions
from edgepool.sim.plan import Fault
from edgepool.sim.world import REDIAL_MS, SimPeer, World
from edgepool.storage.memory import MemoryStore

CALM = NetworkConditions()
BLACKOUT_MS = 50
"""Within this time all peers lose their power in a blackout, each where it stores something."""
LINK_TIMEOUT_MS = 5_000
"""How long a partition that breaks links takes to break them, as a keepalive would."""


SPOKEN, BLOCKS_KEPT = -1, -2
"""What is left at a crash instead of a number of items: all, and it spoke; or the blocks only."""


class SimStore(MemoryStore):
    """A disk that can be full, and that keeps a part of what was not synced.

    `room` more items fit, or any number if it is None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.room: int | None = None

    def write(self, items: Iterable[Item]) -> None:
        """Take `items`; StorageError at the first that does not fit."""
        for item in items:
            if self.room is not None:
                if self.room == 0:
                    raise StorageError("no space left")
                self.room -= 1
            super().write([item])

    def crash(self, kept: int = 0) -> None:
        """Cut the power; of what was not synced, the first `kept` items are left, or only the blocks.

        A sync makes blocks durable before votes, so that no vote is left whose block is not.
        """
        if kept == BLOCKS_KEPT:
            self._unsynced.sort(key=lambda item: isinstance(item, VoteState))
            kept = sum(not isinstance(item, VoteState) for item in self._unsynced)
        super().crash(kept)


@dataclass(slots=True)
class Trap:
    """A crash that waits for a peer to store something.

    `skip` stores are let pass. `kept` un-synced items reach the disk, or the blocks only; SPOKEN
    means that all are synced and that the peer dies after `said` frames have left.
    """

    skip: int
    kept: int
    said: int
    for_ms: int


class Faults:
    """The faults that are under way in `world`; `people` stand in the order of the plan."""

    def __init__(self, world: World) -> None:
        self.people: list[SimPeer] = []
        self.injected: dict[str, int] = {}
        self.traps: dict[str, Trap] = {}
        """By the names of the peers, whatever key they have by then."""
        self.sync_ms: dict[str, int] = {}
        """How long a sync takes on a slow disk, by the same names."""
        self._world = world
        self._wiped: list[SimPeer] = []
        self._open: dict[int, Fault] = {}
        self._count = 0
        self._apply: dict[str, Callable[[Fault], None]] = {
            "partition": self._partition,
            "one-way": self._one_way,
            "reset": self._reset,
            "crash": self._crash,
            "persist-crash": self._persist_crash,
            "blackout": self._blackout,
            "clock": self._clock,
            "disk": self._disk,
            "slow-disk": self._slow_disk,
            "wipe": self._wipe,
        }

    def inject(self, fault: Fault) -> None:
        """Let a fault happen now; of what is not about wires, disks and clocks it is only counted."""
        self.injected[fault.kind] = self.injected.get(fault.kind, 0) + 1
        apply = self._apply.get(fault.kind)
        if apply is not None:
            apply(fault)
        if fault.kind in ("delay", "loss", "duplication", "reordering", "partition", "one-way"):
            self._count += 1
            number = self._count
            self._open[number] = fault
            self.weather()
            self._later(fault, partial(self._end, number))

    def heal(self) -> None:
        """Mend everything but clocks and characters; whoever is down comes back."""
        self._open.clear()
        self.traps.clear()
        self.sync_ms.clear()
        self.weather()
        for peer in self.people:
            assert isinstance(peer.store, SimStore)
            peer.store.room = None
            if not peer.up:
                self._world.restart(peer)
        for peer in self._wiped:
            self._dial_anew(peer)
        self._wiped.clear()

    def stop(self, peer: SimPeer, kept: int, for_ms: int) -> None:
        """Take a peer down, and up again after a while unless it is up by then."""
        self._world.crash(peer, kept)
        life = peer.life
        self._world.at(self._world.now_ms + for_ms, partial(self._back, peer, life))

    # --- kinds ----------------------------------------------------------------------------------

    def _partition(self, fault: Fault) -> None:
        if fault.arguments["links"]:
            self._world.at(self._world.now_ms + LINK_TIMEOUT_MS, self._break_links)

    def _one_way(self, fault: Fault) -> None:
        pass  # the weather does it

    def _reset(self, fault: Fault) -> None:
        first, second = self._peer(fault), self._peer(fault, "other")
        if first is not second and self._world.linked(first, second):
            self._world.unlink(first, second)
            self._world.at(self._world.now_ms + REDIAL_MS, partial(self._world.connect, first, second))

    def _crash(self, fault: Fault) -> None:
        peer = self._peer(fault)
        if peer.up:
            self.stop(peer, 0, self._int(fault, "for_ms"))

    def _persist_crash(self, fault: Fault) -> None:
        skip, kept, said, for_ms = (self._int(fault, name) for name in ("skip", "kept", "said", "for_ms"))
        self.traps[self._peer(fault).name] = Trap(skip, kept, said, for_ms)

    def _blackout(self, fault: Fault) -> None:
        """Each peer's power is cut at its next store, and if it has none within the time, then."""
        kept, for_ms = self._int(fault, "kept"), self._int(fault, "for_ms")
        for peer in self.people:
            self.traps[peer.name] = trap = Trap(0, kept, 0, for_ms)
            self._world.at(self._world.now_ms + BLACKOUT_MS, partial(self._spring, peer, trap))

    def _spring(self, peer: SimPeer, trap: Trap) -> None:
        if self.traps.get(peer.name) is trap:
            del self.traps[peer.name]
            if peer.up:
                self.stop(peer, 0, trap.for_ms)

    def _clock(self, fault: Fault) -> None:
        self._peer(fault).wall_offset_ms = self._int(fault, "offset_ms")

    def _disk(self, fault: Fault) -> None:
        store = self._peer(fault).store
        assert isinstance(store, SimStore)
        store.room = self._int(fault, "room")
        self._later(fault, partial(self._space, self._peer(fault)))

    def _slow_disk(self, fault: Fault) -> None:
        peer = self._peer(fault).name
        self.sync_ms[peer] = self._int(fault, "sync_ms")
        self._later(fault, partial(self.sync_ms.pop, peer, None))

    def _wipe(self, fault: Fault) -> None:
        """A disk is gone; the peer comes back with an empty one."""
        peer = self._peer(fault)
        self.stop(peer, 0, self._int(fault, "for_ms"))
        peer.store = SimStore()
        peer.store.open()
        self._wiped.append(peer)

    # --- the end of faults ----------------------------------------------------------------------

    def _later(self, fault: Fault, action: Callable[[], object]) -> None:
        self._world.at(self._world.now_ms + self._int(fault, "for_ms"), action)

    def _end(self, number: int) -> None:
        if self._open.pop(number, None) is not None:
            self.weather()

    def _back(self, peer: SimPeer, life: int) -> None:
        """Restart a peer that is still down from the same crash; a full disk keeps it down."""
        assert isinstance(peer.store, SimStore)
        if not peer.up and peer.life == life and peer.store.room is None:
            self._world.restart(peer)

    def _space(self, peer: SimPeer) -> None:
        assert isinstance(peer.store, SimStore)
        peer.store.room = None
        if not peer.up:
            self._world.restart(peer)

    def _dial_anew(self, peer: SimPeer) -> None:
        """Let a peer be told of its pools again: that is said once, and real links lose no frames."""
        for other in self.people:
            if self._world.linked(peer, other):
                self._world.unlink(peer, other)
                self._world.connect(peer, other)

    def _break_links(self) -> None:
        """Links over which nothing has come for long are given up, and dialled again."""
        world = self._world
        for index, first in enumerate(self.people):
            for second in self.people[index + 1 :]:
                if world.linked(first, second) and not world.network.reaches(first.id, second.id):
                    world.unlink(first, second)
                    world.connect(first, second)  # fails for now, and is tried again and again

    # --- the weather ----------------------------------------------------------------------------

    def weather(self) -> None:
        """Set network conditions to the worst of what is under way."""
        worst = {"delay": 10, "loss": 0, "duplication": 0, "reordering": 0, "held": 0}
        cuts: list[tuple[PeerId, PeerId]] = []
        for fault in self._open.values():
            if fault.kind == "delay":
                worst["delay"] = max(worst["delay"], self._int(fault, "most_ms"))
            elif fault.kind in ("loss", "duplication", "reordering"):
                worst[fault.kind] = max(worst[fault.kind], self._int(fault, "per_mille"))
                worst["held"] = max(worst["held"], int(str(fault.arguments.get("most_ms", 0))))
            else:
                cuts += self._cuts(fault)
        self._world.network.cut(cuts)
        self._world.network.conditions = NetworkConditions(
            CALM.delay_min_ms,
            worst["delay"],
            worst["loss"],
            worst["duplication"],
            worst["reordering"],
            worst["held"],
        )

    def _cuts(self, fault: Fault) -> list[tuple[PeerId, PeerId]]:
        if fault.kind == "one-way":
            peer = self._peer(fault).id
            others = [one.id for one in self.people if one.id != peer]
            return [(one, peer) if fault.arguments["inward"] else (peer, one) for one in others]
        side = fault.arguments["side"]
        assert isinstance(side, list)
        near = [one.id for place, one in enumerate(self.people) if place in side]
        far = [one.id for place, one in enumerate(self.people) if place not in side]
        return [pair for a in near for b in far for pair in ((a, b), (b, a))]

    def _peer(self, fault: Fault, name: str = "peer") -> SimPeer:
        return self.people[self._int(fault, name)]

    def _int(self, fault: Fault, name: str) -> int:
        value = fault.arguments[name]
        assert isinstance(value, int)
        return value
