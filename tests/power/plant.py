"""A plant of real processes for the data plane: a coordinator, two holders of the same data, a requester.

One of the holders is rogue.py, whose sending code lies as it is told.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from kill import Validator, make_folders, read_peer_id_of

from edgepool.bench.transfer.material import MIB, make_data
from edgepool.config import CONFIG_FILE
from edgepool.errors import EdgepoolError, LocalError, Refused, Unavailable
from edgepool.gateway.client import ApiClient

KEY = "PART-1/model"
SIZE_BYTES = 24 * MIB
STALL_MS = 1_500
PATIENCE_S = 60.0


class Gateway(Validator):
    """A peer's process whose events are kept; a rogue one if it is told so."""

    def __init__(self, folder: Path, rogue: bool = False) -> None:
        super().__init__(folder)
        self.id = read_peer_id_of(folder)
        self._events = folder.parent / f"{folder.name}.events"
        self._program = (
            [str(Path(__file__).parent / "rogue.py"), str(folder)]
            if rogue
            else ["-m", "edgepool", "run", str(folder), "--json"]
        )

    def start(self) -> None:
        with self._events.open("ab") as events, self._log.open("ab") as told:
            self._process = subprocess.Popen([sys.executable, *self._program], stdout=events, stderr=told)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a kind so far."""
        lines = self._events.read_text(errors="replace").splitlines()
        return [told for told in map(json.loads, lines) if told["event"] == name]

    def memory_bytes(self) -> int:
        """Return the most memory that it has had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def file_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Plant:
    """The four gateways, and the data that both holders have."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        names = [one.folder for one in make_folders(folder)]
        for place in names:
            set_limit(place, "transfer_stall_ms", STALL_MS)
        cloud, rogue, honest, requester = names
        self.cloud, self.rogue = Gateway(cloud), Gateway(rogue, rogue=True)
        self.honest, self.requester = Gateway(honest), Gateway(requester)
        self.everybody = (self.cloud, self.rogue, self.honest, self.requester)
        self.data = make_data(folder / "data.bin", SIZE_BYTES)
        self.out = folder / "fetched.bin"

    async def start(self) -> None:
        for one in self.everybody:
            one.start()
        for one in self.everybody:
            await one.answers()
        for holder in (self.rogue, self.honest):
            await publish(holder, KEY, self.data.path)
        await self.fetch()
        await self.forget()

    def end(self) -> None:
        for one in self.everybody:
            one.end()

    def rogue_does(self, what: str) -> None:
        (self.rogue.folder / "behaviour").write_text(what)

    async def fetch(self, key: str = KEY, version: int = 1, timeout_s: float = PATIENCE_S) -> bytes:
        """Have the requester fetch; return what is in the file."""
        self.out.unlink(missing_ok=True)
        async with ApiClient.of(self.requester.folder) as client:
            await client.fetch(key, self.out, version=version, timeout_ms=int(timeout_s * 1000))
        return self.out.read_bytes()

    def transfers(self, before: int) -> list[dict[str, Any]]:
        """Return what was told of transfers after the first `before`, when the honest one is over.

        It tells of that a moment after the data is there.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            told = self.requester.events("transfer")[before:]
            if any(one["peer"] == self.honest.id and not one["failure"] for one in told):
                return told
            assert time.monotonic() < deadline_s, "the honest holder sent nothing"
            time.sleep(0.05)

    async def forget(self) -> None:
        """Let the requester drop all that it has fetched."""
        async with ApiClient.of(self.requester.folder) as client:
            for stored in await client.stored():
                with suppress(EdgepoolError):
                    await client.evict(stored.root)


def set_limit(folder: Path, name: str, value: int) -> None:
    """Write a limit into a gateway's settings."""
    path = folder / CONFIG_FILE
    text = path.read_text().replace("#[limits]", f"[limits]\n{name} = {value}")
    path.write_text(text)


async def publish(
    holder: Validator, key: str, path: Path, version: int = 1, patience_s: float = PATIENCE_S
) -> dict[str, Any]:
    """Publish, once the pool is formed."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            async with ApiClient.of(holder.folder) as client:
                return await client.publish(key, path, version=version, chain="cell")
        except (Unavailable, Refused, LocalError) as error:
            if time.monotonic() > deadline_s or "key" in str(error):
                raise
        await asyncio.sleep(0.1)
