"""Every error that edgepool raises on purpose; the name says who is to blame.

Each carries one sentence: what was wrong, where, and what to do. The command line prints that
sentence and ends with exit code 2; nothing of these is ever shown as a traceback.
"""

from __future__ import annotations


class EdgepoolError(Exception):
    """Base of all errors of this package."""


class LocalError(EdgepoolError):
    """The caller's own doing: a wrong argument, a missing file, a closed peer."""


class ConfigError(LocalError):
    """A configuration file or setting is wrong; the message names the file and the place in it."""


class RemoteError(EdgepoolError):
    """Another peer broke the protocol.

    `peer` is its peer id (or its network address while it has not proved one).
    """

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"peer {peer}: {reason}")
        self.peer = peer
        self.reason = reason


class Refused(EdgepoolError):
    """A rule said no. `reason` names the condition that failed, `detail` the values it saw."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Unavailable(EdgepoolError):
    """Nobody who could have answered did so in time; trying again later may work."""


class DecodeError(EdgepoolError):
    """Received or stored bytes are not a canonical encoding of what was expected."""


class StorageError(EdgepoolError):
    """The disk refused, or holds something else than what was written there."""
