"""Copies of chains from several folders, compared with each other and with the anchors on main chains.

A copy that has stood its own check may still be one of two histories that a whole pool has signed. Two
things show that: another copy with another block, and an anchor, which some main chain has kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepool.core.anchors import anchor_fault
from edgepool.core.rosters import RosterHistory
from edgepool.model.ids import ChainId, short
from edgepool.peer.verify import CheckedCopy, SeenAnchor


@dataclass(slots=True)
class CopyReport:
    """One copy, of the peer `peer`, with what the others and the anchors say of it.

    `faults` are sentences: where it is not the chain that another copy or an anchor shows. Anchors are
    counted: `anchors_equal` name its own blocks, `anchors_pruned` cannot be compared because the blocks are
    pruned here, `anchors_ahead` are beyond its end while another copy has the block. `anchors_false` are
    sentences about anchors that the pool has not signed, which is no fault of the chain.
    """

    peer: str
    copy: CheckedCopy
    faults: list[str] = field(default_factory=list)
    anchors_equal: int = 0
    anchors_pruned: int = 0
    anchors_ahead: int = 0
    anchors_false: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Say whether nothing at all is wrong with this copy."""
        return self.copy.verdict.verified and not self.faults


def compare(copies: Sequence[tuple[str, CheckedCopy]]) -> list[CopyReport]:
    """Return a report on each of `copies`, pairs of a peer's name and what was checked, in their order."""
    reports = [CopyReport(peer, copy) for peer, copy in copies]
    by_chain: dict[ChainId, list[CopyReport]] = {}
    for report in reports:
        by_chain.setdefault(report.copy.verdict.id, []).append(report)
    anchors: dict[ChainId, dict[tuple[object, ...], SeenAnchor]] = {}
    for report in reports:
        for seen in report.copy.anchors:
            place = (seen.main, seen.height, seen.index, seen.anchor)  # each stands on many copies
            anchors.setdefault(seen.anchor.sub_chain, {}).setdefault(place, seen)
    for chain, same in by_chain.items():
        _compare_blocks(same)
        for seen in anchors.get(chain, {}).values():
            _compare_anchor(seen, same)
    return reports


def _compare_blocks(same: Sequence[CopyReport]) -> None:
    """Find where copies of one chain have different blocks; a shorter copy is no fault."""
    for place, report in enumerate(same):
        for other in same[:place]:
            height = _parting(report.copy, other.copy)
            if height:
                report.faults.append(_parted(report, other, height))
                break


def _parting(one: CheckedCopy, other: CheckedCopy) -> int:
    """Return the first height at which both have a block and not the same; 0 if there is none."""
    first = max(one.verdict.first_height, other.verdict.first_height)
    last = min(one.last, other.last)
    if one.ids_of(first, last) == other.ids_of(first, last):
        return 0
    for height in range(first, last + 1):
        if one.id_at(height) != other.id_at(height):
            return height
    return 0


def _parted(report: CopyReport, other: CopyReport, height: int) -> str:
    ids = [_shown(one.copy.id_at(height)) for one in (other, report)]
    what = f"block {height} is {ids[0]} in {other.peer} and {ids[1]} in {report.peer}"
    stands = [one.copy.verdict.height >= height for one in (other, report)]
    if all(stands):
        return f"{what}: members have signed both, so the pool itself has forked"
    if not any(stands):
        return f"{what}: neither stands"
    return f"{what}: only that in {other.peer if stands[0] else report.peer} stands"


def _compare_anchor(seen: SeenAnchor, same: Sequence[CopyReport]) -> None:
    """Compare an anchor with each copy of the chain that it anchors."""
    certificate = seen.anchor.certificate
    where = f"height {certificate.height} on chain {seen.main_name} (block {seen.height}, by {_author(seen)})"
    for report in same:
        copy, rosters = report.copy, _rosters(report.copy, certificate.height, same)
        if rosters is None:
            continue
        fault = anchor_fault(seen.anchor, rosters.genesis, rosters.at, copy.id_at, copy.verdict.height)
        if fault.startswith("not genuine"):
            earlier = _earlier_signers(seen, rosters)
            for peer, name in rosters.names().items():
                fault = fault.replace(peer, name)
            report.anchors_false.append(f"the anchor of {where} is {fault}{earlier}")
        elif fault.startswith("contradicts"):
            report.faults.append(
                f"the pool has rewritten its past: block {_shown(certificate.block_id)} was anchored at "
                f"{where}, this copy has {_shown(copy.id_at(certificate.height))}"
            )
        elif fault and not copy.verdict.verified:
            continue  # it is bad anyway, and what follows its first bad block was not looked at
        elif fault and any(other.copy.id_at(certificate.height) == certificate.block_id for other in same):
            report.anchors_ahead += 1
        elif fault:
            report.faults.append(
                f"this copy ends at {copy.verdict.height}, yet {where} was anchored: its end is lost, "
                "or its peer is behind"
            )
        elif copy.id_at(certificate.height) is None:
            report.anchors_pruned += 1
        else:
            report.anchors_equal += 1


def _rosters(copy: CheckedCopy, height: int, same: Sequence[CopyReport]) -> RosterHistory | None:
    """Return by whose rosters an anchor of `height` is judged: the copy's own as far as it goes."""
    if height <= copy.verdict.height:
        return copy.rosters
    longest = max((other.copy for other in same), key=lambda one: one.verdict.height)
    return longest.rosters if longest.verdict.height > copy.verdict.height else copy.rosters


def _earlier_signers(seen: SeenAnchor, rosters: RosterHistory) -> str:
    """Say whether the anchor holds for an earlier roster of this chain: then one of the two is forged."""
    certificate, genesis = seen.anchor.certificate, rosters.genesis
    for height in (1, *(handover.header.height + 1 for handover in rosters.handovers)):
        members = [member.peer for member in rosters.at(height)]
        if not certificate.problem(genesis.invitation.network, genesis.chain, members):
            return (
                f"; but the roster of height {height} has signed it: former members have forged the anchor, "
                "or the pool has changed its members in the past"
            )
    return ""


def _author(seen: SeenAnchor) -> str:
    return seen.author_name or short(seen.author)


def _shown(block_id: bytes | None) -> str:
    return (block_id or b"").hex()[:16]
