"""Peers with certificates of one test authority, and ways to wait for what they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepool.config import Limits, PeerSettings
from edgepool.gateway.setup import free_ports
from edgepool.model.ids import PeerId, parse_address
from edgepool.model.pool import Member
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.certificates import (
    Identity,
    create_authority,
    create_key,
    issue_certificate,
    load_identity,
)
from edgepool.transport.tls import TlsTransport
from edgepool.transport.transfer_server import TransferServer

NETWORK = "plant-7"


def make_settings(
    folder: Path, name: str, *, authority: Path | None = None, limits: Limits | None = None, **more: Any
) -> PeerSettings:
    """Make a peer's key and certificate under `folder`/`name`, and settings for it."""
    authority = authority or folder / "authority"
    if not authority.exists():
        create_authority(authority, "Test works")
    own = folder / name
    if not own.exists():
        peer = create_key(own / "identity/key.pem")
        pem = issue_certificate(
            authority,
            peer,
            name=name,
            network=more.get("network", NETWORK),
            role=more.get("role", "machine"),
            machine_type=more.get("machine_type", ""),
        )
        (own / "identity/certificate.pem").write_bytes(pem)
        (own / "identity/authority.pem").write_bytes((authority / "authority.pem").read_bytes())
    return PeerSettings(name=name, folder=own, limits=limits or Limits(), **{"network": NETWORK, **more})


class Recorder:
    """A LinkHandler that writes everything down."""

    def __init__(self) -> None:
        self.events: list[tuple[str, PeerId]] = []
        self.linked: dict[PeerId, PeerIdentity] = {}
        self.reasons: list[str] = []
        self.frames: list[tuple[PeerId, bytes]] = []

    def link_up(self, identity: PeerIdentity) -> None:
        assert identity.peer not in self.linked, "a second link to the same peer"
        self.linked[identity.peer] = identity
        self.events.append(("up", identity.peer))

    def link_down(self, peer: PeerId, reason: str) -> None:
        del self.linked[peer]
        self.reasons.append(reason)
        self.events.append(("down", peer))

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        assert peer in self.linked
        self.frames.append((peer, frame))


class TlsPeer:
    """A transport with its recorder and counters."""

    def __init__(self, settings: PeerSettings, transfers: TransferServer | None = None) -> None:
        self.settings = settings
        self.identity: Identity = load_identity(settings)
        self.peer = self.identity.peer
        self.certificate = self.identity.certificate
        self.counters: dict[str, int] = {}
        self.seen = Recorder()
        self.transport = TlsTransport(settings, self.identity, self.counters, transfers)

    async def start(self, handler: Any = None) -> TlsPeer:
        await self.transport.start(handler or self.seen)
        return self

    async def __aenter__(self) -> TlsPeer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.transport.close()

    @property
    def member(self) -> Member:
        return Member(self.peer, self.settings.name, self.settings.machine_type, self.transport.addresses)

    @property
    def where(self) -> tuple[str, int]:
        host, port, _ = parse_address(self.transport.addresses[0])
        return host, port

    def linked_to(self, *others: TlsPeer) -> bool:
        return all(other.peer in self.seen.linked for other in others)


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until `condition` holds; fail if it does not in time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "what was waited for did not come about"
        await asyncio.sleep(0.005)


def free_port() -> int:
    """Return a port that is free, and that the system gives to nobody who asks for any."""
    return free_ports(1)[0]


async def ended(reader: asyncio.StreamReader) -> bool:
    """Wait until the other side has ended a connection."""
    try:
        async with asyncio.timeout(60):
            while await reader.read(65536):
                pass
    except (ConnectionError, OSError):
        pass
    return True
