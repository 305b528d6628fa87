"""A fault plan: plain data, made from a seed, written as JSON, run and shrunk.

A plan is a list of faults in rising time. Each carries its own end (`for_ms`), so any of them can be
taken out alone. Faults come in episodes, and each ends with 'heal': everything is mended, and the
pool must prove that it goes on. The plan's clock stands still during that proof.

Peers are named by their place: 0 to members - 1 vote at first; then comes the coordinator, where it only
observes, and then the spares, who may be admitted later. The first spare observes the first pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec

from edgepool.errors import LocalError

ROLES = (
    "silent",
    "equivocate",
    "flood",
    "false-work",
    "withhold",
    "replay",
    "old-key",
    "forge",
    "govern",
    "false-snapshot",
)
"""What a Byzantine member does; see byzantine.py."""

KINDS = (
    "delay",
    "loss",
    "duplication",
    "reordering",
    "partition",
    "one-way",
    "reset",
    "crash",
    "persist-crash",
    "blackout",
    "clock",
    "disk",
    "slow-disk",
    "admit",
    "exclude",
    "replace",
    "leave",
    "key",
    "revoke",
    "admit-root",
    "retire-root",
    "wipe",
    "prune",
    "byzantine",
)
"""The kinds of faults that can be asked for; see faults.py, changes.py for those of the members, keys.py for
keys that change, and trusting.py for those of trust.

`prune` is no fault: the chain's window is so small in this run that history is dropped all the time.
"""
CHANGES = ("admit", "exclude", "replace", "leave")
"""What owners can want of their pool's members."""

TRUST = ("revoke", "admit-root", "retire-root")
"""What owners can want of whom their main chain trusts."""

MAX_MEMBERS = 30
MAX_SPARES = 8
BLOCKS_AN_EPISODE = 20
_YEAR_MS = 365 * 24 * 3600 * 1000
_CLOCKS_MS = (-50 * _YEAR_MS, -60_000, -1, 1, 3_600_000, 10 * _YEAR_MS)

Value = int | str | list[int]


class Fault(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One fault: when on the plan's clock, which kind, and its arguments by name."""

    time_ms: Annotated[int, msgspec.Meta(ge=0)]
    kind: str
    arguments: dict[str, Value]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a run depends on. `observed`: the coordinator follows, it does not vote.

    `chains` is 2 where the same members have a second pool, so that there is something to mix up: a
    sub-chain, which they anchor on the first. `spares` are peers that are no members at first.
    """

    seed: int
    heights: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    members: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS)]
    observed: bool
    chains: Annotated[int, msgspec.Meta(ge=1, le=2)]
    faults: tuple[Fault, ...]
    spares: Annotated[int, msgspec.Meta(ge=0, le=MAX_SPARES)] = 0

    @property
    def first_spare(self) -> int:
        """The place of the first spare: how many peers the plan has without them."""
        return self.members + 1 if self.observed else self.members

    @property
    def people(self) -> int:
        """How many peers the plan has, with coordinator and spares."""
        return self.first_spare + self.spares


def parse_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds in 'all', 'none' or a list such as 'loss,crash'; LocalError for others."""
    if text in ("all", "none"):
        return KINDS if text == "all" else ()
    kinds = tuple(part.strip() for part in text.split(",") if part.strip())
    for kind in kinds:
        if kind not in KINDS:
            raise LocalError(
                f"'{kind[:40]}' is no kind of fault: choose from {', '.join(KINDS)}, all or none"
            )
    return kinds


def parse_members(text: str) -> range:
    """Return the sizes of pools in a number or a span such as '4-10'; LocalError for others."""
    first, dash, last = text.partition("-")
    if first.isdecimal() and (last.isdecimal() or not dash):
        sizes = range(int(first), int(last or first) + 1)
        if sizes and sizes[0] >= 1 and sizes[-1] <= MAX_MEMBERS:
            return sizes
    raise LocalError(f"'{text[:40]}' is no number of members: write one up to {MAX_MEMBERS}, or 4-10")


def make_plan(seed: int, heights: int, members: int, kinds: Sequence[str] = KINDS) -> Plan:
    """Return the plan of a seed; a kind that is left out changes nothing about the others."""
    shape = Random(f"{seed}/shape")
    observed = members == 1 or shape.random() < 0.5
    spares = Random(f"{seed}/spares").randrange(1, 4) if set(kinds) & {*CHANGES, "wipe"} else 0
    plan = Plan(seed, heights, members, observed, 1 + (shape.random() < 0.25), (), spares)
    faults: list[Fault] = []
    start_ms = 0
    for episode in range(-(-heights // BLOCKS_AN_EPISODE) if kinds else 0):
        # Most storms are short, so that many things meet; in long ones rounds and locks pile up.
        length_ms = (
            shape.randrange(1_000, 5_000) if shape.random() < 0.85 else shape.randrange(10_000, 40_000)
        )
        for kind in KINDS:
            if kind in kinds and kind not in ("byzantine", "prune"):
                draw = Random(f"{seed}/{episode}/{kind}")
                faults += _some(plan, kind, start_ms, length_ms, draw)
        if "byzantine" in kinds and episode:
            faults += _late_liars(plan, start_ms, length_ms, Random(f"{seed}/{episode}/liars"))
        start_ms += length_ms
        faults.append(Fault(start_ms, "heal", {}))
    faults.sort(key=lambda fault: fault.time_ms)
    if "byzantine" in kinds:
        faults = _liars(plan, Random(f"{seed}/liars")) + faults
    if "prune" in kinds:
        faults = _prune(Random(f"{seed}/prune")) + faults
    return msgspec.structs.replace(plan, faults=tuple(faults))


def load_plan(path: Path) -> Plan:
    """Read a plan from a JSON file; LocalError says what is wrong with it."""
    try:
        return check_plan(msgspec.json.decode(path.read_bytes(), type=Plan))
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LocalError(f"{path} is not a fault plan: {error}") from None


def check_plan(plan: Plan) -> Plan:
    """Return `plan` if its faults are possible in it; LocalError otherwise."""
    for number, fault in enumerate(plan.faults):
        where = f"fault {number} of the plan"
        if fault.kind not in (*KINDS, "heal"):
            raise LocalError(f"{where} has the unknown kind '{fault.kind[:40]}'")
        missing = [name for name in SHAPES[fault.kind] if name not in fault.arguments]
        if missing or len(fault.arguments) != len(SHAPES[fault.kind]):
            raise LocalError(
                f"{where} ({fault.kind}) needs exactly {', '.join(SHAPES[fault.kind]) or 'nothing'}"
            )
        for name, value in fault.arguments.items():
            wanted: type = {"side": list, "role": str}.get(name, int)
            if not isinstance(value, wanted):
                raise LocalError(f"{where} ({fault.kind}): {name} has the wrong type")
            places = value if isinstance(value, list) else [value] if name in PLACES else []
            if any(not isinstance(place, int) or not 0 <= place < plan.people for place in places):
                raise LocalError(f"{where} ({fault.kind}): {name} names a peer that does not exist")
            if fault.kind == "prune" and not (isinstance(value, int) and value >= LEAST[name]):
                raise LocalError(f"{where} (prune): {name} is at least {LEAST[name]}")
        if fault.kind == "byzantine" and fault.arguments["role"] not in ROLES:
            raise LocalError(f"{where} has the unknown role '{fault.arguments['role']}'")
    return plan


SHAPES: dict[str, tuple[str, ...]] = {
    "heal": (),
    "delay": ("most_ms", "for_ms"),
    "loss": ("per_mille", "for_ms"),
    "duplication": ("per_mille", "for_ms"),
    "reordering": ("per_mille", "most_ms", "for_ms"),
    "partition": ("side", "links", "for_ms"),
    "one-way": ("peer", "inward", "for_ms"),
    "reset": ("peer", "other"),
    "crash": ("peer", "for_ms"),
    "persist-crash": ("peer", "skip", "kept", "said", "for_ms"),
    "blackout": ("kept", "for_ms"),
    "clock": ("peer", "offset_ms"),
    "disk": ("peer", "room", "for_ms"),
    "slow-disk": ("peer", "sync_ms", "for_ms"),
    "admit": ("peer", "by", "chain"),
    "exclude": ("peer", "by", "chain"),
    "replace": ("peer", "other", "by", "chain"),
    "leave": ("peer", "chain"),
    "key": ("peer",),
    "revoke": ("peer", "by", "own"),
    "admit-root": ("root", "by"),
    "retire-root": ("root", "by", "from_ms"),
    "wipe": ("peer", "for_ms"),
    "prune": ("window", "page_bytes"),
    "byzantine": ("peer", "role"),
}
"""The names of the arguments of each kind of fault."""

LEAST = {"window": 2, "page_bytes": 100}
"""The least window in blocks, and page in bytes, with which a pool can work."""
PLACES = ("peer", "other", "by")
"""The arguments that name a peer by its place."""
_RARE = {"revoke": 0.5}
"""A kind that is drawn so often only: who is revoked never comes back, and pools become small."""
_MOST = {"crash": 3, "persist-crash": 5, "reset": 2, "partition": 2, "slow-disk": 3, "admit": 2, "key": 2}


def _some(plan: Plan, kind: str, start_ms: int, length_ms: int, draw: Random) -> list[Fault]:
    often = _RARE.get(kind, 0.8)
    count = draw.randrange(_MOST.get(kind, 1) + 1) if draw.random() < often else 0
    return [
        Fault(start_ms + draw.randrange(length_ms), kind, _arguments(plan, kind, length_ms, draw))
        for _ in range(count)
    ]


def _arguments(plan: Plan, kind: str, length_ms: int, draw: Random) -> dict[str, Value]:
    if kind in (*CHANGES, "wipe"):
        return _change(plan, kind, draw)
    if kind in TRUST:
        return _trust(plan, kind, draw)
    if kind == "key":
        return {"peer": draw.randrange(plan.people)}
    for_ms = draw.randrange(100, max(101, length_ms))
    # Spares have a stream of their own: without them all else is the same.
    spare = Random(draw.random())
    spared = plan.spares and spare.random() < 0.15
    peer = draw.randrange(plan.first_spare)
    drawn: dict[str, Value] = {"peer": peer, "for_ms": for_ms}
    match kind:
        case "delay":
            drawn["most_ms"] = draw.choice((30, 100, 400, 1_500, 4_000))
        case "loss" | "duplication":
            drawn["per_mille"] = draw.choice((20, 100, 300, 600))
        case "reordering":
            drawn |= {"per_mille": draw.choice((50, 300)), "most_ms": draw.choice((50, 500, 3_000))}
        case "partition":
            side = [place for place in range(plan.first_spare) if draw.random() < 0.5]
            others = range(plan.first_spare, plan.people)
            drawn["side"] = side + [place for place in others if spare.random() < 0.5]
            drawn["links"] = draw.randrange(2)
        case "one-way":
            drawn["inward"] = draw.randrange(2)
        case "reset":
            drawn["other"] = draw.randrange(plan.first_spare)
        case "persist-crash":
            drawn |= {"skip": draw.randrange(12), "kept": draw.randrange(-2, 3), "said": draw.randrange(6)}
        case "clock":
            drawn["offset_ms"] = draw.choice(_CLOCKS_MS)
        case "blackout":
            drawn["kept"] = draw.randrange(-2, 3)
        case "slow-disk":
            drawn["sync_ms"] = draw.choice((3, 30, 300))
        case "disk":
            drawn["room"] = draw.randrange(3)
    if spared:
        drawn["peer"] = plan.first_spare + spare.randrange(plan.spares)
    return {name: drawn[name] for name in SHAPES[kind]}


def _change(plan: Plan, kind: str, draw: Random) -> dict[str, Value]:
    """Draw who comes or goes, and who wants it: mostly the coordinator, the last of the first people."""
    spare = plan.first_spare + draw.randrange(plan.spares)
    anybody = draw.randrange(plan.people)
    by = plan.first_spare - 1 if draw.random() < 0.6 else draw.randrange(plan.people)
    chain = int(draw.random() < 0.25)
    drawn: dict[str, Value] = {"peer": anybody, "by": by, "chain": chain}
    match kind:
        case "admit":
            drawn["peer"] = spare if draw.random() < 0.8 else anybody
        case "replace":
            drawn["other"] = spare
        case "wipe":
            drawn["peer"] = plan.first_spare if draw.random() < 0.6 else anybody
            drawn["for_ms"] = draw.randrange(100, 2_000)
    return {name: drawn[name] for name in SHAPES[kind]}


def _trust(plan: Plan, kind: str, draw: Random) -> dict[str, Value]:
    """Draw whom to trust no more, or more, and who wants it: mostly the coordinator, who is believed."""
    by = plan.first_spare - 1 if draw.random() < 0.7 else draw.randrange(plan.people)
    drawn: dict[str, Value] = {"peer": draw.randrange(plan.people), "by": by}
    drawn |= {"own": int(draw.random() < 0.3), "root": draw.randrange(4)}
    drawn["from_ms"] = draw.choice((0, 1_000, _YEAR_MS, 100 * _YEAR_MS))
    return {name: drawn[name] for name in SHAPES[kind]}


def _prune(draw: Random) -> list[Fault]:
    """Return in most plans a window of few blocks, and pages of few bytes."""
    window, page_bytes = draw.choice((6, 10, 20)), draw.choice((1_500, 4_000, 64_000))
    arguments: dict[str, Value] = {"window": window, "page_bytes": page_bytes}
    return [Fault(0, "prune", arguments)] if draw.random() < 0.7 else []


def _liars(plan: Plan, draw: Random) -> list[Fault]:
    """Return up to f Byzantine members, mostly all that the pool can bear."""
    most = (plan.members - 1) // 3
    count = most if draw.random() < 0.7 else draw.randrange(most + 1)
    places = draw.sample(range(plan.members), count)
    return [Fault(0, "byzantine", {"peer": place, "role": draw.choice(ROLES)}) for place in places]


def _late_liars(plan: Plan, start_ms: int, length_ms: int, draw: Random) -> list[Fault]:
    """Return at times somebody who turns bad later: those of the beginning may be excluded by then."""
    if draw.random() < 0.6:
        return []
    arguments: dict[str, Value] = {"peer": draw.randrange(plan.people), "role": draw.choice(ROLES)}
    return [Fault(start_ms + draw.randrange(length_ms), "byzantine", arguments)]
