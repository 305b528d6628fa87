"""Embeds a peer in an existing asyncio program: `python examples/embed_gateway.py [FOLDER]`.

FOLDER is one that `edgepool init` has made; without it a temporary one is made.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from edgepool import Peer
from edgepool.gateway.setup import PeerPlan, make_peer_folder


async def your_program(peer: Peer) -> None:
    """Whatever the gateway does already; it may use the peer at any time."""
    print(f"{peer.name} ({peer.id}) listens on {peer.addresses[0]} and is in {len(peer.pools)} pools")


async def main(folder: Path) -> None:
    async with Peer.open(folder) as peer:
        await your_program(peer)


with tempfile.TemporaryDirectory() as temporary:
    place = Path(sys.argv[1]) if sys.argv[1:] else Path(temporary, "gateway")
    if not sys.argv[1:]:
        make_peer_folder(place, PeerPlan("gateway", "example"), Path(temporary, "authority"))
    asyncio.run(main(place))
