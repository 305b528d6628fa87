"""The folders of a workshop: a small authority, a folder for each peer, made afresh [S3.6].

SITE/authority/            the organisation's root
SITE/peers/NAME/           one for each machine and witness, and for the coordinator
SITE/relay/                the relay of cloud mode
SITE/processes/            what each process was told to run, and its log
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgepool.config import FixedPool, KnownPeer, Road, Role
from edgepool.errors import LocalError
from edgepool.gateway.setup import PeerPlan, free_ports, known_from_folder, make_peer_folder
from edgepool.model.ids import format_address
from edgepool.workshop.orders import Workshop

COORDINATOR = "coordinator"
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything of one run is. `machines` and `witnesses` are folders by name."""

    folder: Path
    coordinator: Path
    coordinator_id: str
    machines: dict[str, Path] = field(default_factory=dict)
    relay: Path | None = None
    witnesses: dict[str, Path] = field(default_factory=dict)

    @property
    def peers(self) -> dict[str, Path]:
        """The folders of all peers by name, the coordinator first."""
        return {COORDINATOR: self.coordinator, **self.machines, **self.witnesses}

    @property
    def processes(self) -> Path:
        """Where specifications and logs of processes go."""
        return self.folder / "processes"


def make_site(folder: Path, workshop: Workshop, relay: bool, transport: Road = "tls") -> Site:
    """Make all folders of `workshop` under `folder`, which must be new or empty; LocalError if not.

    The peers' links go over `transport`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise LocalError(f"{folder} is not empty: name another folder")
    authority = folder / "authority"
    ports = iter(free_ports(2 * (len(workshop.function_of) + workshop.witnesses + 1)))
    pools = tuple(FixedPool(name=p.name, members=workshop.machines_of(p.name)) for p in workshop.fixed_pools)
    coordinator = folder / "peers" / COORDINATOR
    make_peer_folder(
        coordinator,
        PeerPlan(
            COORDINATOR,
            workshop.name,
            "coordinator",
            listen=format_address(HOST, next(ports)),
            fixed_pools=pools,
            transport=transport,
            libp2p_listen=format_address(HOST, next(ports)),
        ),
        authority,
    )
    known, _, coordinator_id = known_from_folder(coordinator)
    machines: dict[str, Path] = {}
    for name, function in workshop.function_of.items():
        machines[name] = folder / "peers" / name
        plan = _follower(workshop, name, "machine", function, ports, coordinator_id, known, transport)
        make_peer_folder(machines[name], plan, authority)
    witnesses = {name: folder / "peers" / name for name in workshop.witness_names}
    for name, place in witnesses.items():
        plan = _follower(workshop, name, "witness", "", ports, coordinator_id, known, transport)
        make_peer_folder(place, plan, authority)
    if relay:
        make_peer_folder(folder / "relay", PeerPlan("relay", workshop.name, "client"), authority)
    relay_folder = folder / "relay" if relay else None
    site = Site(folder, coordinator, coordinator_id, machines, relay_folder, witnesses)
    site.processes.mkdir()
    return site


def _follower(
    workshop: Workshop,
    name: str,
    role: Role,
    function: str,
    ports: Iterator[int],
    coordinator_id: str,
    known: KnownPeer,
    transport: Road,
) -> PeerPlan:
    return PeerPlan(
        name,
        workshop.name,
        role,
        function,
        listen=format_address(HOST, next(ports)),
        coordinators=(coordinator_id,),
        known_peers=(known,),
        transport=transport,
        libp2p_listen=format_address(HOST, next(ports)),
    )
