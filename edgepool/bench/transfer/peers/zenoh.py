"""Zenoh over TLS between two peers, without any scouting: a publication that blocks when nobody reads."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import zenoh

from edgepool.bench.transfer.peers.arrival import MESSAGE_BYTES, Arrival
from edgepool.bench.transfer.peers.certificates import AUTHORITY, CERTIFICATE, KEY, make_certificate
from edgepool.bench.transfer.side import Where
from edgepool.errors import Unavailable
from edgepool.gateway.setup import free_ports

_DATA, _ASK, _HELLO = "bench/data", "bench/ask", "bench/hello"
_LONGEST_S = 60.0
_MEET_S = 10.0


def _session(**settings: str) -> Any:
    config = zenoh.Config()
    quiet = {
        "mode": '"peer"',
        "scouting/multicast/enabled": "false",
        "scouting/gossip/enabled": "false",
        "transport/shared_memory/enabled": "false",  # else large messages do not travel at all on one machine
    }
    for name, value in (quiet | {key.replace("__", "/"): value for key, value in settings.items()}).items():
        config.insert_json5(name, value)
    return zenoh.open(config)


class Sender:
    """Publishes the file whenever it is asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session: Any = None

    async def open(self, host: str, path: Path) -> Where:
        """Listen."""
        authority = make_certificate(self._folder)
        (port,) = free_ports(1)
        self._session = session = _session(
            listen__endpoints=f'["tls/localhost:{port}"]',
            transport__link__tls__root_ca_certificate=f'"{self._folder / AUTHORITY}"',
            transport__link__tls__listen_certificate=f'"{self._folder / CERTIFICATE}"',
            transport__link__tls__listen_private_key=f'"{self._folder / KEY}"',
        )
        publisher = session.declare_publisher(
            _DATA,
            congestion_control=zenoh.CongestionControl.BLOCK,
            reliability=zenoh.Reliability.RELIABLE,
        )

        def publish() -> None:
            with path.open("rb", buffering=0) as file:
                while piece := file.read(MESSAGE_BYTES):
                    publisher.put(piece)

        def asked(query: Any) -> None:
            with query:
                query.reply(_ASK, b"")
            threading.Thread(target=publish, daemon=True).start()

        def met(query: Any) -> None:
            with query:
                if publisher.matching_status.matching:
                    query.reply(_HELLO, b"")

        session.declare_queryable(_ASK, asked)
        session.declare_queryable(_HELLO, met)
        return {"port": port, "authority": authority.decode()}

    async def close(self) -> None:
        """End."""
        if self._session is not None:
            self._session.close()


class Receiver:
    """Subscribes, and asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session: Any = None
        self._data: tuple[int, str] = (0, "")
        self._arrival = Arrival(0, "")
        self._whole = threading.Event()

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Connect; return once the other side is there."""
        self._data = size_bytes, digest
        authority = self._folder / AUTHORITY
        authority.write_text(senders[0]["authority"])
        self._session = session = _session(
            listen__endpoints="[]",
            connect__endpoints=f'["tls/localhost:{senders[0]["port"]}"]',
            transport__link__tls__root_ca_certificate=f'"{authority}"',
        )
        session.declare_subscriber(_DATA, self._take)
        await asyncio.to_thread(self._meet)

    def _meet(self) -> None:
        """Return once the other side knows the subscription: a session that asks is answered behind it."""
        deadline_s = monotonic() + _MEET_S
        while not list(self._session.get(_HELLO)):
            if monotonic() > deadline_s:
                raise Unavailable("the Zenoh sessions did not meet")

    def _take(self, sample: Any) -> None:
        if self._arrival.take(sample.payload.to_bytes()):
            self._whole.set()

    async def receive(self, **_: Any) -> dict[str, Any]:
        """Receive all."""
        await asyncio.to_thread(self._receive)
        return {}

    def _receive(self) -> None:
        self._arrival = Arrival(*self._data)
        self._whole.clear()
        list(self._session.get(_ASK))
        if not self._whole.wait(_LONGEST_S):
            raise Unavailable("not all messages came")
        self._arrival.check()

    async def close(self) -> None:
        """End."""
        if self._session is not None:
            self._session.close()
