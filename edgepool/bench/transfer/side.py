"""One side of a measured copy, in a process of its own: it sends or receives, by whichever means.

Run as a helper process (see processes.py) in the folder of a peer. What is timed is timed here, without
the pipe to whoever asks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Protocol

from edgepool.bench.namespaces import Host
from edgepool.bench.netlab import LOOPBACK, Lab
from edgepool.bench.processes import Answer, Helper, serve
from edgepool.bench.transfer.material import Data, forget_peak, memory_bytes
from edgepool.errors import Unavailable

MODULE = "transfer.side"
_MEANS = "edgepool.bench.transfer"

Where = dict[str, Any]
"""How a receiver reaches a sender: 'host', 'port', and what its means needs besides."""


class Sender(Protocol):
    """Sends a file to whoever asks, again and again."""

    def __init__(self, folder: Path) -> None: ...

    async def open(self, host: str, path: Path) -> Where:
        """Listen on `host`; return what a receiver needs."""
        ...

    async def close(self) -> None:
        """End everything."""
        ...


class Receiver(Protocol):
    """Receives what senders have, and sees that it is what it should be."""

    def __init__(self, folder: Path) -> None: ...

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Connect to senders of the same data."""
        ...

    async def receive(self, **options: Any) -> dict[str, Any]:
        """Return, with what there is to tell, once all has come and is right; Unavailable if it is not."""
        ...

    async def close(self) -> None:
        """End everything."""
        ...


class Side:
    """The helper process's end: one sender or receiver by a named means."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None
        self._idle_bytes = 0

    async def send(self, means: str, host: str, path: str) -> Where:
        """Become a sender of a file."""
        self._sender = import_module(f"{_MEANS}.{means}").Sender(self._folder)
        where = await self._sender.open(host, Path(path))
        return {"host": host, **where}

    async def relay(self, means: str, host: str, origin: Where) -> Where:
        """Become a relay of what another sender has."""
        made = import_module(f"{_MEANS}.{means}").Sender(self._folder)
        self._sender = made
        where: Where = await made.relay(host, origin)
        return {"host": host, **where}

    async def connect(self, means: str, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Become a receiver of what these senders have."""
        if self._receiver is not None:
            await self._receiver.close()
        self._receiver = import_module(f"{_MEANS}.{means}").Receiver(self._folder)
        self._idle_bytes = memory_bytes("VmRSS")
        await self._receiver.open(senders, size_bytes, digest)

    async def receive(self, options: dict[str, Any]) -> dict[str, Any]:
        """Receive all once; return 'took_s', 'cpu_s', and 'grown_bytes': memory at most above idle."""
        if self._receiver is None:
            raise Unavailable("this side has nothing to receive")
        forget_peak()
        cpu_s, start_s = process_time(), perf_counter()
        told = await self._receiver.receive(**options)
        took_s = perf_counter() - start_s
        return {
            "took_s": took_s,
            "cpu_s": process_time() - cpu_s,
            "grown_bytes": memory_bytes("VmHWM") - self._idle_bytes,
            **told,
        }

    async def cpu_s(self) -> float:
        """Return how much processor time this process has had."""
        return process_time()

    async def end(self) -> None:
        """End everything."""
        for side in (self._receiver, self._sender):
            if side is not None:
                await side.close()


class Copying:
    """A receiver and its senders, each a process, asked from outside."""

    def __init__(self, receiver: Helper, senders: list[Helper]) -> None:
        self.receiver = receiver
        self.senders = senders

    async def connect(self, means: str, senders: list[Where], data: Data) -> None:
        """Have the receiver connect to these senders, and to no others any more."""
        await self.receiver.ask(
            "connect", means=means, senders=senders, size_bytes=data.size_bytes, digest=data.digest
        )

    async def once(self, **options: Any) -> dict[str, Any]:
        """Copy once; return what the receiver tells, 'cpu_s' being that of all sides together."""
        before_s = sum([await sender.ask("cpu_s") for sender in self.senders])
        told: dict[str, Any] = await self.receiver.ask("receive", options=options)
        after_s = sum([await sender.ask("cpu_s") for sender in self.senders])
        told["sender_cpu_s"] = after_s - before_s
        told["receiver_cpu_s"] = told["cpu_s"]
        told["cpu_s"] += after_s - before_s
        return told


@asynccontextmanager
async def copying(
    means: str, data: Data, senders: list[Path], receiver: Path, lab: Lab | None = None
) -> AsyncIterator[Copying]:
    """Have processes that copy `data` by `means`, a module of this package, in the folders of peers.

    On loopback; or in a laboratory, whose first host receives and whose others send.
    """
    hosts = lab.hosts if lab is not None else [Host((), LOOPBACK)] * (len(senders) + 1)
    async with AsyncExitStack() as stack:
        receiving = await stack.enter_async_context(Helper(MODULE, receiver, hosts[0].within))
        sending, where = [], []
        for number, folder in enumerate(senders, 1):
            helper = await stack.enter_async_context(Helper(MODULE, folder, hosts[number].within))
            sending.append(helper)
            found = await helper.ask("send", means=means, host=hosts[number].address, path=str(data.path))
            if lab is not None:
                found["host"], found["port"] = await lab.dial(number, found["port"])
            where.append(found)
        made = Copying(receiving, sending)
        await made.connect(means, where, data)
        yield made


def _answers(folder: Path) -> dict[str, Answer]:
    side = Side(folder)
    return {name: getattr(side, name) for name in ("send", "connect", "relay", "receive", "cpu_s", "end")}


if __name__ == "__main__":
    serve(_answers)
