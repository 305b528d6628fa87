"""py-libp2p over TCP with Noise and Yamux, one stream; it runs on trio, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from edgepool.bench.transfer.peers.arrival import Arrival
from edgepool.bench.transfer.side import Where
from edgepool.errors import Unavailable
from edgepool.gateway.setup import free_ports

_COPY = TProtocol("/edgepool-bench/1")
_PIECE_BYTES = 64 * 1024
_START_S = 20.0


class _Host:
    """A libp2p host on trio in a thread, until closed."""

    def __init__(self) -> None:
        logging.disable(logging.WARNING)  # it would log every frame
        keys = create_new_key_pair()
        noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
        self.host = new_host(key_pair=keys, sec_opt={NOISE: noise}, muxer_preference="YAMUX")
        self._ready = threading.Event()
        self._token: Any = None
        self._scope = trio.CancelScope()
        self._thread: threading.Thread | None = None

    async def start(self, addresses: list[str]) -> None:
        """Return once the host listens."""
        self._thread = threading.Thread(target=trio.run, args=(self._run, addresses), daemon=True)
        self._thread.start()
        if not await asyncio.to_thread(self._ready.wait, _START_S):
            raise Unavailable("the libp2p host did not start")

    async def call(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do `work` on trio's side."""
        return await asyncio.to_thread(trio.from_thread.run, work, trio_token=self._token)

    async def close(self) -> None:
        """End."""
        if self._token is not None:
            self._token.run_sync_soon(self._scope.cancel)

    async def _run(self, addresses: list[str]) -> None:
        with self._scope:
            async with self.host.run(listen_addrs=[Multiaddr(one) for one in addresses]):
                self._token = trio.lowlevel.current_trio_token()
                self._ready.set()
                await trio.sleep_forever()


class Sender:
    """Writes the file to every stream that is opened to it."""

    def __init__(self, folder: Path) -> None:
        self._host = _Host()

    async def open(self, host: str, path: Path) -> Where:
        """Listen."""

        async def copy(stream: Any) -> None:
            await stream.read(1)
            with path.open("rb", buffering=0) as file:
                while piece := file.read(_PIECE_BYTES):
                    await stream.write(piece)
            await stream.close()

        self._host.host.set_stream_handler(_COPY, copy)
        (port,) = free_ports(1)
        address = f"/ip4/{host}/tcp/{port}"
        await self._host.start([address])
        return {"port": port, "address": f"{address}/p2p/{self._host.host.get_id()}"}

    async def close(self) -> None:
        """End."""
        await self._host.close()


class Receiver:
    """Opens a stream for each copy, on one connection."""

    def __init__(self, folder: Path) -> None:
        self._host = _Host()
        self._data: tuple[int, str] = (0, "")
        self._other: Any = None

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Connect."""
        self._data = size_bytes, digest
        self._other = info_from_p2p_addr(Multiaddr(senders[0]["address"]))
        await self._host.start(["/ip4/127.0.0.1/tcp/0"])

        async def connect() -> None:
            await self._host.host.connect(self._other)

        await self._host.call(connect)

    async def receive(self, **_: Any) -> dict[str, Any]:
        """Receive all."""
        await self._host.call(self._receive)
        return {}

    async def _receive(self) -> None:
        arrival = Arrival(*self._data)
        stream = await self._host.host.new_stream(self._other.peer_id, [_COPY])
        await stream.write(b"!")
        while not arrival.take(await stream.read(_PIECE_BYTES)):
            pass
        arrival.check()
        await stream.close()

    async def close(self) -> None:
        """End."""
        await self._host.close()
