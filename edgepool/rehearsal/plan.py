"""What a rehearsal will go through: plain data, made from a seed.

Faults come in episodes, and each ends with 'heal': everything is mended, and the pool must prove that it
goes on. The plan's clock stands still during that proof. Each fault carries its own end (`for_ms`).
Gateways are named by their place: 0 to members - 1 vote; the coordinator, where it only observes, is
`members`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec

from edgepool.sim.plan import Fault, Value

KINDS = (
    "cut",
    "partition",
    "one-way",
    "reset",
    "slow",
    "crash",
    "power",
    "blackout",
    "stop",
    "disk-full",
    "disk-error",
    "slow-disk",
    "clock",
    "key",
)
"""The kinds of faults; see faults.py."""

BLOCKS_AN_EPISODE = 10
_YEAR_MS = 365 * 24 * 3600 * 1000
_CLOCKS_MS = (-50 * _YEAR_MS, -60_000, -1, 1, 3_600_000, 10 * _YEAR_MS)
_MOST = {"crash": 2, "power": 4, "cut": 2, "reset": 3, "stop": 1}


class StackPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a rehearsal depends on. `observed`: the coordinator follows, it does not vote."""

    seed: int
    blocks: int
    members: int
    observed: bool
    chains: int
    faults: tuple[Fault, ...]


def make_stack_plan(seed: int, blocks: int, members: int, kinds: Sequence[str] = KINDS) -> StackPlan:
    """Return the plan of a seed; a kind that is left out changes nothing about the others."""
    shape = Random(f"{seed}/stack")
    observed = members == 1 or shape.random() < 0.5
    plan = StackPlan(seed, blocks, members, observed, 1 + (shape.random() < 0.25), ())
    faults: list[Fault] = []
    start_ms = 0
    for episode in range(-(-blocks // BLOCKS_AN_EPISODE) if kinds else 0):
        long = shape.random() < 0.15
        length_ms = shape.randrange(15_000, 40_000) if long else shape.randrange(1_000, 5_000)
        for kind in KINDS:
            if kind in kinds:
                draw = Random(f"{seed}/{episode}/{kind}")
                count = draw.randrange(_MOST.get(kind, 1) + 1) if draw.random() < 0.8 else 0
                for _ in range(count):
                    time_ms = start_ms + draw.randrange(length_ms)
                    faults.append(Fault(time_ms, kind, _arguments(plan, kind, length_ms, draw)))
        start_ms += length_ms
        faults.append(Fault(start_ms, "heal", {}))
    faults.sort(key=lambda fault: fault.time_ms)
    return msgspec.structs.replace(plan, faults=tuple(faults))


def _arguments(plan: StackPlan, kind: str, length_ms: int, draw: Random) -> dict[str, Value]:
    people = plan.members + plan.observed
    peer, other = draw.randrange(people), draw.randrange(people)
    for_ms = draw.randrange(100, max(101, length_ms))
    match kind:
        case "cut":
            return {"peer": peer, "other": other, "for_ms": for_ms}
        case "partition":
            side: list[int] = [place for place in range(people) if draw.random() < 0.5]
            return {"side": side, "for_ms": for_ms}
        case "one-way":
            return {"peer": peer, "inward": draw.randrange(2), "for_ms": for_ms}
        case "reset":
            return {"peer": peer, "other": other}
        case "slow":
            return {"peer": peer, "most_ms": draw.choice((50, 300, 1_500)), "for_ms": for_ms}
        case "power":
            return {"peer": peer, "skip": draw.randrange(40), "for_ms": for_ms}
        case "blackout":
            return {"skip": draw.randrange(6), "for_ms": for_ms}
        case "disk-full":
            return {"peer": peer, "room_bytes": draw.randrange(4_000), "for_ms": for_ms}
        case "slow-disk":
            return {"peer": peer, "work_ms": draw.choice((10, 60, 400)), "for_ms": for_ms}
        case "clock":
            return {"peer": peer, "offset_ms": draw.choice(_CLOCKS_MS)}
        case _:
            return {"peer": peer, "for_ms": for_ms}
