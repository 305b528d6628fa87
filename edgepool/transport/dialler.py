"""Keeps one wanted link: dials while it is down, ever more slowly, and rests while it is up.

Addresses without a conduit come first. A link that goes through one is used, and a direct way is looked for
now and then; when there is one the link moves there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from edgepool.errors import DecodeError
from edgepool.model.ids import PeerId, split_address
from edgepool.model.pool import Member

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
YIELD_S = 0.05
"""How long the larger of two peer ids waits before it dials, so that the smaller one comes first."""
GRACE_S = 1.0
"""How long a peer that others can dial waits for them before it asks a conduit for a circuit to them."""
FIRST_BETTER_S = 10.0
LONGEST_BETTER_S = 300.0
"""A peer that is linked through a conduit is dialled directly after so long, and then ever more seldom."""

Dial = Callable[[Member, str], Awaitable[bool]]
"""Dials a member at one address; True once the link is up. Raises nothing but cancellation."""
State = Literal["down", "direct", "conduit"]


class Dialler:
    """Dials `member`'s addresses in turn until a link is up, and again whenever it is lost.

    The wait after a failed round is 0.1 s, doubling to 5 s, less up to half of it at random. It
    starts again from 0.1 s once a link has lasted longer than the longest wait. `grace_s` is GRACE_S for a
    peer that can be dialled, 0 for others. `more` returns addresses to try behind the member's own.
    """

    def __init__(
        self,
        member: Member,
        dial: Dial,
        yields: bool,
        state: State = "down",
        grace_s: float = 0.0,
        more: Callable[[PeerId], Sequence[str]] = lambda peer: (),
    ) -> None:
        self._member = member
        self._more = more
        self._dial = dial
        self._yield_s = YIELD_S if yields else 0.0
        self._grace_s = grace_s
        self._state: State = state
        self._changed = asyncio.Event()
        self._backoff_s = 0.0
        self._better_s = FIRST_BETTER_S
        self._up_at_s = asyncio.get_running_loop().time()
        self._attempt: asyncio.Task[None] | None = None
        self.task = asyncio.create_task(self._run(), name=f"edgepool dial {member.name}")

    def meet(self, member: Member) -> None:
        """The member has said where it is now."""
        if member.addresses != self._member.addresses:
            self._better_s = FIRST_BETTER_S
            self._changed.set()
        self._member = member

    def link_up(self, through_conduit: bool) -> None:
        """The link stands, whoever dialled it: stop trying, or only look for a direct way."""
        state: State = "conduit" if through_conduit else "direct"
        if state != self._state:
            self._better_s = FIRST_BETTER_S
        self._state = state
        self._up_at_s = asyncio.get_running_loop().time()
        self._changed.set()

    def link_down(self) -> None:
        """The link is gone: begin again."""
        if asyncio.get_running_loop().time() - self._up_at_s > LONGEST_BACKOFF_S:
            self._backoff_s = FIRST_BACKOFF_S
        self._state = "down"
        self._changed.set()

    def give_up_attempt(self) -> None:
        """Break off the attempt under way, if any: the other side's connection was taken."""
        if self._attempt is not None:
            self._attempt.cancel()

    async def _run(self) -> None:
        while True:
            await self._due()
            if self._state == "down":
                await asyncio.sleep(self._yield_s + self._backoff_s * random.uniform(0.5, 1.0))
                if self._state != "down":
                    continue
                self._backoff_s = min(max(2 * self._backoff_s, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
            else:
                self._better_s = min(2 * self._better_s, LONGEST_BETTER_S)
            self._attempt = asyncio.create_task(self._dial_each())
            try:
                await asyncio.wait({self._attempt})
            finally:
                self._attempt.cancel()
                self._attempt = None

    async def _due(self) -> None:
        """Wait until there is something to try: a link, or a better one."""
        while self._state != "down":
            self._changed.clear()
            better = self._state == "conduit" and bool(directly(self._addresses()))
            try:
                async with asyncio.timeout(self._better_s if better else None):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _addresses(self) -> list[str]:
        return list(dict.fromkeys((*self._member.addresses, *self._more(self._member.peer))))

    async def _dial_each(self) -> None:
        addresses = self._addresses()
        direct = directly(addresses)
        for address in direct:
            if self._state == "direct" or await self._dial(self._member, address):
                return
        through = [address for address in addresses if address not in direct]
        if through and self._state == "down":
            await asyncio.sleep(self._grace_s)
        for address in through:
            if self._state != "down" or await self._dial(self._member, address):
                return


def directly(addresses: Sequence[str]) -> list[str]:
    """Return the addresses that do not lead through a conduit; what is no address is among them."""
    return [address for address in addresses if not _through_conduit(address)]


def _through_conduit(address: str) -> bool:
    try:
        return split_address(address).conduit is not None
    except DecodeError:
        return False
