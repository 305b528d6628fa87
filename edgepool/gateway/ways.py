"""What `edgepool doctor` finds about the ways to other peers: ports, addresses, conduits, links, firewalls.

Pure functions, as in doctor.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgepool.config import PeerSettings
from edgepool.gateway.doctor import Finding
from edgepool.model.ids import parse_address, split_address


@dataclass(frozen=True, slots=True)
class FirewallRow:
    """Traffic that a firewall must let through: `port` is the one that is connected to."""

    direction: Literal["in", "out"]
    protocol: str
    port: str
    peers: str


@dataclass(frozen=True, slots=True)
class PlaceFacts:
    """A place at a conduit: whether it is `kept` (or would be), and for which `reason` not."""

    conduit: str
    address: str
    kept: bool
    reason: str
    round_trip_ms: float | None


def check_port(check: str, host: str, port: int, running: bool, problem: str) -> Finding:
    """Judge a port to listen on; `problem` is the system's answer to a try, '' if it can be bound."""
    if port == 0 and check != "API port" and not problem:
        place = "'listen' under [libp2p]" if check == "libp2p port" else "'listen'"
        return Finding(
            check,
            "warn",
            "left to the system (port 0): it is kept only until another program has it",
            f"write a fixed port behind {place}: others and firewalls must know it",
        )
    if running:
        return Finding(check, "ok", f"port {port} is this peer's, which runs" if port else "the peer runs")
    if problem:
        return Finding(
            check,
            "fault",
            f"{host} port {port} cannot be bound: {problem}",
            "end the program that has it, or set another address or port in the settings",
        )
    return Finding(check, "ok", f"port {port} is free" if port else "a free one is taken")


def check_addresses(settings: PeerSettings, told: str, others: Iterable[str]) -> Finding:
    """Judge whether peers at the addresses `others` (multiaddrs) can reach this one.

    `told` is the host that this peer tells others to dial, as it listens on all of its own.
    """
    listen = settings.listen
    if not listen:
        return _check_outbound(settings)
    far = sorted({host for host in map(_host, others) if not is_loopback(host)})
    if not is_loopback(_host(listen)):
        says = f", tells others {told}" if told != _host(listen) else ""
        if says and is_loopback(told):
            advice = "mend this machine's network, or write one of its addresses behind 'listen'"
            return Finding("addresses", "warn", f"listens on {listen}{says}: there is no route out", advice)
        return Finding("addresses", "ok", f"listens on {listen}{says}")
    if far:
        return Finding(
            "addresses",
            "warn",
            f"listens on {listen}, for this machine only, but there are peers at {_some(far)}",
            "write an address of this machine in its network, or /ip4/0.0.0.0/tcp/PORT, behind 'listen'",
        )
    return Finding("addresses", "ok", f"listens on {listen}, for peers on this machine only")


def _check_outbound(settings: PeerSettings) -> Finding:
    number = len(settings.conduits)
    if not number:
        return Finding(
            "addresses",
            "warn",
            "accepts nothing from outside and has no conduit: only peers that it can dial are linked to it",
            "write the address of a conduit, with /p2p/PEER at its end, into 'conduits', or set 'listen'",
        )
    through = "one conduit" if number == 1 else f"{number} conduits"
    return Finding("addresses", "ok", f"accepts nothing from outside; reached through {through}")


def check_places(places: Sequence[PlaceFacts]) -> list[Finding]:
    """Judge the places at this peer's conduits. Without any, a peer that accepts nothing is not reached."""
    findings = []
    none = not any(place.kept for place in places)
    for place in places:
        check = f"conduit {place.conduit or _host(place.address)}"
        if place.kept:
            cost = "" if place.round_trip_ms is None else f", {place.round_trip_ms:.1f} ms there and back"
            findings.append(Finding(check, "ok", f"keeps a place{cost}"))
            continue
        found = f"{place.address}: {place.reason}"
        if none:
            found += "; nobody reaches this peer, as no conduit keeps a place for it"
        advice = (
            "start it with serve = true under [conduit], correct its address, or let the firewall pass it"
        )
        findings.append(Finding(check, "warn", found, advice))
    return findings


def check_serving(settings: PeerSettings) -> list[Finding]:
    """Judge whether others can use a conduit; [] for a peer that is none."""
    if not settings.conduit.serve:
        return []
    host, port, _ = parse_address(settings.listen)
    if port == 0:
        advice = "write a fixed port behind 'listen': those who keep a place here know no other"
        return [Finding("conduit", "fault", "this conduit leaves its port to the system (port 0)", advice)]
    if is_loopback(host):
        advice = "write an address that both sides reach, such as /ip4/0.0.0.0/tcp/PORT, behind 'listen'"
        return [Finding("conduit", "warn", "this conduit is for peers on this machine only", advice)]
    bounds = f"{settings.conduit.reservations} places and {settings.conduit.circuits} circuits"
    return [Finding("conduit", "ok", f"serves on port {port}, up to {bounds}")]


def check_links(
    wanted: Sequence[str], linked: Iterable[str], tried: Mapping[str, tuple[str, str]]
) -> list[Finding]:
    """Judge the links of a peer that runs, by names.

    `tried` says of some that are missing how a try to reach them ended: (problem, advice), '' if well.
    """
    up = set(linked)
    missing = [name for name in wanted if name not in up]
    findings = [_check_missing(name, *tried.get(name, ("", ""))) for name in missing]
    if len(missing) < len(wanted) or not wanted:
        found = f"{len(wanted) - len(missing)} of {len(wanted)} links that are wanted stand"
        findings.insert(0, Finding("links", "ok", found))
    return findings


def _check_missing(name: str, problem: str, advice: str) -> Finding:
    general = "start it, mend the network between, or look at the counts of 'edgepool status' for refusals"
    found = f"there is none; {problem}" if problem else "there is none"
    return Finding(f"link to {name}", "warn", found, advice or general)


def firewall_rows(settings: PeerSettings, others: Iterable[tuple[str, str]]) -> list[FirewallRow]:
    """Return what a firewall must let in and out, for a peer and `others` (name, multiaddr).

    What stays on this machine is left out. Who is behind a conduit needs the way to the conduit only.
    """
    out: dict[tuple[str, int], dict[str, None]] = {}
    direct: dict[str, None] = {}
    for name, address in [*others, *(("conduit", conduit) for conduit in settings.conduits)]:
        host, port, conduit, *_ = split_address(address)
        if is_loopback(host):
            continue
        out.setdefault((host, port), {})["conduit" if conduit else name] = None
        if conduit is None and name != "conduit":
            direct[host] = None
    rows = []
    ways_in = [settings.listen] if settings.listen else []
    if settings.transport != "tls" and settings.libp2p.listen:
        ways_in.append(settings.libp2p.listen)
    for listen in ways_in:
        host, port, _ = parse_address(listen)
        if not is_loopback(host):
            sources = ", ".join(direct) or "all peers of the network"
            if settings.conduit.serve:
                sources = "all peers of the network, on both sides of this conduit"
            rows.append(
                FirewallRow("in", "TCP", str(port) if port else "what the system gives (port 0)", sources)
            )
    return rows + [
        FirewallRow("out", "TCP", str(port), f"{host} ({', '.join(names)})")
        for (host, port), names in out.items()
    ]


def is_loopback(host: str) -> bool:
    """Say whether a host of a multiaddr is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(address: str) -> str:
    return split_address(address).host


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
