"""kill -9 of validators: four real peers, records all the time, one of them killed and started again.

    python tests/power/kill.py --kills 5000 --json

The peers are processes of `edgepool run` with TLS links between them and folders on the disk; records are
submitted to all of them over their APIs, as gateways do. An answer counts as an acknowledgement. At the end
every acknowledged record must stand at its place in every folder, and nobody may have signed two values.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from telling import tell

from edgepool.config import FixedPool, KnownPeer
from edgepool.core.consensus.ballot import SavedBallot
from edgepool.errors import EdgepoolError, StorageError
from edgepool.gateway.client import ApiClient, find_endpoint
from edgepool.gateway.setup import PeerPlan, free_ports, make_peer_folder, read_peer_id
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.vote import PRECOMMIT
from edgepool.storage.log import Entry, read_preface, scan
from edgepool.storage.store import list_chains, read_chain

MACHINES = ("mill", "lathe", "saw")
NAMES = ("cloud", *MACHINES)
POOL = "cell"
START_S = 90.0
SETTLE_S = 60.0


class Wrong(Exception):
    """Something that must never happen has happened."""


@dataclass(slots=True)
class Report:
    """What a run came to; `votes` are those that were read back from disks and certificates."""

    seed: int
    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    refused: int = 0
    blocks: int = 0
    votes: int = 0
    torn: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an owner was told: its record stands there."""

    owner: str
    root: str
    chain: str
    height: int
    index: int


class Validator:
    """One peer: its folder and, while it lives, its process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self._log = folder.parent / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "edgepool", "run", str(self.folder), "--json"]
        with self._log.open("ab") as told:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)

    def limit_files(self, size_bytes: int) -> None:
        """From now on, and until it is started again, none of its files may grow beyond that."""
        assert self._process is not None
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    async def answers(self) -> None:
        """Wait until the API answers; Wrong if the process ends or takes too long."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                code = self._process.returncode
                raise Wrong(f"{self.name} has ended by itself ({code}): {self.last_words()}")
            with suppress(EdgepoolError):
                endpoint = find_endpoint(self.folder)
                if endpoint is not None and self._process is not None and endpoint.pid == self._process.pid:
                    async with ApiClient.of(self.folder) as client:
                        await client.status()
                    return
            await asyncio.sleep(0.02)
        raise Wrong(f"{self.name} does not answer {START_S:g} s after its start")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End it with SIGTERM, as a service manager does."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()

    async def ended(self) -> int:
        """Wait until it ends by itself; return its exit code, or raise Wrong."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                raise Wrong(f"{self.name} goes on as if nothing were wrong")
            await asyncio.sleep(0.05)
        return self._process.returncode

    def last_words(self) -> str:
        """What it has complained of, in all its lives."""
        return self._log.read_text(errors="replace").strip()


class Plant:
    """Four validators of one pool in `folder`, their owners, and what the owners were told."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.validators = make_folders(folder)
        self.receipts: list[Receipt] = []
        self.report = report
        self._ids = {one.name: read_peer_id_of(one.folder) for one in self.validators}
        self._said: dict[tuple[PeerId, ChainId, int, int, int], bytes] = {}
        self._parts = folder / "parts"
        self._parts.mkdir()

    async def run(self, kills: int, draw: Random) -> None:
        """Start all, kill as often, let it settle, end all and look at what is on the disks."""
        async with self.at_work(draw):
            for _ in range(kills):
                await self._kill_one(draw)
        self.check()

    @asynccontextmanager
    async def at_work(self, draw: Random) -> AsyncIterator[None]:
        """Have all running and all owners busy inside; then let them come to one height, and end them."""
        for one in self.validators:
            one.start()
        try:
            for one in self.validators:
                await one.answers()
            await self._level(1)
            owners = [asyncio.create_task(self._own(one, draw.getrandbits(32))) for one in self.validators]
            try:
                yield
            finally:
                for owner in owners:
                    owner.cancel()
                await asyncio.gather(*owners, return_exceptions=True)
            await self._last_records()
            await self._level(max(receipt.height for receipt in self.receipts))
        finally:
            for one in self.validators:
                one.end()

    async def goes_on(self) -> None:
        """Wait for the next acknowledgement; Wrong if it takes too long."""
        told = len(self.receipts)
        deadline = time.monotonic() + SETTLE_S
        while len(self.receipts) == told:
            if time.monotonic() > deadline:
                raise Wrong(f"no record was acknowledged for {SETTLE_S:g} s")
            await asyncio.sleep(0.01)

    async def _kill_one(self, draw: Random) -> None:
        victim = draw.choice(self.validators)
        await self.goes_on()
        await asyncio.sleep(draw.uniform(0, 0.4))
        victim.kill()
        self.report.kills += 1
        self._read_votes(victim)
        await asyncio.sleep(draw.uniform(0, 0.3))
        victim.start()
        await victim.answers()

    async def _own(self, validator: Validator, seed: int) -> None:
        """Be the owner of a machine: publish one thing after the other, through whatever happens."""
        number = 0
        while True:
            with suppress(EdgepoolError):
                async with ApiClient.of(validator.folder) as client:
                    while True:
                        number += 1
                        await self._publish(client, validator, f"{validator.name}-{seed}-{number}")
            self.report.refused += 1
            await asyncio.sleep(0.02)

    async def _publish(self, client: ApiClient, validator: Validator, part: str) -> None:
        path = self._parts / part
        path.write_text(part)
        told = await client.publish(f"{part}/model", path, chain=POOL)
        self.receipts.append(
            Receipt(validator.name, told["root"], told["chain"], told["height"], told["index"])
        )

    async def _last_records(self) -> None:
        """Service resumes: every validator gets a record onto the chain."""
        for one in self.validators:
            for again in range(100):
                with suppress(EdgepoolError):
                    async with ApiClient.of(one.folder) as client:
                        await self._publish(client, one, f"{one.name}-last-{again}")
                    break
                await asyncio.sleep(0.1)
            else:
                raise Wrong(f"{one.name} gets no record onto the chain any more")

    async def _level(self, height: int) -> None:
        """Wait until all have the pool, at one height, and have that height (1: or less)."""
        deadline = time.monotonic() + SETTLE_S
        heights: list[int] = []
        while time.monotonic() < deadline:
            heights = [await _height(one) for one in self.validators]
            if min(heights) >= 0 and (height == 1 or (len(set(heights)) == 1 and heights[0] >= height)):
                return
            await asyncio.sleep(0.1)
        raise Wrong(f"the validators do not come to one height: {heights}, wanted {height}")

    # --- what is on the disks -----------------------------------------------------------------------

    def check(self) -> None:
        """Look for every receipt in every folder, and for two values of one member."""
        report = self.report
        report.acknowledged = len(self.receipts)
        chains = {one.name: self._read_chain(one) for one in self.validators}
        longest = max(chains.values(), key=len)
        report.blocks = len(longest)
        for name, blocks in chains.items():
            if not set(map(_id, blocks)) <= set(map(_id, longest)):
                raise Wrong(f"{name} has another chain")
            lost = [receipt for receipt in self.receipts if not _stands(receipt, blocks)]
            report.lost += len(lost)
            if lost:
                raise Wrong(f"{name} has lost {len(lost)} acknowledged records, among them {lost[0]}")
        for one in self.validators:
            self._read_votes(one)
            held = {path.stem for path in one.folder.rglob("*.data")}
            mine = {receipt.root for receipt in self.receipts if receipt.owner == one.name}
            if mine - held:
                raise Wrong(f"{one.name} has lost data that it has published")
            report.torn += len(list(one.folder.rglob("*.torn-*")))
        self._verify()

    def _read_chain(self, validator: Validator) -> list[CertifiedBlock]:
        (chain,) = list_chains(validator.folder)
        genesis, found = read_chain(validator.folder, chain)
        blocks = []
        for height, certified in found:
            if isinstance(certified, StorageError):
                raise Wrong(f"{validator.name}, block {height}: {certified}")
            blocks.append(certified)
            certificate = certified.certificate
            for place, _ in certificate.signatures:
                self._says(
                    genesis.members[place], chain, PRECOMMIT, height, certificate.round, certificate.block_id
                )
        return blocks

    def _read_votes(self, validator: Validator) -> None:
        """Read all vote states that the log still has, also those that later ones replaced."""
        me = self._ids[validator.name]
        for state in vote_states(validator.folder / "votes.log"):
            ballot = decode(SavedBallot, state[20:])
            for vote in ballot.votes:
                if vote.voter == me:
                    chain = ChainId(state[:20].hex())
                    self._says(me, chain, vote.kind, vote.height, vote.round, vote.block_id)

    def _says(self, who: PeerId, chain: ChainId, kind: int, height: int, round: int, value: bytes) -> None:
        key = (who, chain, kind, height, round)
        if self._said.setdefault(key, value) != value:
            raise Wrong(f"{who} has signed two votes of kind {kind} at height {height}, round {round}")
        self.report.votes = len(self._said)

    def _verify(self) -> None:
        """Have the product's own command look at all folders, and compare them with each other."""
        command = [sys.executable, "-m", "edgepool", "chain", "verify", str(self.validators[0].folder.parent)]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True)
        rows = json.loads(done.stdout or "[]")
        if done.returncode or len(rows) != len(self.validators) or not all(row["verified"] for row in rows):
            raise Wrong(f"'edgepool chain verify' refuses the folders: {done.stderr or rows}")


def vote_states(path: Path) -> Iterator[bytes]:
    """Yield the payloads of a vote log, oldest first: 20 bytes of the chain, then a vote state."""
    fd = os.open(path, os.O_RDONLY)
    try:
        salt = read_preface(fd, b"EPVOTES1")
        if salt is not None:
            for entry in scan(fd, os.fstat(fd).st_size, salt):
                if isinstance(entry, Entry):
                    yield entry.payload
    finally:
        os.close(fd)


def make_folders(folder: Path) -> list[Validator]:
    """Make the folders of a coordinator, which votes, and three machines."""
    ports = free_ports(len(NAMES))
    listen = [f"/ip4/127.0.0.1/tcp/{port}" for port in ports]
    authority = folder / "authority"
    pool = FixedPool(POOL, MACHINES)
    cloud = PeerPlan("cloud", "works", "coordinator", listen=listen[0], fixed_pools=(pool,))
    make_peer_folder(folder / "cloud", cloud, authority)
    coordinator = read_peer_id_of(folder / "cloud")
    known = KnownPeer("cloud", f"{listen[0]}/p2p/{coordinator}")
    for name, address in zip(MACHINES, listen[1:], strict=True):
        plan = PeerPlan(name, "works", listen=address, coordinators=(coordinator,), known_peers=(known,))
        make_peer_folder(folder / name, plan, authority)
    for name in NAMES:
        with (folder / name / "edgepool.toml").open("a", encoding="utf-8") as settings:
            settings.write("\n[storage]\nkeep_free_bytes = 0\n")  # the small disks of rigs have none to spare
    return [Validator(folder / name) for name in NAMES]


def read_peer_id_of(folder: Path) -> PeerId:
    """Return the peer id of the key in `folder`."""
    from edgepool.config import load_peer_settings

    return read_peer_id(load_peer_settings(folder))


async def _height(validator: Validator) -> int:
    """Return the height of the pool's chain at a validator, -1 if it has none."""
    with suppress(EdgepoolError):
        async with ApiClient.of(validator.folder) as client:
            return next((chain.height for chain in await client.chains()), -1)
    return -1


def _id(certified: CertifiedBlock) -> tuple[int, bytes]:
    return certified.block.header.height, certified.block.header.id


def _stands(receipt: Receipt, blocks: list[CertifiedBlock]) -> bool:
    if not 1 <= receipt.height <= len(blocks):
        return False
    records = blocks[receipt.height - 1].block.records
    if receipt.index >= len(records):
        return False
    return getattr(records[receipt.index].record.body, "root", b"").hex() == receipt.root


def run(kills: int, seed: int, folder: Path) -> Report:
    """Make a pool in `folder` and kill so many of its validators, one after the other."""
    report = Report(seed)
    began = time.perf_counter()
    try:
        asyncio.run(Plant(folder, report).run(kills, Random(f"{seed}/kill")))
    except Wrong as wrong:
        report.violations.append(str(wrong))
    report.seconds = round(time.perf_counter() - began, 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill validators of a running pool, one after the other.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep everything here (a new folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True)
        report = run(options.kills, options.seed, options.folder)
    else:
        with tempfile.TemporaryDirectory(prefix="edgepool-kill-") as folder:
            report = run(options.kills, options.seed, Path(folder))
    return tell(
        report,
        options.json,
        f"{report.kills} kills in {report.seconds} s: of {report.acknowledged} acknowledged records "
        f"{report.lost} were lost; {report.blocks} blocks, {report.votes} votes looked at, "
        f"{report.torn} unfinished writes were set aside",
    )


if __name__ == "__main__":
    sys.exit(main())
