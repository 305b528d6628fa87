"""A full check of one chain by somebody who has nothing but its genesis and its blocks.

Every hash, Merkle root, record signature, lottery right, reveal, contract and certificate is
checked again, as the members did; the first block that fails is named.
"""

from __future__ import annotations

from edgepool.config import ConsensusSettings, Limits
from edgepool.core.chain import Chain
from edgepool.errors import DecodeError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode
from edgepool.model.crypto import Signer
from edgepool.model.pool import Genesis


class _NoBlocks:
    def block(self, chain: object, height: int) -> CertifiedBlock | None:
        return None


class ChainChecker:
    """Takes a chain's blocks in order; `check` says what is wrong with the next one."""

    def __init__(self, genesis: Genesis) -> None:
        # An outsider's key: it is no member, so the chain only ever follows.
        outsider = Signer(bytes(32))
        self._chain = Chain(
            genesis,
            signer=outsider,
            beacon_secret=bytes(32),
            settings=ConsensusSettings(),
            limits=Limits(),
            source=_NoBlocks(),
            height=0,
            vote_state=b"",
        )

    @property
    def height(self) -> int:
        """The height of the last block that passed."""
        return self._chain.state.height

    def check(self, payload: bytes) -> str:
        """Say what is wrong with the encoded certified block that should be next, or return ''."""
        try:
            certified = decode(CertifiedBlock, payload)
        except DecodeError as error:
            return str(error)
        block, certificate = certified.block, certified.certificate
        header = block.header
        reason = self._chain.check_block(block)
        if reason:
            return reason
        if (certificate.height, certificate.block_id) != (header.height, header.id):
            return "the certificate is for another block"
        state = self._chain.state
        reason = certificate.problem(state.network, self._chain.id, state.members)
        if not reason:
            state.apply(block)
        return reason
