"""What one process could do with the records of a chain if it had nothing else to do.

The work that no member can be spared: decode a record and see that its bytes are canonical, verify its
signature, judge and enter it, hash it into the block, and store the block durably. No links, no votes,
no lottery. Run as a helper process (see processes.py).
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from time import perf_counter, process_time

from edgepool.bench.material import NETWORK, TIME_MS, make_pool, wide_offer
from edgepool.bench.processes import Answer, serve
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import CommitBlock, NewChain
from edgepool.errors import LocalError
from edgepool.model.block import MAX_BLOCK_RECORDS, Block, CertifiedBlock, Header, records_root
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import SIGNATURE_BYTES
from edgepool.model.record import SignedRecord, sign_record
from edgepool.model.vote import Certificate
from edgepool.storage.store import FolderStore

BLOCKS = 8


class Ceiling:
    """Full blocks of records by `validators` authors, as they would come over links."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = count()

    async def prepare(self, validators: int) -> int:
        """Make the records; return how many bytes one has."""
        self._pool = pool = make_pool(validators)
        signed = [
            sign_record(
                pool.signers[number % validators],
                NETWORK,
                pool.genesis.chain,
                wide_offer(f"machine-{number}"),
                TIME_MS,
                number,
            )
            for number in range(BLOCKS * MAX_BLOCK_RECORDS)
        ]
        self._records = [encode(record) for record in signed]
        return len(self._records[-1])

    async def run(self) -> dict[str, float]:
        """Take all records through once, on a fresh chain; return how long that took, and worked."""
        store = FolderStore(self._folder / f"ceiling-{next(self._runs)}")
        store.open()
        try:
            store.write([NewChain(self._pool.genesis)])
            store.sync()
            state = ChainState(self._pool.genesis)
            start_s, cpu_s = perf_counter(), process_time()
            for first in range(0, len(self._records), MAX_BLOCK_RECORDS):
                self._block(store, state, self._records[first : first + MAX_BLOCK_RECORDS])
            took_s, worked_s = perf_counter() - start_s, process_time() - cpu_s
            return {
                "per_s": len(self._records) / took_s,
                "cpu_us": worked_s * 1e6 / len(self._records),
            }
        finally:
            store.close()

    def _block(self, store: FolderStore, state: ChainState, arrived: list[bytes]) -> None:
        draft = state.draft()
        records = []
        for data in arrived:
            signed = decode(SignedRecord, data)
            problem = draft.add(signed)
            if problem or not signed.authentic():
                raise LocalError(f"the benchmark's own record may not stand: {problem or 'signature'}")
            records.append(signed)
        height, chain = state.height + 1, state.chain
        header = Header(
            NETWORK,
            chain,
            height,
            0,
            state.last_block_id,
            state.members_hash,
            state.next_members_hash,
            state.root,
            records_root(records),
            len(records),
            self._pool.signers[0].peer,
            b"",
            TIME_MS,
        )
        block = Block(header, tuple(records))
        state.apply(block)
        certificate = Certificate(height, 0, header.id, ((0, bytes(SIGNATURE_BYTES)),))
        store.write([CommitBlock(CertifiedBlock(block, certificate))])
        store.sync()

    async def end(self) -> None:
        """Nothing is left open."""


def _answers(folder: Path) -> dict[str, Answer]:
    ceiling = Ceiling(folder)
    return {"prepare": ceiling.prepare, "run": ceiling.run, "end": ceiling.end}


if __name__ == "__main__":
    serve(_answers)
