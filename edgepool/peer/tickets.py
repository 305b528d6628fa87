"""Commands under way: a ticket for each, and the future that its outcome resolves."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import assert_never

from edgepool.core.machine import (
    ApproveChange,
    Certify,
    ChangeMembers,
    ChangeTrust,
    Command,
    ConfirmTransfer,
    Done,
    Event,
    Failed,
    FindData,
    FormPool,
    SubmitRecord,
    Submitted,
    Succeed,
)
from edgepool.errors import EdgepoolError, Refused, Unavailable


class Tickets:
    """Gives a node commands by `post`, and whoever asked the outcome."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self._post = post
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[object]] = {}

    async def command(self, command: Command, timeout_ms: int) -> object:
        """Return the result of `command`; raises Refused, or Unavailable after `timeout_ms`."""
        ticket = next(self._numbers)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        self._pending[ticket] = future
        self._post(Submitted(ticket, command))
        # One bare timer: asyncio.timeout costs more than all else here, wait_for can lose a cancellation.
        timer = loop.call_later(timeout_ms / 1000, self._expire, ticket, command, timeout_ms)
        try:
            return await future
        finally:
            timer.cancel()
            self._pending.pop(ticket, None)

    def settle(self, outcome: Done | Failed) -> None:
        """Hand an outcome to whoever waits for it."""
        match outcome:
            case Done(ticket, result):
                future = self._take(ticket)
                if future is not None:
                    future.set_result(result)
            case Failed(ticket, reason, refused):
                self._fail(ticket, Refused(reason) if refused else Unavailable(reason))

    def fail_all(self, error: EdgepoolError) -> None:
        """Nothing that is under way will have an outcome any more."""
        for ticket in list(self._pending):
            self._fail(ticket, error)

    def _expire(self, ticket: int, command: Command, timeout_ms: int) -> None:
        self._fail(ticket, Unavailable(_missed(command, f"within {timeout_ms / 1000:g} s")))

    def _fail(self, ticket: int, error: EdgepoolError) -> None:
        future = self._take(ticket)
        if future is not None:
            future.set_exception(error)

    def _take(self, ticket: int) -> asyncio.Future[object] | None:
        future = self._pending.pop(ticket, None)
        return None if future is None or future.done() else future


def _missed(command: Command, in_time: str) -> str:
    """Return in a sentence what did not come about."""
    match command:
        case SubmitRecord():
            return (
                f"the record has not become final {in_time}; it still may, as soon as more than two "
                "thirds of the pool are reached: 'edgepool status' names who is missing"
            )
        case FindData(key):
            return f"the search for {key} did not end {in_time}"
        case ConfirmTransfer(holder):
            return f"{holder.name} did not confirm the transfer {in_time}"
        case FormPool(invitation):
            return f"pool '{invitation.name}' was not formed {in_time}"
        case ChangeMembers() | ApproveChange() | Succeed():
            return f"the change of the pool's members was not on its chain {in_time}"
        case Certify():
            return "nobody waits for that"
        case ChangeTrust():
            return f"the change of trust was not on its chain {in_time}"
        case _:
            assert_never(command)
