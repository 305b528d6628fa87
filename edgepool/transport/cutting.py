"""Ends what was admitted in the call in which its ground is gone [S3.6]: for all doors alike.

The door itself aborts the connection that it knows. A transfer has a data connection beside it, which began
with a token and is moved by a thread: it must end in the same call, not when the loop gets to it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, runtime_checkable

from edgepool.transport.link import Link
from edgepool.transport.refusals import CUT


@runtime_checkable
class Cuttable(Protocol):
    """What has more to end than its connection."""

    def cut(self, reason: str) -> None:
        """End everything at once; `reason` is a clause about the other side."""
        ...


def cut(taker: asyncio.BufferedProtocol, why: str) -> None:
    """End whatever `taker` has beside its connection; `why` is a word of trust.py."""
    if isinstance(taker, Link):
        taker.end(CUT[why])
    elif isinstance(taker, Cuttable):
        taker.cut(CUT[why])
