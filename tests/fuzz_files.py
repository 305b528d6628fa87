"""Fuzzing of what people hand around and what disks hold: proof files, states, and a peer's folder.

A proof file with anything wrong in it proves nothing, a state that can be read at all is written as it was
read, and a damaged folder is refused in a sentence, or opened as it was.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

from changing_pool import twice_changed
from fuzz_judge import Broken
from fuzz_mutation import Seed, mutate_bytes, mutate_value
from ledger_world import NETWORK, World
from msgspec.structs import replace

from edgepool.config import PeerSettings
from edgepool.core.consensus.ballot import SavedBallot
from edgepool.core.ledger.proof import Fault, keep_record
from edgepool.core.ledger.recordproof import (
    MAGIC,
    VERSION,
    RecordProof,
    _Parts,
    prove_record,
    read_proof,
    record_proof_fault,
    write_proof,
)
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import CommitBlock, KeptRecord, NewChain, Prune, SaveSnapshot, VoteState
from edgepool.core.node import Node
from edgepool.errors import DecodeError, EdgepoolError
from edgepool.model.block import Block
from edgepool.model.codec import decode, encode
from edgepool.model.vote import PREVOTE, sign_vote
from edgepool.storage import log, snapshots
from edgepool.storage.checked import checked_bytes
from edgepool.storage.store import FolderStore

SEGMENT_BYTES = 4096
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Raw:
    """Bytes to be wounded that are no MessagePack."""

    frame: bytes


class Proofs:
    """Mutates proof files of pools with and without handovers."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        pool, world = twice_changed(2), World(members=4, beacon_length=4)
        blocks = [pool.block(*(pool.demand(pool.signer(place)) for place in (0, 2)))]
        blocks.append(pool.block(pool.offer(pool.signer(1))))
        found = [prove_record(pool.genesis, pool.handovers, block, 0) for block in blocks]
        packed = world.certify(world.pack(world.offer(1), world.demand(0), world.demand(2)))
        found += [prove_record(world.genesis, (), packed, place) for place in range(3)]
        proofs = [proof for proof in found if proof is not None]
        self._chains = [proof.genesis.chain for proof in proofs]
        self._true = {(proof.header.id, proof.record.id) for proof in proofs}
        self._files = [Raw(write_proof(proof)) for proof in proofs]
        self._parts = [decode(_Parts, file.frame[len(MAGIC) + 1 :]) for file in self._files]
        self._seeds = [
            {name: Seed(getattr(parts, name)) for name in parts.__struct_fields__} for parts in self._parts
        ]

    def run(self) -> bytes:
        """Judge one mutated proof; return it. Broken if a false one holds."""
        data = self._mutated()
        try:
            proof = read_proof(data)
        except DecodeError:
            return data
        if isinstance(proof, RecordProof):
            self._judge(proof, record_proof_fault(proof, self._chains))
        return data

    def _judge(self, proof: RecordProof, fault: Fault | None) -> None:
        if fault is None and (proof.header.id, proof.record.id) not in self._true:
            raise Broken("a proof of what is on no chain holds")

    def _mutated(self) -> bytes:
        """Return a proof with wounds, with one odd part, or with parts of two proofs."""
        rng = self._rng
        one, other = (int(rng.random() * len(self._files)) for _ in range(2))
        dice = rng.random()
        if dice < 0.3:
            return mutate_bytes(rng, self._files[one], self._files[other])  # type: ignore[arg-type]
        names = _Parts.__struct_fields__
        name = names[int(rng.random() * len(names))]
        seed, strange = self._seeds[one][name], self._seeds[other][name]
        part = strange.frame if dice < 0.4 else mutate_value(rng, seed, strange)
        return MAGIC + bytes([VERSION]) + encode(replace(self._parts[one], **{name: part}))


class States:
    """Mutates encoded states of chains; one that can be read must bear to be used."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._world = made_world()
        self._record = self._world.demand(0)
        self._seeds = [Seed(state) for _, state in self._world.saved]

    def run(self) -> bytes:
        """Restore one mutated state, use it, and write it again."""
        rng, world = self._rng, self._world
        seed, other = (self._seeds[int(rng.random() * len(self._seeds))] for _ in range(2))
        data = (mutate_bytes if rng.random() < 0.1 else mutate_value)(rng, seed, other)
        try:
            state = ChainState.restore(world.genesis, data)
        except DecodeError:
            return data
        state.draft().add(self._record)
        state.header_problem(world.blocks[0].block.header)
        if len(state.root) != 32 or state.snapshot() != data:
            raise Broken("a state is written in another way than it was read")
        return data


class Folders:
    """Damages the files of a peer's folder, with checksums that hold or not, and opens it."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._home = Path()
        self._world = made_world()
        self._number = 0
        self._files: dict[Path, bytes] = {}

    def close(self) -> None:
        """Remove what is on the disk."""
        if self._files:
            shutil.rmtree(self._home, ignore_errors=True)

    def run(self) -> bytes:
        """Open one damaged folder; Broken if another chain comes of it. Returns what was damaged."""
        if not self._files:
            self._make()
        rng = self._rng
        self._number += 1
        folder = self._home / f"{self._number}"
        name = self._names[int(rng.random() * len(self._names))]
        data, judged = self._damaged(name)
        for path, whole in self._files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            found = data if path == name else whole
            if found is not None:
                (folder / path).write_bytes(found)
        try:
            self._open(folder, judged)
        finally:
            shutil.rmtree(folder)
        return str(name).encode()

    def _open(self, folder: Path, judged: bool) -> None:
        store, genesis = FolderStore(folder, SEGMENT_BYTES), self._world.genesis
        settings = PeerSettings(name="m0", network=genesis.invitation.network)
        node = Node(settings, self._world.signers[0], store)
        try:
            for saved in store.open():
                for height in range(1, saved.height + 1):
                    store.block(genesis.chain, height)
                store.snapshot(genesis.chain)
                for place in self._world.places:
                    store.kept(genesis.chain, *place)
                if judged:
                    node.load(saved.genesis, saved.height, saved.vote_state)
        except EdgepoolError as error:
            if not str(error).strip() or "\n" in str(error):
                raise Broken(f"damage is not told in a sentence: {error!r}") from None
        finally:
            store.close()
        for chain in node.chains.values():
            if chain.id != genesis.chain or chain.state.root != self._world.roots[chain.state.height]:
                raise Broken("a damaged folder was opened as another chain")

    def _damaged(self, name: Path) -> tuple[bytes | None, bool]:
        """Return a damaged file, None for one that is gone; and whether its content is still checked then."""
        rng, whole = self._rng, self._files[name]
        dice = rng.random()
        if dice < 0.02:
            return None, True
        if dice < 0.1:
            return whole[: int(rng.random() * len(whole))], True
        if dice < 0.15:
            return self._files[self._names[int(rng.random() * len(self._names))]], True
        if dice < 0.5 or name.suffix == ".idx":
            return mutate_bytes(rng, Raw(whole), Raw(whole)), True  # type: ignore[arg-type]
        if name.name == snapshots.SNAPSHOT_FILE:
            return self._snapshot_file(whole), True
        if name.name == "genesis.bin":
            payload = _mutated(rng, whole[12:])
            return checked_bytes(whole[:8], payload), True
        # What a peer has stored itself it does not judge again; but what it reads it must be able to read.
        return self._log_file(whole, name.name), name.name == "votes.log"

    def _snapshot_file(self, whole: bytes) -> bytes:
        kind, payload = whole[:8], whole[12:]
        if self._rng.random() < 0.5:
            return checked_bytes(kind, _mutated(self._rng, payload))
        stored = decode(snapshots.StoredSnapshot, payload)
        return checked_bytes(kind, encode(replace(stored, state=_mutated(self._rng, stored.state))))

    def _log_file(self, whole: bytes, name: str) -> bytes:
        """Return a log with one odd entry, whose checksum holds."""
        salt, at = whole[8:12], log.PREFACE.size
        entries: list[tuple[int, int, bytes]] = []
        while at < len(whole):
            _, number, synced, length, _ = log.HEADER.unpack_from(whole, at)
            at += log.HEADER.size
            entries.append((number, synced, whole[at : at + length]))
            at += length
        place = int(self._rng.random() * len(entries)) if entries else -1
        fresh = whole[: log.PREFACE.size]
        before = {"kept.log": 10, "votes.log": 20}.get(name, 0)
        for one, (number, synced, payload) in enumerate(entries):
            if one == place:
                payload = payload[:before] + _mutated(self._rng, payload[before:])
            checked = log.CHECKED.pack(number, synced, len(payload))
            crc = log.zlib.crc32(payload, log.zlib.crc32(checked, log.zlib.crc32(salt)))
            fresh += log.MAGIC + checked + crc.to_bytes(4, "little") + payload
        return fresh

    def _make(self) -> None:
        """Store a whole folder, in memory if that can be, and remember what is in it."""
        self._home = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
        true = self._home / "true"
        self._fill(true)
        self._files = {
            path.relative_to(true): path.read_bytes()
            for path in sorted(true.rglob("*"))
            if path.is_file() and path.name != "lock"
        }
        self._names = sorted(self._files)

    def _fill(self, folder: Path) -> None:
        """Store a chain of which the beginning is pruned."""
        world, store = self._world, FolderStore(folder, SEGMENT_BYTES)
        height, state = world.saved[0]
        handovers = tuple(one for one in world.handovers if one.header.height <= height)
        store.open()
        store.write([NewChain(world.genesis), *map(CommitBlock, world.blocks)])
        store.sync()
        store.write([SaveSnapshot(world.genesis.chain, height, handovers, state, False)])
        store.write([Prune(world.genesis.chain, height, world.places)])
        store.write([VoteState(world.genesis.chain, encode(world.ballot()))])
        store.sync()
        store.close()


class MadeWorld(World):
    """A pool whose chain has a bit of everything; `saved` has states of it, `roots` those of all heights."""

    def __init__(self) -> None:
        super().__init__(members=4, beacon_length=64, kind="fixed")
        self.roots = [self.state.root]
        self.saved: list[tuple[int, bytes]] = []
        self._blocks = []
        for turn in range(18):
            self._turn(turn)
            if turn in (9, 13, 17):
                self.saved.append((self.state.height, self.state.snapshot()))
        self.blocks = [self.certify(block) for block in self._blocks]
        self.places = tuple(place for place in self.state.standing_places(self.saved[0][0]))
        self.kept = [keep_record(self.blocks[height - 1], index) for height, index in self.places]

    def ballot(self) -> SavedBallot:
        """Return what member 0 has said at the next height: it is locked on what all have prevoted."""
        height, voters = self.state.height + 1, [self._signer_of[peer] for peer in self.state.members]
        records = [self.offer(0, 99)]
        block = Block(self.header(records), tuple(records))
        place = (NETWORK, self.genesis.chain, PREVOTE, height, 0, block.header.id)
        polka = tuple(sign_vote(one, *place) for one in voters)
        mine = tuple(one for one in polka if one.voter == self.peers[0])
        return SavedBallot(height, 1, 2, 0, block.header.id, 0, block, polka, mine, None)

    def _turn(self, turn: int) -> None:
        match turn:
            case 3:
                block = self.decide(self.change(incoming=self.newcomer("fifth")))
            case 7:
                block = self.pack(self.record(self.signers[0], self.evidence(self.signers[3], 2)))
            case 8:
                block = self.pack(self.record(self.signers[1], self.anchor(FAR, 4)))
            case 11:
                block = self.decide(self.change(outgoing=self.signers[3]))
            case 12:
                block = self.pack(self.record(self.coordinator, self.change(outgoing=self.signers[2])))
            case 1 | 5 | 14:
                name = f"T{turn}"
                steps = self.step_records(0, 1, task=name)  # type: ignore[arg-type]
                block = self.pack(steps[0], self.procedure(0, 1, name), self.completion(0, 1, name))
                self.roots.append(self.state.root)
                self._blocks.append(block)
                block = self.pack(self.inspection(0, 2, task=name))
            case _:
                block = self.pack(self.offer(turn % 3, turn + 1), self.demand(turn % 3))
        self.roots.append(self.state.root)
        self._blocks.append(block)


FAR = World(members=1, beacon_length=2).genesis.chain
_made: list[MadeWorld] = []


def made_world() -> MadeWorld:
    """Return the one pool from which stored files and states are made."""
    if not _made:
        _made.append(MadeWorld())
    return _made[0]


def kept_records() -> list[KeptRecord]:
    """Return what stays of pruned blocks."""
    return made_world().kept


def _mutated(rng: Random, data: bytes) -> bytes:
    seed = Seed(data)
    return mutate_value(rng, seed, seed)
