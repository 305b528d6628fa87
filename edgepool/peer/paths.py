"""What a peer's transport says of the paths of its links, its conduits, and what it is as one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict

from edgepool.core.circuits import Pair
from edgepool.core.machine import Event, Moved
from edgepool.core.node import Node
from edgepool.model.ids import PeerId, short
from edgepool.peer.pathvalues import ConduitStatus, Libp2pStatus, PairStatus, PlaceStatus
from edgepool.runtime.ports import Transport
from edgepool.transport.conduit import Conduit
from edgepool.transport.conduitkeys import ConduitKeys
from edgepool.transport.paths import LinkPath
from edgepool.transport.tls import TlsTransport

_MAX_PAIRS = 256


def follow_conduits(
    keys: ConduitKeys, node: Node, transport: Transport, post: Callable[[Event], None]
) -> None:
    """Let conduits and relays be known under the keys that they have by now.

    This peer, which is reached through them, then says anew where it is.
    """

    def met() -> None:
        if transport.addresses != node.rendezvous.addresses:
            post(Moved(transport.addresses))

    keys.heir, keys.line, keys.met = node.heirs.heir, node.heirs.line, met


def paths_of(transport: Transport) -> dict[PeerId, LinkPath]:
    """Return by which path each link goes; other transports than TLS know of no conduits."""
    return transport.paths() if isinstance(transport, TlsTransport) else {}


def conduit_to(transport: Transport, peer: PeerId) -> str:
    """Return the name of the conduit that the link to a peer goes through, '' for none."""
    path = paths_of(transport).get(peer)
    return path.conduit if path is not None else ""


def name_of_conduit(transport: Transport, conduit: PeerId | None) -> str:
    """Return the name of the conduit or relay that data goes through, linked or not; '' for none."""
    if isinstance(transport, TlsTransport):
        return transport.conduits.keys.name_of(conduit)
    return short(conduit) if conduit is not None else ""


def key_by_now(transport: Transport, node: Node, peer: PeerId) -> PeerId:
    """Return the key that a member, a conduit or a relay has by now which once had the key `peer`."""
    if isinstance(transport, TlsTransport):
        return transport.conduits.keys.now(peer)
    return node.heirs.heir(peer)


def places_of(transport: Transport) -> list[PlaceStatus]:
    """Return how it stands with the places at this peer's conduits."""
    if not isinstance(transport, TlsTransport):
        return []
    return [
        PlaceStatus(
            peer=place.peer,
            name=place.name,
            address=place.address,
            kept=place.kept,
            reason=place.reason,
            round_trip_ms=place.round_trip_ms,
        )
        for place in (
            *transport.conduits.places(),
            *(transport.libp2p.relays.places() if transport.libp2p is not None else ()),
        )
    ]


def found_elsewhere(transport: Transport, wanted: Collection[str]) -> list[str]:
    """Say of each peer with a name among `wanted` in whose place another was found who that is."""
    found = transport.found.all() if isinstance(transport, TlsTransport) else []
    return [
        f"at {one.address}, an address of {one.wanted.name}, another peer answers, {one.there.name} "
        f"({one.there.peer}), and does not say that its key follows the one that is wanted there "
        f"({one.wanted.peer}): correct the address, or the id behind it"
        for one in found
        if one.wanted.name in wanted
    ]


def conduit_of(transport: Transport) -> ConduitStatus | None:
    """Return what this peer does as a conduit; None if it is none. The pairs that passed last come first."""
    conduit = transport.conduit if isinstance(transport, TlsTransport) else None
    if conduit is None:
        return None
    table = conduit.table
    open_now: dict[Pair, int] = {}
    for circuit in table.circuits:
        if circuit.open:
            open_now[circuit.pair] = open_now.get(circuit.pair, 0) + 1
    pairs = [
        PairStatus(
            peers=list(pair),
            names=[_name(conduit, peer) for peer in pair],
            open=open_now.get(pair, 0),
            circuits=passed.circuits,
            bytes=passed.bytes,
        )
        for pair, passed in reversed(table.passed.items())
    ]
    return ConduitStatus(
        places=sorted(_name(conduit, peer) for peer in table.reserved),
        circuits=sum(open_now.values()),
        bytes=table.bytes_passed,
        pairs=pairs[:_MAX_PAIRS],
    )


def libp2p_of(transport: Transport) -> Libp2pStatus | None:
    """Return how the libp2p child is; None if there is none."""
    road = transport.libp2p if isinstance(transport, TlsTransport) else None
    return None if road is None else Libp2pStatus(**asdict(road.state))


def _name(conduit: Conduit, peer: PeerId) -> str:
    return conduit.names.get(peer) or short(peer)
