"""What a store owes: everything that was written to it, what of that was acknowledged, what it may have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from edgepool.core.machine import CommitBlock, Item, NewChain, Prune, SaveSnapshot, VoteState
from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId
from edgepool.model.pool import Acceptance, Genesis, Invitation, Member
from edgepool.model.record import DataDemand, Record, SignedRecord
from edgepool.model.twin import DataKey
from edgepool.model.vote import Certificate
from edgepool.runtime.ports import SavedChain, Store

CHAINS = 4
PEER = Signer(sha256(b"somebody")).peer
SIGNATURE = bytes(64)
SIZES = (1, 1, 1, 5, 30)
"""How many records blocks have: 0.5 to 8 KB."""

Place = tuple[int, int]


class Loss(Exception):
    """The store broke what it promised; `count` acknowledged items are missing."""

    def __init__(self, text: str, count: int = 0) -> None:
        super().__init__(text)
        self.count = count


@lru_cache(maxsize=64)
def make_genesis(number: int) -> Genesis:
    """Return the genesis of one of a few chains; nothing is signed, stores do not look."""
    member = Member(PEER, "lathe 1", "lathe", ())
    invitation = Invitation("works", f"pool {number}", "fixed", PEER, (member,), (), (), number + 1, 0)
    return Genesis(invitation, SIGNATURE, (Acceptance(PEER, sha256(b"tip"), SIGNATURE),))


@lru_cache(maxsize=4096)
def make_block(chain: ChainId, height: int, variant: int) -> CertifiedBlock:
    """Return a block; variants differ in content and size."""
    body = DataDemand(DataKey("PTVA10212-03", "model"), 0, f"variant {variant}", "x" * 100)
    nonces = range(SIZES[variant % len(SIZES)])
    records = tuple(
        SignedRecord(Record("works", chain, PEER, 0, height, nonce, body), SIGNATURE) for nonce in nonces
    )
    header = Header(
        "works", chain, height, 0, *(bytes(32),) * 4, records_root(records), len(records), PEER, b"", variant
    )
    return CertifiedBlock(Block(header, records), Certificate(height, 0, header.id, ((0, SIGNATURE),)))


@dataclass(slots=True)
class _Said:
    """A vote state, and the height that its chain had when it was written."""

    state: bytes
    height: int


@dataclass(slots=True)
class _Snapshot:
    """A snapshot; an adopted one has no blocks up to its height, whatever was there before."""

    height: int = 0
    state: bytes = b""
    adopted: bool = False


@dataclass(slots=True)
class _Chain:
    genesis: Genesis
    begun: bool = False
    acknowledged: bool = False
    height: int = 0
    """Up to here the living process has written."""
    owed: int = 0
    """Up to here blocks were acknowledged."""
    may_go: int = 0
    """Up to here blocks may be pruned."""
    blocks: dict[int, list[CertifiedBlock]] = field(default_factory=dict)
    """What may stand at each height; only one where it was acknowledged."""
    said: list[_Said] = field(default_factory=lambda: [_Said(b"", 0)])
    """The vote states that may come back, the first being the last acknowledged one."""
    snapshots: list[_Snapshot] = field(default_factory=lambda: [_Snapshot()])
    """The snapshots that may come back, the first being the last acknowledged one."""
    kept: dict[Place, None] = field(default_factory=dict)
    """The records that must stay provable though their blocks may be pruned."""

    @property
    def name(self) -> ChainId:
        return self.genesis.chain


class Ledger:
    """The chains of one store, as they were written and as they must be found.

    `seen` counts what has happened to them that is worth knowing, by name.
    """

    def __init__(self, draw: Random, max_height: int = 40) -> None:
        self.acknowledgements = 0
        self.seen: Counter[str] = Counter()
        self._max_height = max_height
        self._draw = draw
        self._chains = {
            genesis.chain: _Chain(genesis) for genesis in (make_genesis(n) for n in range(CHAINS))
        }
        self._numbers = 0
        self._pending = 0

    # --- what is written ----------------------------------------------------------------------------

    def batch(self) -> list[Item]:
        """Return what the process stores next; from now on it may come back."""
        draw = self._draw
        items: list[Item] = []
        fresh = [chain for chain in self._chains.values() if not chain.begun]
        if fresh and (len(fresh) == len(self._chains) or draw.random() < 0.1):
            fresh[0].begun = True
            items.append(NewChain(fresh[0].genesis))
        begun = [chain for chain in self._chains.values() if chain.begun]
        shrinks = draw.choice(begun) if draw.random() < 0.2 else None
        first = draw.random() < 0.4
        if shrinks is not None and first:
            items += self._shrink(shrinks)
        for _ in range(draw.choice((0, 1, 1, 1, 2, 4))):
            chain = draw.choice(begun)
            if draw.random() < 0.5:
                items.append(self._say(chain))
            elif chain.height < self._max_height:
                items.append(self._commit(chain))
        if shrinks is not None and not first:
            items += self._shrink(shrinks)
        items.append(self._say(draw.choice(begun)))
        self._pending = len(items)
        return items

    def acknowledge(self) -> None:
        """The batch is durable, says the store."""
        self.acknowledgements += self._pending
        for chain in self._chains.values():
            chain.acknowledged = chain.begun
            del chain.said[:-1]
            del chain.snapshots[:-1]
            if chain.snapshots[0].adopted:
                chain.may_go = max(chain.may_go, chain.snapshots[0].height)
            for at in range(chain.owed + 1, chain.height + 1):
                del chain.blocks.get(at, [])[:-1]
            chain.owed = chain.height

    def _commit(self, chain: _Chain) -> Item:
        chain.height += 1
        certified = make_block(chain.name, chain.height, self._draw.randrange(12))
        chain.blocks.setdefault(chain.height, []).append(certified)
        return CommitBlock(certified)

    def _say(self, chain: _Chain) -> Item:
        state = self._state((0, 40, 500, 900))
        chain.said.append(_Said(state, chain.height))
        return VoteState(chain.name, state)

    def _shrink(self, chain: _Chain) -> list[Item]:
        """Take a snapshot and perhaps drop what is before it, or adopt that of somebody who is ahead."""
        draw = self._draw
        if draw.random() < 0.15 and chain.height + 12 < self._max_height:
            chain.height += draw.randrange(1, 6)
            chain.kept.clear()
            return [self._snapshot(chain, chain.height, adopted=True)]
        items: list[Item] = []
        newest = chain.snapshots[-1].height
        if chain.height > newest:
            newest = draw.randrange(newest + 1, chain.height + 1)
            items.append(self._snapshot(chain, newest, adopted=False))
        if newest and draw.random() < 0.6:
            items.append(self._prune(chain, draw.randrange(1, newest + 1)))
        return items

    def _snapshot(self, chain: _Chain, height: int, adopted: bool) -> Item:
        self.seen["adopted" if adopted else "snapshots"] += 1
        state = self._state((0, 300, 3_000))
        chain.snapshots.append(_Snapshot(height, state, adopted))
        return SaveSnapshot(chain.name, height, (), state, adopted)

    def _prune(self, chain: _Chain, height: int) -> Item:
        """Drop blocks, but keep one record each of some, and some of those that were kept before."""
        draw = self._draw
        kept = [place for place in chain.kept if draw.random() < 0.8]
        fresh = range(chain.may_go + 1, min(height, chain.owed) + 1)
        kept += [(at, 0) for at in fresh if draw.random() < 0.3 and at in chain.blocks]
        chain.may_go = max(chain.may_go, height)
        chain.kept = dict.fromkeys(kept)
        return Prune(chain.name, height, tuple(kept))

    def _state(self, sizes: tuple[int, ...]) -> bytes:
        self._numbers += 1
        return b"%d " % self._numbers + bytes(self._draw.choice(sizes))

    # --- what is found ------------------------------------------------------------------------------

    def check(self, store: Store, saved: list[SavedChain]) -> None:
        """Compare what an opening has found; raises Loss. What it has told of, it owes from now on."""
        found = {one.genesis.chain: one for one in saved}
        if strangers := found.keys() - self._chains.keys():
            raise Loss(f"there are chains that nobody wrote: {sorted(strangers)}")
        for name, chain in self._chains.items():
            one = found.get(name)
            if one is None:
                if chain.acknowledged:
                    raise Loss(f"chain {name} is gone, with {chain.owed} blocks", 1 + chain.owed)
                self._chains[name] = _Chain(chain.genesis)
                continue
            if not chain.begun or one.genesis != chain.genesis:
                raise Loss(f"chain {name} was not written like that")
            self._check_snapshot(store, chain)
            self._check_blocks(store, chain, one.height)
            self._check_kept(store, chain)
            self._check_vote(chain, one)
            chain.acknowledged = True

    def _check_snapshot(self, store: Store, chain: _Chain) -> None:
        stored = store.snapshot(chain.name)
        height, state = (stored.height, stored.state) if stored is not None else (0, b"")
        found = next((one for one in chain.snapshots if (one.height, one.state) == (height, state)), None)
        if found is None:
            raise Loss(f"chain {chain.name} has snapshot {height}, not the promised one", 1)
        chain.snapshots = [found]
        if found.adopted and found.height > chain.may_go:
            chain.may_go = found.height
            chain.owed = max(chain.owed, found.height)

    def _check_blocks(self, store: Store, chain: _Chain, height: int) -> None:
        name = chain.name
        if height < chain.owed:
            raise Loss(f"chain {name} ends at {height} instead of {chain.owed}", chain.owed - height)
        first = 1
        for at in range(1, height + 1):
            block = store.block(name, at)
            if block is None and at <= chain.may_go and at == first:
                first += 1
                chain.blocks.pop(at, None)
                continue
            if block is None or block not in chain.blocks.get(at, ()):
                raise Loss(f"block {at} of chain {name} is another one or none", int(at <= chain.owed))
            chain.blocks[at] = [block]
        snapshot = chain.snapshots[0]
        if snapshot.height < first - 1:
            raise Loss(f"chain {name} begins with {first}, its snapshot is of {snapshot.height}", 1)
        self.seen["pruned"] += first > 1 and not snapshot.adopted
        if store.block(name, height + 1) is not None:
            raise Loss(f"chain {name} has a block above its height {height}")
        for at in [at for at in chain.blocks if at > height]:
            del chain.blocks[at]
        chain.height = chain.owed = height

    def _check_kept(self, store: Store, chain: _Chain) -> None:
        for height, index in chain.kept:
            if store.block(chain.name, height) is not None:
                continue
            kept = store.kept(chain.name, height, index)
            if kept is None or (kept.header.height, kept.index) != (height, index):
                raise Loss(f"record {index} of block {height} of chain {chain.name} was not kept", 1)

    def _check_vote(self, chain: _Chain, one: SavedChain) -> None:
        said = next((said for said in chain.said if said.state == one.vote_state), None)
        if said is None:
            number = one.vote_state[:12]
            raise Loss(f"chain {chain.name} has vote state {number!r}, older than the promised", 1)
        if said.height > one.height:
            raise Loss(f"chain {chain.name} has a vote of height {said.height} and {one.height} blocks")
        chain.said = [said]
