"""How the faults of a plan come over a stack, and how all of them are mended.

cut          the path between two gateways goes silent (frames wait; links give up after a while)
partition    the same between two sides
one-way      nothing gets to, or from, one gateway
reset        a link breaks
slow         frames to and from one gateway take long
crash        the power of one gateway fails
power        the same, at one of its next writes or syncs
blackout     the same, for all of them
stop         a gateway is shut down, and started again
disk-full    only so many more bytes can be written
disk-error   syncs fail
slow-disk    writes and syncs take long
clock        the wall clock jumps
key          a gateway gets another key
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from edgepool.model.ids import PeerId
from edgepool.rehearsal.disk import CALM_WORK_MS
from edgepool.rehearsal.gateway import Gateway
from edgepool.rehearsal.stack import Stack
from edgepool.sim.plan import Fault

BLACKOUT_S = 0.05
"""Within this time all gateways lose their power in a blackout, each where it stores something."""


class Faults:
    """The faults that are under way in `stack`."""

    def __init__(self, stack: Stack) -> None:
        self.injected: dict[str, int] = {}
        self._stack = stack
        self._silences: dict[int, Fault] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._number = 0
        stack.on_renamed = self._fall_silent

    def inject(self, fault: Fault) -> None:
        """Let a fault happen now."""
        if fault.kind == "key" and not self._stack.give_next_key(self._peer(fault)):
            return
        self.injected[fault.kind] = self.injected.get(fault.kind, 0) + 1
        match fault.kind:
            case "key":
                pass  # it has begun
            case "cut" | "partition" | "one-way":
                self._silence(fault)
            case "reset":
                self._stack.network.break_link(self._peer(fault).id, self._peer(fault, "other").id)
            case "crash":
                self._peer(fault).cut_power(_int(fault, "for_ms"))
            case "power":
                self._trap(self._peer(fault), fault)
            case "blackout":
                for gateway in self._stack.gateways:
                    self._trap(gateway, fault)
                    self._in(BLACKOUT_S, partial(gateway.cut_power, _int(fault, "for_ms")))
            case "stop":
                self._peer(fault).stop(_int(fault, "for_ms"))
            case "clock":
                self._peer(fault).clock.offset_ms = _int(fault, "offset_ms")
            case _:
                self._wear(fault)

    def heal(self) -> None:
        """Mend everything but clocks; whoever is down comes back."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._silences.clear()
        self._stack.network.silence(())
        self._stack.network.slow_ms.clear()
        for gateway in self._stack.gateways:
            disk = gateway.disk
            disk.room_bytes, disk.fails_to_sync, disk.work_ms, disk.trap = None, False, CALM_WORK_MS, None
            gateway.come_back()

    def _silence(self, fault: Fault) -> None:
        self._number += 1
        self._silences[self._number] = fault
        self._fall_silent()
        self._later(fault, partial(self._speak_again, self._number))

    def _speak_again(self, number: int) -> None:
        del self._silences[number]
        self._fall_silent()

    def _fall_silent(self) -> None:
        pairs = [pair for fault in self._silences.values() for pair in self._pairs(fault)]
        self._stack.network.silence(pairs)

    def _pairs(self, fault: Fault) -> list[tuple[PeerId, PeerId]]:
        people = [gateway.id for gateway in self._stack.gateways]
        if fault.kind == "one-way":
            peer = self._peer(fault).id
            others = [one for one in people if one != peer]
            return [(one, peer) if fault.arguments["inward"] else (peer, one) for one in others]
        if fault.kind == "cut":
            near, far = [self._peer(fault).id], [self._peer(fault, "other").id]
        else:
            side = fault.arguments["side"]
            assert isinstance(side, list)
            near = [one for place, one in enumerate(people) if place in side]
            far = [one for place, one in enumerate(people) if place not in side]
        return [pair for a in near for b in far if a != b for pair in ((a, b), (b, a))]

    def _trap(self, gateway: Gateway, fault: Fault) -> None:
        gateway.trap_ms = _int(fault, "for_ms")
        gateway.disk.trap = _int(fault, "skip")

    def _wear(self, fault: Fault) -> None:
        """Make a link or a disk bad for a while."""
        gateway = self._peer(fault)
        disk, slow_ms = gateway.disk, self._stack.network.slow_ms
        if fault.kind == "slow":
            slow_ms[gateway.id] = _int(fault, "most_ms")
            self._later(fault, partial(slow_ms.pop, gateway.id, None))
        elif fault.kind == "disk-full":
            disk.room_bytes = _int(fault, "room_bytes")
            self._later(fault, partial(setattr, disk, "room_bytes", None))
        elif fault.kind == "disk-error":
            disk.fails_to_sync = True
            self._later(fault, partial(setattr, disk, "fails_to_sync", False))
        else:
            disk.work_ms = _int(fault, "work_ms")
            self._later(fault, partial(setattr, disk, "work_ms", CALM_WORK_MS))

    def _later(self, fault: Fault, action: Callable[[], object]) -> None:
        self._in(_int(fault, "for_ms") / 1000, action)

    def _in(self, delay_s: float, action: Callable[[], object]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(delay_s, action))

    def _peer(self, fault: Fault, name: str = "peer") -> Gateway:
        return self._stack.gateways[_int(fault, name)]


def _int(fault: Fault, name: str) -> int:
    value = fault.arguments[name]
    assert isinstance(value, int)
    return value
