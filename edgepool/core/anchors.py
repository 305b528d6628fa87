"""What an anchor on a main chain says about a sub-chain: the check of one who holds both [S3.6].

Main chains keep anchors without judging them, so anybody on a main chain may have written nonsense: an anchor
counts only if the sub-pool's own members have signed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgepool.model.pool import Genesis, Member
from edgepool.model.record import ChainAnchor


def anchor_fault(
    anchor: ChainAnchor,
    genesis: Genesis,
    roster_at: Callable[[int], Sequence[Member]],
    block_id_at: Callable[[int], bytes | None],
    head_height: int,
) -> str:
    """Say what a copy of the chain of `genesis`, up to `head_height`, has against an anchor, or return ''.

    'not genuine (REASON)' says nothing about the chain. 'contradicts: ...' and 'lies beyond the end of this
    copy' prove that the pool has rewritten its past, or that the copy is short. `roster_at` returns who votes
    on a height, as far as the copy tells: above its head, the last roster that it names. `block_id_at`
    returns None where the copy is pruned; such an anchor contradicts nothing. Costs a certificate's votes.
    """
    if anchor.sub_chain != genesis.chain:
        return "not genuine (it is of another chain)"
    certificate = anchor.certificate
    members = [member.peer for member in roster_at(certificate.height)]
    problem = certificate.problem(genesis.invitation.network, genesis.chain, members)
    beyond = certificate.height > head_height
    if problem:
        later = "; members may have changed since the end of this copy" if beyond else ""
        return f"not genuine ({problem}{later})"
    if beyond:
        return "lies beyond the end of this copy"
    block_id = block_id_at(certificate.height)
    if block_id is not None and block_id != certificate.block_id:
        return f"contradicts: the chain has another block at height {certificate.height}"
    return ""
