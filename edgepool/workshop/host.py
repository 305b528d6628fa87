"""One operating-system process of a workshop: several peers and what they do, or the relay.

    python -m edgepool.workshop.host SPEC.json

The specification (JSON or TOML) is a HostSpec. Events go to standard output (events.py), logs to
standard error. The process ends on SIGTERM, SIGINT, or when standard input, being a pipe, ends: so
it never outlives the one that started it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from time import sleep, time
from typing import Any, Literal

import msgspec

from edgepool.config import Settings, convert, load_peer_settings, read_toml
from edgepool.errors import ConfigError, EdgepoolError
from edgepool.gateway.app import ApiServer
from edgepool.peer.peer import Peer
from edgepool.storage.blobs import BlobStore
from edgepool.transport.identity import load_identity
from edgepool.workshop.coordinator import Coordinator
from edgepool.workshop.events import DataMoved, HostedPeer, PeerEnds, Ready, print_event
from edgepool.workshop.journal import Journal
from edgepool.workshop.mover import DataMover, DirectData
from edgepool.workshop.orders import Workshop, expand, load_workshop
from edgepool.workshop.relay import Relay
from edgepool.workshop.relayclient import RelayClient, RelayData
from edgepool.workshop.station import Station
from edgepool.workshop.twindata import TwinData

TELL_EVERY_S = 0.5
CLOSE_S = 2.5
FORCED_END_S = 15.0
ORPHAN_S = 20.0
JOURNAL_FILE = "journal.jsonl"


class HostSpec(Settings, frozen=True):
    """What one process is to run.

    `folders` are peers' folders (one for the relay); `tasks` limits how many tasks are allotted (0:
    all); with `relay_url` all data goes through the relay, whose certificate is pinned.
    """

    process: str
    kind: Literal["stations", "coordinator", "witnesses", "relay"]
    folders: tuple[Path, ...]
    workshop: Path
    hour_seconds: float
    seed: int
    tasks: int = 0
    relay_url: str = ""
    relay_certificate: Path = Path()


def main(arguments: Sequence[str]) -> int:
    """Run the process that a specification describes; return its exit code."""
    if len(arguments) != 1:
        print("usage: python -m edgepool.workshop.host SPEC.json", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    loop_factory = None
    with suppress(ImportError):
        loop_factory = import_module("uvloop").new_event_loop
    try:
        spec = load_spec(Path(arguments[0]))
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_run(spec))
    except EdgepoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def load_spec(path: Path) -> HostSpec:
    """Read a specification; ConfigError says what is wrong with it."""
    if path.suffix == ".toml":
        return convert(path, read_toml(path), HostSpec)
    try:
        return convert(path, msgspec.json.decode(path.read_bytes()), HostSpec)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None


async def _run(spec: HostSpec) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        # Ending takes under 3 s, more on a slow machine. Should it hang, the log gets to know where, and
        # the process is gone: all that was acknowledged is on disk.
        faulthandler.dump_traceback_later(FORCED_END_S, exit=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    _end_with_parent(loop, end)
    if spec.kind == "relay":
        await _run_relay(spec, stop)
    else:
        await _run_peers(spec, stop)


# --- peers ----------------------------------------------------------------------------------------


class _HostedWorker:
    """A peer of this process, its local API, and its station or coordinator, if it has one."""

    def __init__(self, spec: HostSpec, folder: Path, workshop: Workshop, twin: TwinData) -> None:
        settings = load_peer_settings(folder)
        self.peer = Peer.open(settings)
        self._api = ApiServer(self.peer, folder, settings.api.host, settings.api.port)
        self._mover: DataMover | None = None
        self._journal: Journal | None = None
        if spec.kind == "stations":
            self._mover = _mover(spec, self.peer)
            station = Station(self.peer, self._mover, twin, workshop, spec.hour_seconds, print_event)
            self.work: Callable[[], Coroutine[Any, Any, None]] = station.run
        elif spec.kind == "witnesses":
            self.work = _only_vote
        else:
            self._journal = Journal(folder / JOURNAL_FILE)
            tasks = expand(workshop).tasks[: spec.tasks or None]
            coordinator = Coordinator(self.peer, workshop, tasks, self._journal, print_event)
            self.work = coordinator.run

    async def open(self) -> None:
        """Start peer and API."""
        await self.peer.__aenter__()
        await self._api.start()

    async def close(self) -> None:
        """End API, data mover and peer."""
        steps: list[Callable[[], Awaitable[object]]] = [self._api.close]
        if self._mover is not None:
            steps.append(self._mover.close)
        steps.append(lambda: self.peer.__aexit__(None, None, None))
        for step in steps:
            try:
                await step()
            except EdgepoolError as error:
                logging.getLogger(__name__).warning("%s did not end well: %s", self.peer.name, error)
        if self._journal is not None:
            self._journal.close()

    def tell_data(self) -> None:
        """Tell how much data was moved."""
        if self._mover is not None:
            print_event(DataMoved(self.peer.name, self._mover.report()))

    def tell_end(self) -> None:
        """Tell the last status."""
        report = self._mover.report() if self._mover is not None else None
        print_event(PeerEnds(self.peer.status(), report))


async def _only_vote() -> None:
    """Do what a witness does beside its peer: nothing, until cancelled."""
    await asyncio.Event().wait()


async def _run_peers(spec: HostSpec, stop: asyncio.Event) -> None:
    workshop = load_workshop(spec.workshop)
    twin = TwinData(workshop.twin_data, spec.seed)
    workers = [_HostedWorker(spec, folder, workshop, twin) for folder in spec.folders]
    opened: list[_HostedWorker] = []
    try:
        for worker in workers:
            opened.append(worker)
            await worker.open()
        print_event(_ready(spec, workers))
        await _work(workers, stop)
        for worker in workers:
            worker.tell_end()
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*(worker.close() for worker in opened))


async def _work(workers: list[_HostedWorker], stop: asyncio.Event) -> None:
    """Let all work until `stop`; if one fails, all end and its error is raised."""
    tasks = [asyncio.create_task(worker.work(), name=worker.peer.name) for worker in workers]
    tasks.append(asyncio.create_task(_tell_data(workers)))
    waiting: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait()), *tasks]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for other in waiting:
            other.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _tell_data(workers: list[_HostedWorker]) -> None:
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        for worker in workers:
            worker.tell_data()


def _mover(spec: HostSpec, peer: Peer) -> DataMover:
    if not spec.relay_url:
        return DirectData(peer)
    client = RelayClient(spec.relay_url, spec.relay_certificate, load_identity(peer.settings))
    blobs = BlobStore(peer.settings.path("relay-blobs"), peer.settings.limits.data_bytes)
    return RelayData(peer, client, blobs)


def _ready(spec: HostSpec, workers: list[_HostedWorker]) -> Ready:
    peers = tuple(
        HostedPeer(worker.peer.name, worker.peer.id, str(worker.peer.settings.folder)) for worker in workers
    )
    return Ready(spec.process, peers, "", int(time() * 1000))


# --- the relay ------------------------------------------------------------------------------------


async def _run_relay(spec: HostSpec, stop: asyncio.Event) -> None:
    settings = load_peer_settings(spec.folders[0])
    relay = Relay(
        settings.path("relay-data"),
        load_identity(settings).server_context,
        host="127.0.0.1",
        limit_bytes=settings.limits.data_bytes,
    )
    await relay.start()
    try:
        print_event(Ready(spec.process, (), relay.url, int(time() * 1000)))
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_EVERY_S):
                    await stop.wait()
            print_event(relay.counts())
    finally:
        await relay.close()


# --- ending with the parent -----------------------------------------------------------------------


def _end_with_parent(loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
    """Call `end` when standard input ends, if it is a pipe: then whoever started this is gone."""
    mode = os.fstat(0).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        with suppress(RuntimeError):  # the loop may be closed already
            loop.call_soon_threadsafe(end)
        sleep(ORPHAN_S)  # for a loop that is too busy to listen
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
