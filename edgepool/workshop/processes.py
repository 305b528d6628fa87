"""The operating-system processes of a workshop: started, read, killed, ended, never left behind.

Each child holds the other end of its standard input; when that ends it ends too (host.py), so that
no child outlives this process however it dies.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgepool.errors import LocalError, Unavailable
from edgepool.workshop.events import MAX_LINE_BYTES, Ready, WorkshopEvent, parse_event
from edgepool.workshop.host import HostSpec

READY_S = 120.0
END_S = 20.0
_LOG_TAIL_BYTES = 2_000

Take = Callable[[str, WorkshopEvent], None]
"""Takes (process name, event)."""


@dataclass(slots=True)
class _Child:
    spec: HostSpec
    process: Process
    reading: asyncio.Task[None]
    started: asyncio.Future[Ready]
    expected_to_end: bool = False


class Processes:
    """The children of one run. `folder` gets their specifications and logs, `take` their events."""

    def __init__(self, folder: Path, take: Take) -> None:
        self._folder = folder
        self._take = take
        self._children: dict[str, _Child] = {}
        self.unexpected: list[str] = []
        """A sentence for each process that ended by itself."""

    async def start(self, spec: HostSpec) -> None:
        """Start a process; it is ready when `ready` returns."""
        path = self._folder / f"{spec.process}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(spec, enc_hook=_plain), indent=2))
        with self._log(spec.process).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "edgepool.workshop.host",
                str(path),
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                limit=MAX_LINE_BYTES,
                start_new_session=True,
            )
        started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        reading = asyncio.create_task(self._read(spec.process, process, started))
        self._children[spec.process] = _Child(spec, process, reading, started)

    async def ready(self, name: str) -> Ready:
        """Wait until a process says that it is ready; Unavailable says why it is not."""
        child = self._children[name]
        either: list[asyncio.Future[Any]] = [child.started, child.reading]
        await asyncio.wait(either, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        if not child.started.done():
            why = "has ended" if child.reading.done() else f"is not ready after {READY_S:g} s"
            raise Unavailable(f"process {name} {why}: {self._last_words(name)}")
        return child.started.result()

    @property
    def memory_bytes(self) -> int:
        """What the children have resident in memory, shared pages counted for each; 0 if unknown."""
        pages = 0
        with suppress(OSError, ValueError):
            for child in self._children.values():
                pages += int(Path(f"/proc/{child.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def kill(self, name: str) -> HostSpec:
        """End a process with SIGKILL, as a power cut would; return what it ran."""
        child = self._children.pop(name)
        child.expected_to_end = True
        child.process.kill()
        await child.process.wait()
        await _ended(child.reading)
        return child.spec

    async def stop(self) -> list[str]:
        """Ask all to end and see to it that they do; return a sentence for each that did not end well."""
        problems: list[str] = []
        children, self._children = self._children, {}
        for child in children.values():
            child.expected_to_end = True
            with suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        for name, child in children.items():
            try:
                async with asyncio.timeout(END_S):
                    code = await child.process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    child.process.kill()
                await child.process.wait()
                problems.append(f"process {name} did not end within {END_S:g} s and was killed")
            else:
                if code:
                    problems.append(f"process {name} ended with code {code}: {self._last_words(name)}")
            await _ended(child.reading)
        return problems

    async def _read(self, name: str, process: Process, started: asyncio.Future[Ready]) -> None:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                event = parse_event(line)
                self._take(name, event)
                if isinstance(event, Ready) and not started.done():
                    started.set_result(event)
        except (LocalError, ValueError) as error:  # ValueError: a line beyond all bounds
            self.unexpected.append(f"process {name}: {error}")
            process.kill()
        code = await process.wait()
        child = self._children.get(name)
        if child is not None and child.process is process and not child.expected_to_end:
            self.unexpected.append(f"process {name} ended with code {code}: {self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        """Return the last line of a process's log."""
        with suppress(OSError):
            lines = self._log(name).read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").split("\n")
            said = [line for line in lines if line.strip()]
            if said:
                return f"{said[-1]} (all of it: {self._log(name)})"
        return f"it left nothing in {self._log(name)}"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


async def _ended(reading: asyncio.Task[None]) -> None:
    """Let a reader take what is left in the pipe."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            await asyncio.wait({reading})
    reading.cancel()


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError
