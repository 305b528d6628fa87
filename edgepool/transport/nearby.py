"""Where peers may be, as somebody on the local network says: places to try, of which nothing is believed."""

from __future__ import annotations

from edgepool.errors import DecodeError
from edgepool.model.ids import PeerId, as_libp2p, parse_address, public_key_of

MAX_PEERS = 256
MAX_PLACES = 4
"""So many addresses are kept of a peer, the newest."""


class Nearby:
    """Keeps what multicast DNS has found, bounded; the newest word stays."""

    def __init__(self) -> None:
        self._places: dict[PeerId, dict[str, None]] = {}

    def found(self, peer: PeerId, address: str) -> None:
        """Take (peer, multiaddr of its libp2p road) from the child; what is no such address is nothing."""
        try:
            public_key_of(peer)
            host, port, _ = parse_address(address)
        except DecodeError:
            return
        places = self._places.pop(peer, {})
        place = as_libp2p(host, port)
        places.pop(place, None)
        places[place] = None
        if len(places) > MAX_PLACES:
            del places[next(iter(places))]
        if len(self._places) >= MAX_PEERS:
            del self._places[next(iter(self._places))]
        self._places[peer] = places

    def of(self, peer: PeerId) -> tuple[str, ...]:
        """Return where a peer may be, the newest word first."""
        return tuple(reversed(self._places.get(peer, {})))
