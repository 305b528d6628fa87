"""What a record costs: its encoding, its signature, the ledger's rules, the lottery, and the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from time import perf_counter, thread_time

import msgspec
import nacl.bindings

from edgepool.bench.figures import Figure, Rounds, alternate, figure_of, timed
from edgepool.bench.material import NETWORK, check_signature, make_block, make_pool, make_records
from edgepool.core.consensus.lottery import leader_order
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import CommitBlock, NewChain
from edgepool.model.block import MAX_BLOCK_RECORDS
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import sha256, signed_bytes
from edgepool.model.ids import public_key_of
from edgepool.model.record import Record, SignedRecord, sign_record
from edgepool.storage.store import FolderStore

MEMBERS = 4
STORED_RECORDS = 100
_LOTTERY_MEMBERS = (4, 30)


def measure_codec(quick: bool) -> list[Figure]:
    """Measure encoding, and decoding with the check that the bytes are canonical."""
    rounds, round_s = _effort(quick)
    records = make_records(make_pool(MEMBERS), 10)
    encoded = [encode(record) for record in records]
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(SignedRecord)
    count = len(records)
    encoding = alternate(
        timed(lambda: [encode(record) for record in records], round_s, count),
        timed(lambda: [encoder.encode(record) for record in records], round_s, count),
        rounds,
    )
    decoding = alternate(
        timed(lambda: [decode(SignedRecord, data) for data in encoded], round_s, count),
        timed(lambda: [decoder.decode(data) for data in encoded], round_s, count),
        rounds,
    )
    return [
        figure_of("record", "size of a signed record", "bytes", [_mean(map(len, encoded))]),
        encoding.figure("encode", "encode a record", "us", "msgspec"),
        decoding.figure("decode", "decode, refuse what is not canonical", "us", "msgspec, typed"),
    ]


def measure_signatures(quick: bool) -> list[Figure]:
    """Measure signing and verifying records beside PyNaCl on the same bytes."""
    rounds, round_s = _effort(quick)
    pool = make_pool(MEMBERS)
    signer = pool.signers[0]
    records = [signed for signed in make_records(pool, 20) if signed.record.author == signer.peer]
    public = public_key_of(signer.peer)
    _, secret = nacl.bindings.crypto_sign_seed_keypair(sha256(b"edgepool bench 0"))
    messages = [signed_bytes("record", [signed.record]) for signed in records]
    sealed = [signed.signature + message for signed, message in zip(records, messages, strict=True)]
    count = len(records)

    def sign(record: Record) -> SignedRecord:
        return sign_record(signer, NETWORK, record.chain, record.body, record.time_ms, record.nonce)

    signing = alternate(
        timed(lambda: [sign(signed.record) for signed in records], round_s, count),
        timed(lambda: [nacl.bindings.crypto_sign(message, secret) for message in messages], round_s, count),
        rounds,
    )
    verifying = alternate(
        timed(lambda: [check_signature(signed) for signed in records], round_s, count),
        timed(lambda: [nacl.bindings.crypto_sign_open(data, public) for data in sealed], round_s, count),
        rounds,
    )
    assert all(check_signature(signed) for signed in records)
    return [
        signing.figure("sign", "make and sign a record", "us", "PyNaCl"),
        verifying.figure("verify", "verify a record", "us", "PyNaCl"),
    ]


def measure_ledger(quick: bool) -> list[Figure]:
    """Measure the rules for each record of a full block, and the draw of the leaders."""
    rounds, round_s = _effort(quick)
    pool = make_pool(MEMBERS)
    records = make_records(pool, MAX_BLOCK_RECORDS // 5)
    encoded = [encode(record) for record in records]
    state = ChainState(pool.genesis)
    certified = make_block(pool, 1, state.last_block_id, records)

    def add() -> None:
        draft = state.draft()
        for signed in records:
            problem = draft.add(signed)
            assert not problem, problem

    def apply() -> float:
        fresh = ChainState(pool.genesis)
        start_s = thread_time()
        fresh.apply(certified.block)
        return (thread_time() - start_s) / len(records)

    hashing = timed(lambda: [hashlib.sha256(data).digest() for data in encoded], round_s, len(encoded))
    beside = "SHA-256 of it"
    adding = alternate(timed(add, round_s, len(records)), hashing, rounds)
    applying = alternate(apply, hashing, rounds)
    return [
        adding.figure("add", "judge a record in a draft", "us", beside),
        applying.figure("apply", "apply a record of a block", "us", beside),
        *(
            _draw(members, rounds, round_s).figure(
                f"draw_{members}", f"draw the leaders of {members}", "us", "a SHA-256"
            )
            for members in _LOTTERY_MEMBERS
        ),
    ]


def measure_store(quick: bool, folder: Path) -> list[Figure]:
    """Measure storing a block durably beside a bare write and fdatasync of the same bytes."""
    pool = make_pool(MEMBERS)
    records = make_records(pool, STORED_RECORDS // 5)
    rounds = 30 if quick else 100
    blocks = [make_block(pool, height, sha256(b"%d" % height), records) for height in range(1, rounds + 2)]
    waiting = iter(blocks)
    store = FolderStore(folder / "store")
    store.open()
    bare_fd = os.open(folder / "bare.log", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        store.write([NewChain(pool.genesis)])
        store.sync()
        encoded = [encode(block) for block in blocks]
        size_bytes = _mean(map(len, encoded))
        payloads = cycle(encoded)

        def commit() -> float:
            block = next(waiting)
            start_s = perf_counter()
            store.write([CommitBlock(block)])
            store.sync()
            return perf_counter() - start_s

        def write() -> float:
            payload = next(payloads)
            start_s = perf_counter()
            os.write(bare_fd, payload)
            os.fdatasync(bare_fd)
            return perf_counter() - start_s

        committing = alternate(commit, write, rounds)
        last = store.block(pool.genesis.chain, len(blocks))
        assert last == blocks[-1], "what was stored does not come back"
    finally:
        os.close(bare_fd)
        store.close()
    return [
        figure_of("block", f"size of a block of {STORED_RECORDS} records", "bytes", [size_bytes]),
        committing.figure("commit", "store it durably", "ms", "write, fdatasync"),
    ]


def _draw(members: int, rounds: int, round_s: float) -> Rounds:
    pool_weights = {signer.peer: 1 + number for number, signer in enumerate(make_pool(members).signers)}
    seeds = cycle([sha256(b"seed %d" % number) for number in range(64)])
    data = bytes(64)
    return alternate(
        timed(lambda: leader_order(next(seeds), pool_weights), round_s),
        timed(lambda: hashlib.sha256(data).digest(), round_s),
        rounds,
    )


def _effort(quick: bool) -> tuple[int, float]:
    """Return how many rounds, and how many seconds each side of a round takes."""
    return (5, 0.01) if quick else (11, 0.04)


def _mean(sizes: Iterable[int]) -> float:
    listed = list(sizes)
    return sum(listed) / len(listed)
