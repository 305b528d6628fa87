"""Full checks of chains that lie in a folder; nothing is opened for writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepool.core.machine import SavedSnapshot
from edgepool.core.rosters import RosterHistory
from edgepool.core.verification import ChainChecker
from edgepool.errors import DecodeError, EdgepoolError, LocalError, StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode
from edgepool.model.crypto import HASH_BYTES
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis
from edgepool.model.record import ChainAnchor
from edgepool.storage.reading import first_height, scan_blocks
from edgepool.storage.snapshots import read_snapshot
from edgepool.storage.store import read_genesis


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """What a full check of one stored chain found.

    `problem` names the first bad block ('' if all is well); `bad_height` is its height, 0 for the
    genesis and -1 if nothing is bad. `members` are the names of those who vote on the next height.
    `first_height` is that of the first block that is there; `note` says what became of those before it.
    """

    id: ChainId
    name: str
    kind: str
    height: int
    members: list[str]
    verified: bool
    problem: str
    bad_height: int
    first_height: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True)
class SeenAnchor:
    """An anchor where it stands: on the main chain `main`, at `height` and `index`, by `author`."""

    main: ChainId
    main_name: str
    height: int
    index: int
    author: PeerId
    author_name: str
    anchor: ChainAnchor


@dataclass(frozen=True, slots=True)
class CheckedCopy:
    """A stored chain after its check, with what it is compared by with other copies and with anchors.

    `rosters` is None if the genesis is bad. `ids` are the ids of the blocks from `verdict.first_height` on,
    those that have passed and the first one that has not, joined. `anchors` are those in its good blocks.
    """

    verdict: ChainVerdict
    rosters: RosterHistory | None = None
    ids: bytes = b""
    anchors: tuple[SeenAnchor, ...] = ()

    @property
    def last(self) -> int:
        """The height up to which `id_at` knows blocks."""
        return self.verdict.first_height + len(self.ids) // HASH_BYTES - 1

    def id_at(self, height: int) -> bytes | None:
        """Return the id of the block at `height`, or None if it is not there."""
        return self.ids_of(height, height) or None

    def ids_of(self, first: int, last: int) -> bytes:
        """Return the ids of the blocks from `first` to `last`, joined; b"" if the first is not there."""
        start, end = first - self.verdict.first_height, last + 1 - self.verdict.first_height
        return self.ids[start * HASH_BYTES : max(0, end) * HASH_BYTES] if start >= 0 else b""


def verify_chain(folder: Path, chain: ChainId) -> ChainVerdict:
    """Check the whole of `chain` in a peer's folder: hashes, signatures, Merkle roots, lottery, states."""
    return check_copy(folder, chain).verdict


def check_copy(folder: Path, chain: ChainId) -> CheckedCopy:
    """Check the whole of `chain` in a peer's folder, and return what other copies can be compared with."""
    path = folder / "chains" / chain
    try:
        genesis = read_genesis(path)
    except EdgepoolError as error:
        return CheckedCopy(ChainVerdict(chain, "", "", 0, [], False, f"genesis: {error}", 0))
    invitation = genesis.invitation
    problem = genesis.problem(invitation.network)
    if not problem and genesis.chain != chain:
        problem = "the genesis belongs to another chain"
    if problem:
        members = [member.name for member in invitation.members]
        problem = f"genesis: {problem}"
        return CheckedCopy(
            ChainVerdict(chain, invitation.name, invitation.kind, 0, members, False, problem, 0)
        )
    first, snapshot = 1, None
    try:
        first = first_height(path)
        stored = read_snapshot(path)
        snapshot = stored.saved() if stored is not None else None
    except StorageError as error:
        problem = f"snapshot: {error}"
    checker = ChainChecker(genesis, snapshot, first)
    if not problem and checker.problem:
        problem = f"snapshot: {checker.problem}"
    return _check_blocks(path, genesis, snapshot, checker, problem)


def _check_blocks(
    path: Path, genesis: Genesis, snapshot: SavedSnapshot | None, checker: ChainChecker, problem: str
) -> CheckedCopy:
    """Check the blocks in a chain's folder, unless there is a `problem` already."""
    bad_height = checker.first - 1 if problem else -1
    ids = bytearray()
    anchors: list[SeenAnchor] = []
    for height, payload in scan_blocks(path) if not problem else ():
        problem = str(payload) if isinstance(payload, EdgepoolError) else _checked(checker, payload)
        certified = _decoded(payload)
        if certified is not None:
            ids += certified.block.header.id
        if problem:
            bad_height = height
            problem = problem if f"block {height}" in problem else f"block {height}: {problem}"
            break
        if certified is not None:
            anchors += _anchors(genesis, checker, certified)
    verdict = ChainVerdict(
        genesis.chain,
        genesis.invitation.name,
        genesis.invitation.kind,
        checker.height,
        [member.name for member in checker.state.roster],
        not problem,
        problem,
        bad_height,
        checker.first,
        _note(snapshot, checker) if not problem else "",
    )
    return CheckedCopy(verdict, checker.rosters, bytes(ids), tuple(anchors))


def _checked(checker: ChainChecker, payload: bytes) -> str:
    """Say what is wrong with the next block, or that it cannot be judged here, or return ''."""
    try:
        return checker.check(payload)
    except LocalError as error:  # a contract of the users' own that is not known here
        return str(error)


def _decoded(payload: bytes | StorageError) -> CertifiedBlock | None:
    if isinstance(payload, StorageError):
        return None
    try:
        return decode(CertifiedBlock, payload)
    except DecodeError:
        return None


def _anchors(genesis: Genesis, checker: ChainChecker, certified: CertifiedBlock) -> list[SeenAnchor]:
    """Return the anchors in a block of a main chain."""
    if genesis.invitation.kind != "fixed":
        return []
    height = certified.block.header.height
    return [
        SeenAnchor(
            genesis.chain,
            genesis.invitation.name,
            height,
            index,
            signed.record.author,
            checker.rosters.names().get(signed.record.author, ""),
            signed.record.body,
        )
        for index, signed in enumerate(certified.block.records)
        if isinstance(signed.record.body, ChainAnchor)
    ]


def _note(snapshot: SavedSnapshot | None, checker: ChainChecker) -> str:
    """Say what stands for the blocks that are not there any more; '' if all are."""
    if snapshot is None or checker.first == 1:
        return ""
    pruned = f"blocks 1 to {checker.first - 1:,} are pruned; the snapshot at {snapshot.height:,} is "
    if checker.snapshot_certified:
        return pruned + "certified"
    return pruned + f"not certified yet: block {snapshot.height + 1:,} is still to come"
