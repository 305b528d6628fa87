"""gRPC over TLS: a server stream of byte messages, without any serialisation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from edgepool.bench.transfer.peers.arrival import MESSAGE_BYTES, Arrival
from edgepool.bench.transfer.peers.certificates import CERTIFICATE, KEY, make_certificate
from edgepool.bench.transfer.side import Where

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_SERVICE, _METHOD = "bench", "copy"


class Sender:
    """A gRPC server that streams the file to whoever calls."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: Any = None

    async def open(self, host: str, path: Path) -> Where:
        """Listen."""

        def copy(request: bytes, context: Any) -> Iterator[bytes]:
            with path.open("rb", buffering=0) as file:
                while piece := file.read(MESSAGE_BYTES):
                    yield piece

        authority = make_certificate(self._folder)
        pair = (self._folder / KEY).read_bytes(), (self._folder / CERTIFICATE).read_bytes()
        self._server = grpc.server(ThreadPoolExecutor(2), options=_OPTIONS)
        handlers = {_METHOD: grpc.unary_stream_rpc_method_handler(copy)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        port = self._server.add_secure_port(f"{host}:0", grpc.ssl_server_credentials([pair]))
        self._server.start()
        return {"port": port, "authority": authority.decode()}

    async def close(self) -> None:
        """End."""
        if self._server is not None:
            self._server.stop(None)


class Receiver:
    """A gRPC client."""

    def __init__(self, folder: Path) -> None:
        self._channel: Any = None
        self._data: tuple[int, str] = (0, "")

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Connect."""
        self._data = size_bytes, digest
        where = senders[0]
        credentials = grpc.ssl_channel_credentials(where["authority"].encode())
        self._channel = grpc.secure_channel(f"localhost:{where['port']}", credentials, options=_OPTIONS)
        await asyncio.to_thread(grpc.channel_ready_future(self._channel).result, 10)

    async def receive(self, **_: Any) -> dict[str, Any]:
        """Receive all."""
        await asyncio.to_thread(self._receive)
        return {}

    def _receive(self) -> None:
        arrival = Arrival(*self._data)
        for piece in self._channel.unary_stream(f"/{_SERVICE}/{_METHOD}")(b""):
            arrival.take(piece)
        arrival.check()

    async def close(self) -> None:
        """End."""
        if self._channel is not None:
            self._channel.close()
