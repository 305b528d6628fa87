"""What others move a file with, secured, each by its own means at its best; for measurement only.

Their packages are in the extra 'bench' and are never imported elsewhere. Every receiver hashes what
comes with BLAKE3 as it comes, and keeps nothing. `PEERS` says what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True, slots=True)
class PeerKind:
    """Something to stand beside: its module here, what it needs, and the share of the data that it moves.

    Slow ones move less, so that a run ends; rates do not depend on it.
    """

    name: str
    what: str
    means: str
    package: str
    distribution: str
    share: float = 1.0
    relayed: bool = False

    def missing(self) -> str:
        """Return why it cannot be measured here, '' if it can."""
        if find_spec(self.package) is not None:
            return ""
        return f"the package {self.distribution} is not installed: pip install 'edgepool[bench]'"


PEERS = (
    PeerKind("grpc_tls", "gRPC over TLS 1.3, a stream of 1 MiB messages", "grpc", "grpc", "grpcio"),
    PeerKind("zenoh_tls", "Zenoh over TLS, 1 MiB messages", "zenoh", "zenoh", "eclipse-zenoh"),
    PeerKind("zmq_curve", "pyzmq with CURVE, 1 MiB messages", "zmq", "zmq", "pyzmq"),
    PeerKind("https", "aiohttp over HTTPS, a file response", "http", "aiohttp", "aiohttp", 0.5),
    PeerKind(
        "https_relay",
        "the same through a relay that passes on as it comes",
        "http",
        "aiohttp",
        "aiohttp",
        0.25,
        relayed=True,
    ),
    PeerKind("libp2p", "py-libp2p, Noise and Yamux, one stream", "libp2p", "libp2p", "libp2p", 0.0625),
)
