from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepool.gateway.witnesses import choose_witnesses
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.runtime.ports import PeerIdentity
from edgepool.workshop.coordinator import Coordinator
from edgepool.workshop.events import Note
from edgepool.workshop.journal import Intent, Journal
from edgepool.workshop.orders import Step, Task, load_workshop


def people(*names: str) -> tuple[Member, ...]:
    return tuple(Member(PeerId(name), name, "", ()) for name in names)


@pytest.mark.parametrize(
    ("members", "witnesses", "used", "chosen"),
    [
        ("abc", "xyz", {}, "x"),
        ("ab", "zyx", {}, "xy"),
        ("ab", "xyz", {"x": 2, "y": 1}, "zy"),
        ("abc", "xyz", {"x": 1, "y": 1, "z": 1}, "x"),
        ("abx", "xyz", {}, "y"),
        ("abcd", "xyz", {}, ""),
        ("abcde", "xyz", {}, ""),
        ("ab", "x", {}, ""),
        ("abc", "", {}, ""),
    ],
)
def test_pools_are_made_four_with_the_least_used_witnesses_or_not_at_all(
    members: str, witnesses: str, used: dict[str, int], chosen: str
) -> None:
    counts = {PeerId(name): count for name, count in used.items()}
    assert choose_witnesses(people(*members), people(*witnesses), counts) == people(*chosen)


class CloudStandIn:
    """As much of a coordinator's peer as the forming of a pool needs."""

    def __init__(self, witnesses: str) -> None:
        self.id, self.name, self.chains, self.pools = PeerId("cloud"), "cloud", (), ()
        self.linked = {PeerId(name): "machine" for name in "abcd"}
        self.linked |= {PeerId(name): "witness" for name in witnesses}
        self.formed: tuple[Any, ...] = ()

    def connected(self) -> tuple[PeerIdentity, ...]:
        return tuple(PeerIdentity(peer, peer, role, "") for peer, role in self.linked.items())

    def member(self, peer: PeerId) -> Member:
        return Member(peer, peer, "", ())

    async def form_pool(self, *arguments: object, **options: object) -> Any:
        self.formed = (*arguments, options)
        members = arguments[2]
        plan = SimpleNamespace(name="pool-01", kind="manufacturing", members=members, combination=())
        return SimpleNamespace(invitation=plan)


@pytest.mark.parametrize(
    ("stations", "witnesses", "members", "notes"),
    [("ba", "xyz", "baxy", 0), ("abcd", "xyz", "abcd", 0), ("ba", "x", "ba", 1)],
)
async def test_a_pool_for_a_route_has_its_witnesses_behind_its_stations(
    stations: str, witnesses: str, members: str, notes: int, tmp_path: Path
) -> None:
    workshop = load_workshop(Path(__file__).parents[2] / "examples" / "rocket_motor.toml")
    task = Task("T001", "P-01", tuple(Step(10 * n, "Milling", 5, 0) for n in range(len(stations))))
    cloud, told = CloudStandIn(witnesses), list[object]()
    journal = Journal(tmp_path / "journal")
    coordinator = Coordinator(cloud, workshop, (task,), journal, told.append)  # type: ignore[arg-type]
    for _ in range(2):
        await coordinator._form(Intent("T001", "pool-01", tuple(stations), False))
    journal.close()
    assert [member.name for member in cloud.formed[2]] == list(members)
    assert [member.name for member in cloud.formed[3]["observers"]] == ["cloud"]
    assert sum(isinstance(event, Note) for event in told) == notes  # once, however many pools are formed
