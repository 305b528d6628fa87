"""Tries whether other peers can be reached: TCP, then TLS with this peer's certificate, then nothing more.

The way of transfers is used, so that the other side does not take it for a link of this peer.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from edgepool.config import PeerSettings
from edgepool.errors import DecodeError, RemoteError
from edgepool.gateway.doctor import Finding
from edgepool.gateway.ways import PlaceFacts
from edgepool.model.ids import split_address
from edgepool.model.pool import Member
from edgepool.transport.conduits import Conduits
from edgepool.transport.dial import OpenStream
from edgepool.transport.identity import Identity

TIMEOUT_S = 3.0
AT_ONCE = 16
MAX_TRIES = 256
_REFUSAL_S = 1.0
"""With TLS 1.3 the other side judges a certificate only after this side is done: its no may take so long."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How a try to reach a peer at one address ended: `problem` is '' if it was reached."""

    member: Member
    address: str
    problem: str
    advice: str


async def reach(settings: PeerSettings, identity: Identity, members: Sequence[Member]) -> list[Reached]:
    """Try all addresses of `members`, some at once, each for 3 s at most; at most 256 are tried.

    Those behind a conduit are tried through it.
    """
    places = [(member, address) for member in members for address in member.addresses]
    places = [place for place in places if not split_address(place[1]).libp2p][:MAX_TRIES]
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(member: Member, address: str) -> Reached:
        async with gate:
            problem, advice = await _try(identity, member, address, conduits.open)
            return Reached(member, address, problem, advice)

    conduits = Conduits(settings, identity, {})
    try:
        return list(await asyncio.gather(*(one(*place) for place in places)))
    finally:
        await conduits.close()


async def try_places(settings: PeerSettings, identity: Identity) -> list[PlaceFacts]:
    """Ask this peer's conduits for a place, and give it up again."""
    conduits = Conduits(settings, identity, {})
    try:
        places = await asyncio.gather(
            *(conduits.try_place(address, TIMEOUT_S) for address in settings.conduits)
        )
    finally:
        await conduits.close()
    return [
        PlaceFacts(place.name, place.address, place.kept, place.reason, place.round_trip_ms)
        for place in places
    ]


def reach_findings(tries: Sequence[Reached]) -> list[Finding]:
    """Return a finding for each peer that was not reached at any of its addresses, and one for the others."""
    best: dict[str, Reached] = {}
    for one in tries:
        if one.member.peer not in best or not one.problem:
            best[one.member.peer] = one
    findings = [
        Finding(f"reach {one.member.name}", "warn", f"{one.address}: {one.problem}", one.advice)
        for one in best.values()
        if one.problem
    ]
    reached = len(best) - len(findings)
    found = f"{reached} of {len(best)} peers that are known answer" if best else "no other peer is known yet"
    return [Finding("reach", "ok", found), *findings]


async def _try(identity: Identity, member: Member, address: str, open_stream: OpenStream) -> tuple[str, str]:
    """Return (problem, advice) of reaching `member` at a multiaddr."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            connection = await open_stream(address)
            reader, writer = await asyncio.open_connection(
                sock=connection, ssl=identity.transfer_context, server_hostname=""
            )
            return await _judge(identity, member, reader, writer)
    except TimeoutError:
        return (
            f"no answer in {TIMEOUT_S:.0f} s",
            "start it, or let the firewall between pass the row below",
        )
    except ConnectionRefusedError:
        return "nothing listens there", "start it, or correct its address"
    except ssl.SSLError:
        return "TLS failed: its certificate is not of this peer's authority, or has expired", (
            "compare both peers' authority.pem, and run 'edgepool doctor' there"
        )
    except (OSError, ValueError, DecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no connection"
        return reason.lower(), "correct its address, or mend the network between"
    finally:
        if writer is not None:
            writer.transport.abort()


async def _judge(
    identity: Identity, member: Member, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, str]:
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    try:
        there = identity.trust.check(tls.getpeercert(binary_form=True) or b"")
    except RemoteError as error:
        return error.reason, "correct its address, or have it issued another certificate"
    if there.peer != member.peer:
        if there.name == member.name:
            return "it answers under another key", (
                "nothing if 'edgepool key rotate' gave it that one, which it tells this peer when both run; "
                "else correct the id in its address"
            )
        return f"another peer, {there.name}, answers there", "correct its address in known_peers"
    with suppress(TimeoutError):
        async with asyncio.timeout(_REFUSAL_S):
            with suppress(OSError):
                await reader.read(1)
            # Asyncio ends a connection whose certificate it refuses without a word about why.
            return (
                "it ends the connection at once: it refuses this peer's certificate, or is busy or closing",
                "run 'edgepool doctor' there, too: the authority, the network and the clock must be the same",
            )
    return "", ""
