"""A peer's status and metrics: read from its parts, changing nothing."""

from __future__ import annotations

from collections.abc import Mapping

from edgepool.config import PeerSettings
from edgepool.core.chain import Chain
from edgepool.core.ledger.succession import known_heir
from edgepool.core.machine import Instant
from edgepool.core.node import Node
from edgepool.core.people import has_ended
from edgepool.model.ids import PeerId, short
from edgepool.model.vote import quorum
from edgepool.peer.accounting import Accounting
from edgepool.peer.keeper import DataKeeper
from edgepool.peer.lifeview import days_left
from edgepool.peer.paths import (
    conduit_of,
    found_elsewhere,
    key_by_now,
    libp2p_of,
    name_of_conduit,
    paths_of,
    places_of,
)
from edgepool.peer.pathvalues import LinkStatus, PlaceStatus
from edgepool.peer.values import ChainStatus, PeerStatus, TransferStatus
from edgepool.runtime.ports import PeerIdentity, Transport
from edgepool.transport.paths import LinkPath


def status_of(
    settings: PeerSettings,
    node: Node,
    addresses: tuple[str, ...],
    identities: Mapping[PeerId, PeerIdentity],
    up_since_ms: Mapping[PeerId, int],
    accounting: Accounting,
    now: Instant,
    started_ms: int,
    failure: str,
    keeper: DataKeeper,
    transport: Transport,
) -> PeerStatus:
    """Return the status of one peer; `problems` are sentences about what needs a person."""
    chains = [_chain_status(chain, node) for chain in node.chains.values()]
    network_load, processing_load = node.directory.load()
    paths, places = paths_of(transport), places_of(transport)
    wanted = _wanted(settings, node)
    return PeerStatus(
        id=node.peer,
        name=settings.name,
        network=settings.network,
        role=settings.role,
        machine_type=settings.machine_type,
        addresses=list(addresses),
        started_ms=started_ms,
        network_load_percent=network_load,
        processing_load_percent=processing_load,
        wanted=wanted,
        links=[
            _link(identity, up_since_ms[identity.peer], paths.get(identity.peer), now.wall_ms)
            for identity in identities.values()
        ],
        chains=chains,
        transfers=_transfers(node, identities, accounting, transport, now),
        totals=accounting.totals(lambda peer: key_by_now(transport, node, peer)),
        problems=[
            *_problems(chains, failure),
            *keeper.problems(),
            *_unreachable(settings, places),
            *found_elsewhere(transport, wanted),
        ],
        storage=keeper.status(),
        conduits=places,
        conduit=conduit_of(transport),
        libp2p=libp2p_of(transport),
    )


def _link(identity: PeerIdentity, since_ms: int, path: LinkPath | None, now_ms: int) -> LinkStatus:
    path = path or LinkPath("", None, None, 0, 0)
    until_ms = identity.valid_until_ms
    return LinkStatus(
        peer=identity.peer,
        name=identity.name,
        role=identity.role,
        machine_type=identity.machine_type,
        up_ms=now_ms - since_ms,
        conduit=path.conduit,
        direct_ms=path.direct_ms,
        conduit_ms=path.conduit_ms,
        bytes_sent=path.bytes_sent,
        bytes_received=path.bytes_received,
        road=path.road,
        certificate_until_ms=until_ms,
        certificate_days_left=days_left(until_ms, now_ms) if until_ms else 0.0,
        organisation=identity.organisation,
    )


def metrics_of(status: PeerStatus) -> dict[str, float]:
    """Return counters and gauges by their Prometheus names (labels inside the name)."""
    totals = status.totals
    metrics: dict[str, float] = {
        "edgepool_links": len(status.links),
        "edgepool_chains": len(status.chains),
        "edgepool_transfers_under_way": len(status.transfers),
        "edgepool_network_load_percent": status.network_load_percent,
        "edgepool_processing_load_percent": status.processing_load_percent,
        "edgepool_demands_total": totals.demands,
        "edgepool_demands_answered_total": totals.answered,
        "edgepool_demands_failed_total": totals.failed,
        "edgepool_data_sent_bytes_total": totals.bytes_sent,
        "edgepool_data_received_bytes_total": totals.bytes_received,
    }
    stored = status.storage
    for name in ("quota", "used", "kept", "evictable", "incomplete", "quarantined"):
        metrics[f"edgepool_storage_{name}_bytes"] = getattr(stored, f"{name}_bytes")
    for name in ("evicted", "damaged", "restored", "scrubbed_bytes"):
        metrics[f"edgepool_storage_{name}_total"] = getattr(stored, name)
    metrics |= _path_metrics(status)
    metrics |= _life_metrics(status)
    for stream in status.live:
        label = f'{{key="{_escape(stream.key)}"}}'
        metrics[f"edgepool_live_samples_total{label}"] = stream.put
        metrics[f"edgepool_live_subscribers{label}"] = stream.subscribers
    for chain in status.chains:
        label = f'{{chain="{chain.id}",pool="{_escape(chain.name)}"}}'
        metrics[f"edgepool_chain_height{label}"] = chain.height
        metrics[f"edgepool_chain_waiting_records{label}"] = chain.waiting
    for reason, count in sorted(totals.refused.items()):
        metrics[f'edgepool_refused_total{{reason="{_escape(reason)}"}}'] = count
    if status.libp2p is not None:
        metrics["edgepool_libp2p_running"] = status.libp2p.running
        metrics["edgepool_libp2p_restarts_total"] = status.libp2p.restarts
        for name in ("resident_bytes", "connections", "streams", "places", "circuits", "passed_bytes"):
            metrics[f"edgepool_libp2p_{name}"] = getattr(status.libp2p, name)
    return metrics


def _life_metrics(status: PeerStatus) -> dict[str, float]:
    """Return how many days are left of certificates and roots, and whether the last renewal has failed."""
    metrics: dict[str, float] = {}
    own = status.certificate
    if own is not None:
        metrics["edgepool_certificate_days_left"] = own.days_left
        metrics["edgepool_certificate_renewal_failed"] = bool(own.problem)
    for root in status.roots:
        label = f'{{organisation="{_escape(root.organisation)}",root="{root.fingerprint[:16]}"}}'
        metrics[f"edgepool_root_days_left{label}"] = root.days_left
    for link in status.links:
        if link.certificate_until_ms:
            label = f'{{peer="{_escape(link.name)}"}}'
            metrics[f"edgepool_member_certificate_days_left{label}"] = link.certificate_days_left
    return metrics


def _path_metrics(status: PeerStatus) -> dict[str, float]:
    """Return what links and conduits cost: by peer and path, by place, and for a conduit in all."""
    metrics: dict[str, float] = {}
    for link in status.links:
        label = f'{{peer="{_escape(link.name)}",conduit="{_escape(link.conduit)}",road="{link.road}"}}'
        metrics[f"edgepool_link_sent_bytes{label}"] = link.bytes_sent
        metrics[f"edgepool_link_received_bytes{label}"] = link.bytes_received
        for path, ms in (("direct", link.direct_ms), ("conduit", link.conduit_ms)):
            if ms is not None:
                name = f'edgepool_link_round_trip_ms{{peer="{_escape(link.name)}",path="{path}"}}'
                metrics[name] = ms
    for place in status.conduits:
        metrics[f'edgepool_conduit_place_kept{{conduit="{_escape(place.name or place.peer)}"}}'] = place.kept
    if status.conduit is not None:
        metrics["edgepool_conduit_places"] = len(status.conduit.places)
        metrics["edgepool_conduit_circuits"] = status.conduit.circuits
        metrics["edgepool_conduit_passed_bytes_total"] = status.conduit.bytes
    for moved in ("received", "sent"):
        through: dict[str, int] = getattr(status.totals, f"{moved}_by_conduit")
        metrics[f"edgepool_data_{moved}_through_conduits_bytes_total"] = sum(through.values())
    return metrics


def _chain_status(chain: Chain, node: Node) -> ChainStatus:
    invitation = chain.genesis.invitation
    rosters = chain.rosters
    names = rosters.names()
    state, left = chain.state, node.room.has_left(chain)
    missing = [
        member.name
        for member in state.roster
        if member.peer != node.peer and not left and not node.directory.connected(member.peer)
    ]
    return ChainStatus(
        id=chain.id,
        name=invitation.name,
        kind=invitation.kind,
        voting=chain.member,
        height=state.height,
        round=chain.engine.round,
        waiting=chain.waiting_records,
        members=[member.name for member in state.roster],
        observers=[member.name for member in state.observers],
        missing=missing,
        quorum=quorum(len(state.roster)),
        combination=list(invitation.combination),
        last_packer=names.get(state.last_packer, "") if state.last_packer else "",
        last_block_ms=state.time_ms,
        records=dict(state.counts),
        former=[one.member.name for one in rosters.former() if not known_heir(state, one.member.peer)],
        left=left,
        ended=has_ended(state),
    )


def _transfers(
    node: Node,
    identities: Mapping[PeerId, PeerIdentity],
    accounting: Accounting,
    transport: Transport,
    now: Instant,
) -> list[TransferStatus]:
    rows = []
    for transfer in accounting.under_way:
        identity = identities.get(transfer.peer)
        member = node.directory.member(transfer.peer)
        name = identity.name if identity else member.name if member else short(transfer.peer)
        elapsed_ms = max(1, now.monotonic_ms - transfer.started_ms)
        rows.append(
            TransferStatus(
                key=str(transfer.key),
                peer=transfer.peer,
                name=name,
                conduit=name_of_conduit(transport, transfer.way.conduit),
                road="libp2p" if transfer.way.libp2p else "tls",
                outgoing=transfer.outgoing,
                done_bytes=transfer.done_bytes,
                size_bytes=transfer.size_bytes,
                bytes_per_s=1000 * transfer.done_bytes // elapsed_ms,
            )
        )
    return rows


def _wanted(settings: PeerSettings, node: Node) -> list[str]:
    """Return the names of all whom this peer should be linked to."""
    names = {known.name: None for known in settings.known_peers}
    partners = {one.name: None for one in node.partners.in_pools() if one.peer != node.peer}
    return list(names | partners)


def _problems(chains: list[ChainStatus], failure: str) -> list[str]:
    problems = [f"this peer has stopped: {failure}"] if failure else []
    for chain in chains:
        reached = len(chain.members) - len(chain.missing)
        if chain.voting and reached < chain.quorum:
            problems.append(
                f"pool {chain.name}: {reached} of {len(chain.members)} members are reached and "
                f"{chain.quorum} are needed, so no record becomes final; missing: "
                f"{', '.join(chain.missing)}"
            )
        elif chain.missing:
            problems.append(f"pool {chain.name}: no link to {', '.join(chain.missing)}")
    return problems


def _unreachable(settings: PeerSettings, places: list[PlaceStatus]) -> list[str]:
    """Say so if nobody can reach this peer, as it keeps a place at none of its conduits."""
    over_libp2p = settings.transport != "tls" and bool(settings.libp2p.listen)
    if settings.listen or over_libp2p or not places or any(place.kept for place in places):
        return []
    reasons = ", ".join(f"{place.name or place.address}: {place.reason}" for place in places)
    return [
        f"this peer accepts nothing from outside and none of its conduits keeps a place for it ({reasons})"
    ]


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
