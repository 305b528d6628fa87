"""Keeps one wanted link: dials while it is down, ever more slowly, and rests while it is up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from edgepool.model.pool import Member

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
YIELD_S = 0.05
"""How long the larger of two peer ids waits before it dials, so that the smaller one comes first."""

Dial = Callable[[Member, str], Awaitable[bool]]
"""Dials a member at one address; True once the link is up. Raises nothing but cancellation."""


class Dialler:
    """Dials `member`'s addresses in turn until a link is up, and again whenever it is lost.

    The wait after a failed round is 0.1 s, doubling to 5 s, less up to half of it at random. It
    starts again from 0.1 s once a link has lasted longer than the longest wait.
    """

    def __init__(self, member: Member, dial: Dial, yields: bool, already_up: bool) -> None:
        self.member = member
        self._dial = dial
        self._yield_s = YIELD_S if yields else 0.0
        self._down = asyncio.Event()
        self._backoff_s = 0.0
        self._up_at_s = asyncio.get_running_loop().time()
        self._attempt: asyncio.Task[None] | None = None
        if not already_up:
            self._down.set()
        self.task = asyncio.create_task(self._run(), name=f"edgepool dial {member.name}")

    def link_up(self) -> None:
        """The link stands, whoever dialled it: stop trying."""
        self._down.clear()
        self._up_at_s = asyncio.get_running_loop().time()

    def link_down(self) -> None:
        """The link is gone: begin again."""
        if asyncio.get_running_loop().time() - self._up_at_s > LONGEST_BACKOFF_S:
            self._backoff_s = FIRST_BACKOFF_S
        self._down.set()

    def give_up_attempt(self) -> None:
        """Break off the attempt under way, if any: the other side's connection was taken."""
        if self._attempt is not None:
            self._attempt.cancel()

    async def _run(self) -> None:
        while True:
            await self._down.wait()
            await asyncio.sleep(self._yield_s + self._backoff_s * random.uniform(0.5, 1.0))
            if not self._down.is_set():
                continue
            self._backoff_s = min(max(2 * self._backoff_s, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
            self._attempt = asyncio.create_task(self._dial_each())
            try:
                await asyncio.wait({self._attempt})
            finally:
                self._attempt.cancel()
                self._attempt = None

    async def _dial_each(self) -> None:
        for address in self.member.addresses:
            if not self._down.is_set() or await self._dial(self.member, address):
                return
