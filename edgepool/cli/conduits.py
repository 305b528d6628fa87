"""How `edgepool status` shows by which path links go, and what conduits do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edgepool.cli.console import columns, size

if TYPE_CHECKING:
    from edgepool.peer.pathvalues import ConduitStatus, Libp2pStatus, LinkStatus, PlaceStatus
    from edgepool.peer.values import TransferStatus

PATH_COLUMNS = ("path", "round trip", "sent", "received")


def path_cells(link: LinkStatus) -> tuple[str, str, str, str]:
    """Return by which path a link goes, what that costs (and the other one has), and what has passed."""
    here, name, other = link.direct_ms, "via conduit", link.conduit_ms
    if link.conduit:
        here, name, other = link.conduit_ms, "direct", link.direct_ms
    cost = _ms(here) + (f" ({name} {_ms(other)})" if other is not None else "")
    path = f"conduit {link.conduit}" if link.conduit else "direct"
    path += "" if link.road == "tls" else f", {link.road}"
    return path, cost, size(link.bytes_sent), size(link.bytes_received)


def transfer_peer(transfer: TransferStatus) -> str:
    """Return the other side of a transfer, and by which path its data goes if not directly."""
    if not transfer.conduit:
        return transfer.name
    over = "" if transfer.road == "tls" else f", {transfer.road}"
    return f"{transfer.name} (conduit {transfer.conduit}{over})"


def places_table(places: Sequence[PlaceStatus]) -> Table:
    """Return the table of the conduits by which others reach a peer."""
    table = columns("conduit", "place", "round trip", "address", title="Conduits of this peer")
    for place in places:
        state = Text("kept", style="green") if place.kept else Text(f"none: {place.reason}", style="yellow")
        table.add_row(place.name, state, _ms(place.round_trip_ms), place.address)
    return table


def conduit_table(conduit: ConduitStatus) -> Table:
    """Return the table of what has passed a peer that is a conduit."""
    table = columns("between", "open", "so far", "bytes", title="Circuits through this peer")
    for pair in conduit.pairs:
        table.add_row(" and ".join(pair.names), str(pair.open), str(pair.circuits), size(pair.bytes))
    return table


def conduit_line(conduit: ConduitStatus) -> str:
    """Return in a line what a conduit does."""
    places = ", ".join(conduit.places) or "nobody"
    return f"places of {places}; {conduit.circuits} circuits open, {size(conduit.bytes)} passed"


def libp2p_line(libp2p: Libp2pStatus) -> str:
    """Return in a line how the libp2p child is, what it takes, and what it does as a relay."""
    if not libp2p.running:
        return f"its process is being started again, for the {libp2p.restarts}. time"
    line = (
        f"{libp2p.connections} connections, {libp2p.streams} streams, {size(libp2p.resident_bytes)} of memory"
    )
    if libp2p.restarts:
        line += f", started again {libp2p.restarts} times"
    if libp2p.places or libp2p.passed_bytes:
        passed = size(libp2p.passed_bytes)
        line += f"; as a relay {libp2p.places} places, {libp2p.circuits} circuits open, {passed} passed"
    return line


def _ms(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.1f} ms"
