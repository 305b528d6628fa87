"""What all parts of the local API are given: the peer, and how bodies are taken and answers given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from edgepool.errors import EdgepoolError

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

Read = Callable[[web.Request, type[Any]], Awaitable[Any]]
"""Takes the body of a request as what its type says."""
Answer = Callable[[object], web.StreamResponse]
"""Gives JSON."""
WriteLine = Callable[[web.Request, web.StreamResponse, object], Awaitable[None]]
"""Gives one line of JSON of an answer that goes on."""
Describe = Callable[[EdgepoolError], tuple[int, dict[str, str]]]
"""Says which status an error has, and what is told of it."""


class PeerRoutes:
    """Routes about one peer; `read` and `answer` are how the API takes bodies and gives JSON."""

    def __init__(self, peer: Peer, read: Read, answer: Answer) -> None:
        self._peer = peer
        self._read = read
        self._answer = answer
