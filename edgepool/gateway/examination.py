"""Examines one gateway from its folder: gathers the facts, has them judged, and tries to reach the others."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from edgepool.config import PeerSettings, load_peer_settings
from edgepool.core.heirs import Heirs
from edgepool.errors import ConfigError, EdgepoolError
from edgepool.gateway.access import ENDPOINT_FILE, Endpoint
from edgepool.gateway.client import ApiClient, find_endpoint
from edgepool.gateway.doctor import (
    ChainFacts,
    Finding,
    IdentityFacts,
    check_authority_key,
    check_chain,
    check_clock,
    check_descriptors,
    check_filesystem,
    check_folder,
    check_identity,
    check_lineage,
    check_room,
    check_sync,
    check_time_service,
)
from edgepool.gateway.gathering import (
    authority_follower,
    authority_key_problem,
    bind_problem,
    chain_facts,
    clock_kept,
    descriptor_limit,
    filesystem,
    identity_facts,
    lineage_problem,
    room,
    stored_members,
    sync_time,
    version_findings,
)
from edgepool.gateway.lifetimes import RootFacts, check_members, check_renewal, check_roots
from edgepool.gateway.reach import reach, reach_findings, try_places
from edgepool.gateway.ways import (
    FirewallRow,
    PlaceFacts,
    check_addresses,
    check_links,
    check_places,
    check_port,
    check_serving,
    firewall_rows,
)
from edgepool.model.ids import PeerId, on_tcp, parse_address
from edgepool.model.pool import Member
from edgepool.peer.values import PeerStatus
from edgepool.storage.store import list_chains
from edgepool.transport.door import reachable_host
from edgepool.transport.identity import Identity, installed_roots, load_identity


@dataclass(frozen=True, slots=True)
class Examination:
    """All that was found about one gateway, and what its firewall must let through."""

    folder: str
    name: str
    running: bool
    findings: list[Finding]
    firewall: list[FirewallRow]

    def count(self, level: str) -> int:
        """Return how many findings are of a level."""
        return sum(finding.level == level for finding in self.findings)


async def examine(folder: Path) -> Examination:
    """Examine the gateway in `folder`, which may run or not; LocalError if it is no gateway's folder."""
    endpoint, endpoint_finding = _endpoint(folder)
    running = endpoint is not None
    findings = [*endpoint_finding]
    settings: PeerSettings | None = None
    try:
        settings = load_peer_settings(folder)
        findings.append(Finding("settings", "ok", "readable, and they agree with each other"))
    except ConfigError as error:
        findings.append(Finding("settings", "fault", str(error), "correct the file; the rest waits for it"))
    findings += await asyncio.to_thread(_machine, folder, settings, endpoint)
    firewall: list[FirewallRow] = []
    if settings is not None:
        status, status_findings = await _status(folder, endpoint)
        findings += status_findings
        facts = await asyncio.to_thread(identity_facts, settings)
        findings += check_identity(facts, _now_ms(), running)
        if facts.peer is not None and not running:  # a running peer says it of itself
            findings += check_lineage(await asyncio.to_thread(lineage_problem, settings, facts.peer))
        findings += _lifetimes(settings, status)
        if settings.authority.folder:
            problem = await asyncio.to_thread(authority_key_problem, settings)
            follower = await asyncio.to_thread(authority_follower, settings)
            findings.append(check_authority_key(problem, follower))
        others = await asyncio.to_thread(_others, settings, facts.peer)
        places = [(member.name, on_tcp(address)) for member in others for address in member.addresses]
        findings += await asyncio.to_thread(_chains, settings, facts, status, running)
        findings += check_time_service(clock_kept())
        findings += _ports(settings, running)
        findings.append(check_addresses(settings, _told(settings), (address for _, address in places)))
        findings += check_serving(settings)
        if status is not None or not running:
            identity = await asyncio.to_thread(_identity, settings)
            findings += await _network(settings, identity, others, status)
        firewall = firewall_rows(settings, places)
    return Examination(str(folder), settings.name if settings else "", running, findings, firewall)


def _lifetimes(settings: PeerSettings, status: PeerStatus | None) -> list[Finding]:
    """Judge how long roots and others' certificates last: of a running peer, or else as its files say."""
    if status is not None:
        roots = [
            RootFacts(one.organisation, one.fingerprint, one.own, one.valid_until_ms) for one in status.roots
        ]
        renewal = [] if status.certificate is None else [check_renewal(status.certificate, _now_ms())]
        members = [(link.name, link.certificate_until_ms) for link in status.links]
        return [*renewal, *check_roots(roots, _now_ms()), *check_members(members, _now_ms())]
    try:
        found = installed_roots(settings)
    except (EdgepoolError, OSError):
        return []  # the finding about the authority says so
    return check_roots(
        [
            RootFacts(root.organisation, root.fingerprint.hex(), number == 0, root.valid_until_ms)
            for number, root in enumerate(found)
        ],
        _now_ms(),
    )


async def _network(
    settings: PeerSettings, identity: Identity | None, others: list[Member], status: PeerStatus | None
) -> list[Finding]:
    """Judge what a running peer says of its links and conduits; try those that it misses, or all."""
    if status is not None:
        linked = {link.name for link in status.links}
        missing = [member for member in others if member.name in status.wanted and member.name not in linked]
        tries = [] if identity is None else await reach(settings, identity, missing)
        tried = {
            one.member.name: (f"{one.address}: {one.problem}", one.advice) for one in tries if one.problem
        }
        places = [
            PlaceFacts(place.name, place.address, place.kept, place.reason, place.round_trip_ms)
            for place in status.conduits
        ]
        return [*check_places(places), *check_links(status.wanted, linked, tried)]
    if identity is None:
        return []
    places = await try_places(settings, identity)
    return [*check_places(places), *reach_findings(await reach(settings, identity, others))]


def _told(settings: PeerSettings) -> str:
    """Return the host that a peer tells others, '' if it listens nowhere."""
    if not settings.listen:
        return ""
    host, *_ = parse_address(settings.listen)
    return reachable_host(host)


def _endpoint(folder: Path) -> tuple[Endpoint | None, list[Finding]]:
    try:
        endpoint = find_endpoint(folder)
    except EdgepoolError as error:
        if not (folder / ENDPOINT_FILE).exists():
            raise
        return None, [Finding("peer", "warn", str(error), "restart the peer")]
    if endpoint is not None and not bind_problem(*_host_port(endpoint.url)):
        # After a power cut api.json is still there, and its process id may be another process's.
        return None, [Finding("peer", "ok", "does not run; its api.json is of a run that was cut off")]
    state = f"runs, process {endpoint.pid}" if endpoint else "does not run"
    return endpoint, [Finding("peer", "ok", state)]


def _host_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 0


async def _status(folder: Path, endpoint: Endpoint | None) -> tuple[PeerStatus | None, list[Finding]]:
    """Return what a running peer says of itself, None if it does not run or answer."""
    if endpoint is None:
        return None, []
    try:
        async with ApiClient.of(folder) as client:
            status = await client.status()
    except EdgepoolError as error:
        advice = "if it goes on, look at its log and restart it"
        return None, [Finding("status", "fault", f"the peer runs and does not answer: {error}", advice)]
    return status, [
        Finding("status", "warn", problem, f"see 'edgepool status {folder}'") for problem in status.problems
    ]


def _machine(folder: Path, settings: PeerSettings | None, endpoint: Endpoint | None) -> list[Finding]:
    about = folder.stat()
    findings = [
        check_folder(str(folder), about.st_mode, os.geteuid() in (about.st_uid, 0)),
        check_sync(*sync_time(folder)),
        check_filesystem(filesystem(folder)),
    ]
    if settings is not None:
        chains = _stored_chains(folder)
        findings.append(check_room(*room(folder), settings.limits, chains))
        limit = descriptor_limit(endpoint.pid if endpoint else 0)
        findings.append(check_descriptors(limit, settings.limits, settings.conduit))
    versions = version_findings()
    faults = [finding for finding in versions if finding.level != "ok"]
    fine = Finding("versions", "ok", "; ".join(finding.found for finding in versions))
    return findings + (faults or [fine])


def _identity(settings: PeerSettings) -> Identity | None:
    """Return the identity with which others are reached; None if it is not whole, which was told."""
    try:
        return load_identity(settings)
    except (EdgepoolError, OSError):
        return None


def _chains(
    settings: PeerSettings, own: IdentityFacts, status: PeerStatus | None, running: bool
) -> list[Finding]:
    try:
        stored = list_chains(settings.folder)
    except EdgepoolError as error:
        return [Finding("chains", "fault", str(error), "check the owner and the rights of the folder")]
    facts: list[ChainFacts] = []
    votes = {chain.id: chain.voting for chain in status.chains} if status is not None else {}
    for chain in stored:
        found = chain_facts(settings.folder, chain, own.peer)
        facts.append(replace(found, present=votes.get(chain, found.present)))
    findings = [check_clock(_now_ms(), own.certificate.not_before_ms, facts)]
    findings += [check_chain(one, str(settings.folder), running) for one in facts]
    return (
        findings if facts else [*findings, Finding("chains", "ok", "none yet: a coordinator forms the pools")]
    )


def _ports(settings: PeerSettings, running: bool) -> list[Finding]:
    ports = [("API port", settings.api.host, settings.api.port)]
    if settings.listen:
        ports.insert(0, ("port", *parse_address(settings.listen)[:2]))
    if settings.transport != "tls" and settings.libp2p.listen:
        ports.insert(-1, ("libp2p port", *parse_address(settings.libp2p.listen)[:2]))
    return [
        check_port(check, host, port, running, "" if running else bind_problem(host, port))
        for check, host, port in ports
    ]


def _others(settings: PeerSettings, own: PeerId | None) -> list[Member]:
    """Return whom this peer is to reach: those of the settings, and the members of its pools."""
    others = {member.peer: member for member in Heirs(settings, own or PeerId("")).known_members()}
    try:
        others |= {member.peer: member for member in stored_members(settings.folder, own) if member.addresses}
    except EdgepoolError:
        pass
    return list(others.values())


def _stored_chains(folder: Path) -> int:
    try:
        return len(list_chains(folder))
    except EdgepoolError:
        return 0


def _now_ms() -> int:
    return int(time.time() * 1000)
