"""The reasons for which a transport turns something away, and how they are counted.

Nothing that a stranger does is an event or a log line of its own; it is only a number here.
"""

from __future__ import annotations

import ssl

from edgepool.model import credential


def refused(word: str) -> str:
    """Return the counter of a condition by which a certificate proves nobody, see model/credential.py."""
    return f"refused_{word}"


HANDSHAKE = "refused_handshake"
"""TLS did not come about: garbage, silence, or the caller did not want to go on."""
NO_CERTIFICATE = "refused_no_certificate"
"""A caller showed no certificate."""
POSSESSION = refused(credential.POSSESSION)
"""A caller showed a certificate and could not prove that it has its key."""
CHAIN = "refused_chain"
"""A caller sent more certificates than its own."""
FOREIGN = refused(credential.FOREIGN)
EXPIRED = refused(credential.EXPIRED)
NOT_YET_VALID = refused(credential.NOT_YET_VALID)
WRONG_NETWORK = refused(credential.WRONG_NETWORK)
UNKNOWN_ROLE = refused(credential.UNKNOWN_ROLE)
WRONG_KEY = refused(credential.WRONG_KEY)
NAMELESS = refused(credential.NAMELESS)
UNREADABLE = refused(credential.UNREADABLE)
OVERSIZE_CERTIFICATE = refused(credential.OVERSIZE)
REVOKED = refused(credential.REVOKED)
"""A caller's certificate does not make it a member, for the reason in the name."""
STRANGER = "refused_stranger"
"""A member came for no protocol of ours, or is this peer itself."""
NO_PLACE = "refused_place"
"""A libp2p relay gave this peer no place; it is asked again."""
MDNS = "failed_mdns"
"""The local network could not be asked by multicast DNS; that is tried again."""
OTHER_ROAD = "refused_other_road"
"""A member dialled a link over TLS where links go over libp2p alone."""
WRONG_PEER = "refused_wrong_peer"
"""At an address of a peer that was wanted, somebody else answered."""
OVERSIZE = "refused_oversize"
"""A frame was announced that is longer than allowed; the link was ended."""
GARBAGE = "refused_garbage"
"""A member sent bytes that are no request; the connection was ended."""
BUSY = "refused_busy"
"""All places (handshakes, links, transfers) were taken."""
THROTTLED = "refused_throttled"
"""Too many callers from one address had proved nothing; the connection was ended before TLS."""
PAUSED = "refused_paused"
"""A peer whose link was ended for misbehaviour came back too soon."""
TOKEN = "refused_token"
"""A connection began with a token that is not good here: guessed, used before, or too late."""
CIRCUIT = "refused_circuit"
"""A member asked this conduit for a circuit and got none: the other is not here, or no place is left."""
NESTED = "refused_nested"
"""Somebody came through a conduit to ask this peer to be one: a circuit leads through one conduit only."""
HALF_OPEN = "lost_half_open"
"""A circuit was given up, since one side of it did not come in time."""
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
LOST_REVOKED = "lost_revoked"
LOST_RETIRED = "lost_retired"
LOST_LAPSED = "lost_lapsed"
"""A connection was ended: its peer was revoked, its root retired, or its certificate has lapsed."""
HANDLER = "failed_handler"
"""The handler raised; the link on which it happened was ended."""

REASONS = frozenset(
    reason for name, reason in list(globals().items()) if name.isupper() and isinstance(reason, str)
)
"""All of them."""

Counters = dict[str, int]


CUT = {
    credential.REVOKED: "its membership was revoked",
    credential.RETIRED: "the root of its certificate is trusted no more",
    credential.LAPSED: "its certificate has lapsed",
}
"""Why a connection that stood is cut, for its owner to be told."""


def lost(word: str) -> str:
    """Return the counter of connections that were cut for `word`, see trust.py."""
    return f"lost_{word}"


_VERDICTS = {9: NOT_YET_VALID, 10: EXPIRED, 22: CHAIN, 25: CHAIN, 79: CHAIN}
"""Counters by OpenSSL's X509_V_ERR numbers; any other verdict on a certificate is that it is foreign."""
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": NO_CERTIFICATE,
    "BAD_SIGNATURE": POSSESSION,
    "EXCESSIVE_MESSAGE_SIZE": CHAIN,
}


def of_handshake(error: Exception) -> str:
    """Return the counter of what made TLS fail on the accepting side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERDICTS.get(error.verify_code, FOREIGN)
    return _REASONS.get(getattr(error, "reason", None) or "", HANDSHAKE)


def count(counters: Counters, reason: str) -> None:
    """Count one more of `reason`."""
    counters[reason] = counters.get(reason, 0) + 1
