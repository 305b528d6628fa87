"""The reasons for which a transport turns something away, and how they are counted.

Nothing that a stranger does is an event or a log line of its own; it is only a number here.
"""

from __future__ import annotations

HANDSHAKE = "refused_handshake"
"""TLS did not come about: no or a foreign certificate, garbage, silence."""
STRANGER = "refused_stranger"
"""A proven certificate, but of another network, of no known role, or for no protocol of ours."""
WRONG_PEER = "refused_wrong_peer"
"""At an address of a peer that was wanted, somebody else answered."""
OVERSIZE = "refused_oversize"
"""A frame was announced that is longer than allowed; the link was ended."""
GARBAGE = "refused_garbage"
"""A member sent bytes that are no request; the connection was ended."""
BUSY = "refused_busy"
"""All places (handshakes, links, transfers) were taken."""
PAUSED = "refused_paused"
"""A peer whose link was ended for misbehaviour came back too soon."""
OUTBOX = "dropped_outbox"
"""A frame was not queued since the outbox was full."""
NO_LINK = "dropped_no_link"
"""A frame was not sent since there is no link."""
FRAME_TOO_LONG = "dropped_frame_too_long"
"""A frame of our own was longer than others would accept."""
DUPLICATE = "dropped_duplicate"
"""Both sides had dialled at once; one of the two connections was given up."""
SILENT = "lost_silent"
"""Nothing was heard of a linked peer for three keepalive periods."""
HANDLER = "failed_handler"
"""The handler raised; the link on which it happened was ended."""

Counters = dict[str, int]


def count(counters: Counters, reason: str) -> None:
    """Count one more of `reason`."""
    counters[reason] = counters.get(reason, 0) + 1
