"""Full checks of chains that lie in a folder; nothing is opened for writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepool.core.verification import ChainChecker
from edgepool.errors import EdgepoolError
from edgepool.model.ids import ChainId
from edgepool.storage.blocks import scan_blocks
from edgepool.storage.store import read_genesis


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """What a full check of one stored chain found.

    `problem` names the first bad block ('' if all is well); `bad_height` is its height, 0 for the
    genesis and -1 if nothing is bad.
    """

    id: ChainId
    name: str
    kind: str
    height: int
    members: list[str]
    verified: bool
    problem: str
    bad_height: int


def verify_chain(folder: Path, chain: ChainId) -> ChainVerdict:
    """Check the whole of `chain` in a peer's folder: hashes, signatures, Merkle roots, lottery."""
    path = folder / "chains" / chain
    try:
        genesis = read_genesis(path)
    except EdgepoolError as error:
        return ChainVerdict(chain, "", "", 0, [], False, f"genesis: {error}", 0)
    invitation = genesis.invitation
    members = [member.name for member in invitation.members]
    problem = genesis.problem(invitation.network)
    if not problem and genesis.chain != chain:
        problem = "the genesis belongs to another chain"
    if problem:
        problem = f"genesis: {problem}"
        return ChainVerdict(chain, invitation.name, invitation.kind, 0, members, False, problem, 0)
    checker = ChainChecker(genesis)
    bad_height = -1
    for height, payload in scan_blocks(path / "blocks.log"):
        problem = str(payload) if isinstance(payload, EdgepoolError) else checker.check(payload)
        if problem:
            bad_height = height
            problem = problem if f"block {height}" in problem else f"block {height}: {problem}"
            break
    return ChainVerdict(
        chain,
        invitation.name,
        invitation.kind,
        checker.height,
        members,
        not problem,
        problem,
        bad_height,
    )
