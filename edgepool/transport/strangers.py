"""How often somebody may knock who proves nothing: a bucket of tokens for each source address [S3.6].

Whoever proves to be a member gets its token back, so that a plant behind one address is not slowed down by
its own restarts. Everybody else costs a handshake at most for each token, and nothing when none is left.
"""

from __future__ import annotations

import ipaddress

CAPACITY = 256.0
REFILL_PER_S = 16.0
MAX_ADDRESSES = 1024


class StrangerGate:
    """The buckets; the address that knocked last stands last, and of too many the first goes."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def may_knock(self, host: str, now_s: float) -> bool:
        """Take a token of the address `host`; say whether there was one."""
        source = _source(host)
        tokens = self._refilled(source, now_s)
        self._buckets.pop(source, None)
        self._buckets[source] = (max(0.0, tokens - 1), now_s)
        while len(self._buckets) > MAX_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        return tokens >= 1

    def proved(self, host: str, now_s: float) -> None:
        """Give the token back of somebody who has proved to be a member."""
        source = _source(host)
        if source in self._buckets:
            self._buckets[source] = (min(CAPACITY, self._refilled(source, now_s) + 1), now_s)

    def _refilled(self, source: str, now_s: float) -> float:
        tokens, at_s = self._buckets.get(source, (CAPACITY, now_s))
        return min(CAPACITY, tokens + (now_s - at_s) * REFILL_PER_S)


def _source(host: str) -> str:
    """Return what counts as one source: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 6:
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)
