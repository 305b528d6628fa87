"""How `edgepool status` shows by which path links go, and what conduits do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edgepool.cli.console import columns, size

if TYPE_CHECKING:
    from edgepool.peer.pathvalues import ConduitStatus, LinkStatus, PlaceStatus

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


def _ms(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.1f} ms"
