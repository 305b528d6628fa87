"""A peer as a process of its own, to be killed: it sends back what it gets. Its address is its first line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from roads import ROADS
from tls_peers import Recorder

from edgepool.model.ids import PeerId


class Answering(Recorder):
    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        self.peer.transport.send(peer, frame)


async def main(road: str, folder: str, name: str, port: str) -> None:
    made = ROADS[road](Path(folder))
    peer = made.peer(name, **made.listening_at("127.0.0.1", int(port)))
    handler = Answering()
    handler.peer = peer
    await peer.start(handler)
    print(peer.transport.addresses[0], flush=True)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
