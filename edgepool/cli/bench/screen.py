"""What the commands of `edgepool bench` share: how a run ends, and how its numbers look."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import typer

from edgepool.cli.console import run_async

TERMINATED = 143
_T = TypeVar("_T")


def measured(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end; exit with 143 if somebody ends this process, once all is cleaned up."""

    async def run() -> _T:
        task = asyncio.current_task()
        assert task is not None
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return run_async(run())
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None


def number(value: float) -> str:
    """Return three digits or more: 0.412, 41.2, 412, 4,120."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def count_or_number(value: float) -> str:
    """Return a whole number with all its digits, another one as `number` does."""
    return f"{value:,}" if isinstance(value, int) else number(value)
