"""ZeroMQ with CURVE: a pair of DEALER sockets, large messages, a bounded queue."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import zmq

from edgepool.bench.transfer.peers.arrival import MESSAGE_BYTES, Arrival
from edgepool.bench.transfer.side import Where

_WAITING_MESSAGES = 16
_LONGEST_MS = 60_000


def _socket(context: zmq.Context[Any]) -> Any:
    socket = context.socket(zmq.DEALER)
    socket.set_hwm(_WAITING_MESSAGES)
    socket.linger = 0
    return socket


class Sender:
    """Sends the file whenever it is asked, from a thread."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)

    async def open(self, host: str, path: Path) -> Where:
        """Listen."""
        public, secret = zmq.curve_keypair()
        socket = _socket(self._context)
        socket.curve_server, socket.curve_publickey, socket.curve_secretkey = True, public, secret
        port = socket.bind_to_random_port(f"tcp://{host}")
        threading.Thread(target=self._serve, args=(socket, path), daemon=True).start()
        return {"port": port, "key": public.decode()}

    def _serve(self, socket: Any, path: Path) -> None:
        try:
            while True:
                socket.recv()
                with path.open("rb", buffering=0) as file:
                    while piece := file.read(MESSAGE_BYTES):
                        socket.send(piece, copy=False)
        except zmq.ContextTerminated:
            socket.close()

    async def close(self) -> None:
        """End."""
        self._context.term()


class Receiver:
    """Asks, and receives in a thread."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._socket: Any = None
        self._data: tuple[int, str] = (0, "")

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Connect."""
        self._data = size_bytes, digest
        socket = self._socket = _socket(self._context)
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = senders[0]["key"].encode()
        socket.rcvtimeo = _LONGEST_MS
        socket.connect(f"tcp://{senders[0]['host']}:{senders[0]['port']}")

    async def receive(self, **_: Any) -> dict[str, Any]:
        """Receive all."""
        await asyncio.to_thread(self._receive)
        return {}

    def _receive(self) -> None:
        arrival = Arrival(*self._data)
        self._socket.send(b"!")
        while not arrival.take(self._socket.recv(copy=False).buffer):
            pass
        arrival.check()

    async def close(self) -> None:
        """End."""
        if self._socket is not None:
            self._socket.close()
        self._context.term()
