"""What a peer says of the keys that it had before: each was followed by the next, as both have signed [S3.6].

Others know some of those keys from their settings. A line proves that one key follows another, and no more:
what the last one may do, its certificate says.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire
from edgepool.model.crypto import Signer, verify
from edgepool.model.fields import PeerText, Signature
from edgepool.model.ids import PeerId

MAX_LINE = 16
"""So many changes of a key are told, the newest."""
LINEAGE_DOMAIN = "lineage"


class KeyFollows(Wire, frozen=True):
    """The key `heir` follows `former`. Both have signed that (domain 'lineage', see `lineage_terms`)."""

    former: PeerText
    heir: PeerText
    former_signature: Signature
    heir_signature: Signature

    def authentic(self, network: str) -> bool:
        """Say whether both keys have signed this for `network`."""
        terms = lineage_terms(network, self.former, self.heir)
        return verify(self.former, LINEAGE_DOMAIN, terms, self.former_signature) and verify(
            self.heir, LINEAGE_DOMAIN, terms, self.heir_signature
        )


Line = tuple[KeyFollows, ...]
"""Changes of a key one after the other, the oldest first."""


class Lineage(Wire, tag="lineage", frozen=True):
    """The sender's former keys, the oldest first; the last one that follows is its present key."""

    line: Annotated[Line, Meta(min_length=1, max_length=MAX_LINE)]


def lineage_terms(network: str, former: PeerId, heir: PeerId) -> Sequence[object]:
    """Return what two keys sign (domain 'lineage') of which one follows the other."""
    return [network, former, heir]


def follow(former: Signer, heir: Signer, network: str) -> KeyFollows:
    """Return the statement of both keys that `heir` follows `former`."""
    terms = lineage_terms(network, former.peer, heir.peer)
    by_former, by_heir = (one.sign(LINEAGE_DOMAIN, terms) for one in (former, heir))
    return KeyFollows(former.peer, heir.peer, by_former, by_heir)


def line_problem(line: Sequence[KeyFollows], network: str, peer: PeerId) -> str:
    """Say why `line` does not lead to the key `peer`, or return ''.

    What costs nothing is looked at first; then it is two signature checks for each change.
    """
    if not line or line[-1].heir != peer:
        return "its line of keys does not lead to its own"
    if any(one.heir != later.former for one, later in pairwise(line)):
        return "its line of keys is broken"
    keys = [line[0].former, *(one.heir for one in line)]
    if len(dict.fromkeys(keys)) != len(keys):
        return "a key stands in its line of keys twice"
    if not all(one.authentic(network) for one in line):
        return "a signature in its line of keys does not hold"
    return ""
