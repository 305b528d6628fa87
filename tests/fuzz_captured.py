"""What a pool says in which nearly all members are hostile: all that its rules allow, and certified lies.

The one honest member must believe what the others have signed, however odd: blocks full of strange records,
rosters that grow to the limit, and whole states that were made up. It may come to believe nonsense about
that pool; but it may not break, since it has other pools.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from fuzz_cell import Cell
from fuzz_choices import Choices
from fuzz_hostile import Hostile
from fuzz_mutation import Seed, mutate_value
from fuzz_world import (
    EPOCH_MS,
    HONEST,
    HOSTILE,
    KEYS,
    KEYS_OF,
    NETWORK,
    PAGE_BYTES,
    PUPPETS,
    beacon,
    hostile_beacon,
)
from msgspec.structs import replace

from edgepool.core.chain import Chain
from edgepool.core.ledger.snapshot import Turns, read_snapshot
from edgepool.core.ledger.state import ChainState
from edgepool.core.pools.lifecycle import beacon_secret
from edgepool.errors import DecodeError
from edgepool.model.block import Block, CertifiedBlock, Handover, Header, changed_roster, records_root
from edgepool.model.codec import encode
from edgepool.model.crypto import sha256
from edgepool.model.ids import PeerId
from edgepool.model.message import (
    Blocks,
    Message,
    Records,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
    Status,
    Votes,
    sign_proposal,
)
from edgepool.model.pool import Member, members_hash
from edgepool.model.record import Body, DataDemand, SignedRecord, sign_record
from edgepool.model.vote import PRECOMMIT, PREVOTE, Certificate, quorum, sign_vote

PATIENT_MS = 4_000
"""Time that lets an honest node ask for the pages of a snapshot."""


class Puppeteer(Choices):
    """Speaks for all hostile members of the captured pool of `cell`."""

    def __init__(self, rng: Random, cell: Cell) -> None:
        super().__init__(rng, cell)
        assert cell.captured is not None
        self._id = cell.captured.chain
        self._liar = Hostile(rng, cell)
        self._next: deque[Message] = deque()
        self._states: dict[int, bytes] = {}
        self._waiting = 0
        self._numbers: dict[PeerId, int] = {}
        self.address = (HOSTILE[0], HONEST[0])
        """Who is to say the last message to whom."""
        self.wait_ms = 0
        """How much time should pass then."""
        self._makers: tuple[Callable[[], Message | None], ...] = (
            *(self._block,) * 5,
            *(self._page,) * 3,
            *(self._proposal, self._support, self._support, self._records, self._records),
            *(self._false_block, self._head, self._head, self._status),
        )

    def next(self) -> Message:
        """Return the next message."""
        self.wait_ms = 0
        self.address = (self._one(HOSTILE), HONEST[0])
        if self._next and not self._seldom():
            return self._next.popleft()
        if self._waiting and not self._seldom():
            # Blocks would make the honest member go on without the state that it was offered.
            self._waiting -= 1
            self.wait_ms = PATIENT_MS // 4
            return self._page() or self._status()
        message = None
        while message is None:
            message = self._one(self._makers)()
        return message

    @property
    def _victim(self) -> Chain:
        return self._cell.nodes[HONEST[0]].chains[self._id]

    # --- blocks -------------------------------------------------------------------------------

    def _block(self) -> Message | None:
        """Return a block, or a few at once of which one stands; none if nobody hostile can pack one."""
        block = self._packed()
        if block is None:
            return self._head()
        certified = self._certified(block)
        odd = CertifiedBlock(
            replace(block, header=replace(block.header, height=block.header.height + 1)),
            certified.certificate,
        )
        return Blocks(self._id, self._one(((certified,), (certified,), (certified, odd), (odd, certified))))

    def _false_block(self) -> Message | None:
        """Return a block that all have signed, and that may not stand."""
        block = self._packed()
        if block is None:
            return None
        header = self._changed(
            block.header,
            height=block.header.height + self._one((-1, 1, 2**40)) or 1,
            round=self._one((0, 1, 2**31)),
            state_root=bytes(32),
            members_hash=bytes(32),
            next_members_hash=bytes(32),
            previous=self._bytes(32),
            records_root=bytes(32),
            records_count=500,
            proposer=self._peer(),
            reveal=self._one((b"", bytes(32))),
            network="elsewhere",
        )
        unfit = tuple(self._record(self._liar._body(self._victim)) for _ in range(3))
        return Blocks(
            self._id,
            (self._certified(self._one((replace(block, header=header), self._around(block, unfit)))),),
        )

    def _packed(self, rounds: Sequence[int] = range(32)) -> Block | None:
        """Return a block that may stand next, of the first of `rounds` that somebody hostile leads."""
        chain = self._victim
        for round in rounds:
            leader = chain.leader(round)
            reveal = self._reveal(chain, leader)
            if reveal:
                break
        else:
            return None
        state, draft = chain.state, chain.state.draft()
        bodies = [self._liar._body(chain) for _ in range(self._one((0, 1, 2, 4, 12)))]
        written = [self._record(body) for body in bodies]
        if self._seldom():
            written = self._decided(chain) + written
        records = [signed for signed in written if not draft.add(signed)]
        if not records:
            records = [self._record(DataDemand(KEYS[0], 0, "", ""))]
        header = Header(
            NETWORK,
            self._id,
            state.height + 1,
            round,
            state.last_block_id,
            state.members_hash,
            state.next_members_hash,
            state.root,
            records_root(records),
            len(records),
            leader,
            reveal,
            self._one((0, EPOCH_MS, 2**53)),
        )
        return Block(header, tuple(records))

    def _around(self, block: Block, records: tuple[SignedRecord, ...]) -> Block:
        header = replace(block.header, records_root=records_root(records), records_count=len(records))
        return Block(header, records)

    def _certified(self, block: Block) -> CertifiedBlock:
        return CertifiedBlock(block, self._votes_of(block.header, self._victim.state.roster))

    def _votes_of(self, header: Header, roster: Sequence[Member]) -> Certificate:
        """Return the votes of the hostile in `roster`: a quorum, unless there are too few."""
        places = [place for place, member in enumerate(roster) if member.peer in KEYS_OF]
        votes = [
            (
                place,
                sign_vote(
                    KEYS_OF[roster[place].peer], NETWORK, self._id, PRECOMMIT, header.height, 0, header.id
                ),
            )
            for place in places[: quorum(len(roster))]
        ]
        pairs = tuple((place, vote.signature) for place, vote in votes) or ((0, bytes(64)),)
        return Certificate(header.height, 0, header.id, pairs)

    def _reveal(self, chain: Chain, leader: PeerId) -> bytes:
        """Return what the hostile `leader` must reveal next, b"" if nobody knows it."""
        signer, state = KEYS_OF.get(leader), chain.state
        if signer is None:
            return b""
        invited = beacon(beacon_secret(signer, chain.genesis.invitation))
        later = hostile_beacon(signer, self._id, self._numbers.get(leader, 0))
        found = [one.reveal(state.reveals[leader]) for one in (invited, later)]
        return next((one for one in found if one and sha256(one) == state.tips[leader]), b"")

    # --- records ------------------------------------------------------------------------------

    def _record(self, body: Body, author: str = "") -> SignedRecord:
        chain = self._victim
        voters = [peer for peer in chain.state.members if peer in KEYS_OF] or list(HOSTILE)
        signer = KEYS_OF[PeerId(author) or self._one((*voters, HOSTILE[1]))]
        nonce = int(self._rng.random() * 2**53)
        since = self._one((chain.state.height,) * 6 + (chain.state.horizon, chain.state.height + 1))
        return sign_record(signer, NETWORK, self._id, body, EPOCH_MS, nonce, since)

    def _decided(self, chain: Chain) -> list[SignedRecord]:
        """Return records by which the hostile decide a change: the pool grows, if it can, or shrinks."""
        number, following = chain.state.change_number, [one.peer for one in chain.state.next_roster]
        staying = sum(peer in KEYS_OF for peer in following)
        enough = staying - 1 >= quorum(len(following) - 1)  # so that the pool stays captured
        outgoing = self._one((PeerId(""), PeerId(""), PeerId(""), *(following if enough else ())))
        coming = [one for one in (*PUPPETS, *KEYS_OF.values()) if one.peer not in following]
        if coming and (not outgoing or self._often()):
            comes = coming[0]
            tip = hostile_beacon(comes, self._id, number).tip
            self._numbers[comes.peer] = number
            change = self._liar._admission(chain, number, outgoing, comes, tip)
        else:
            change = replace(
                self._liar._bearable(chain),
                outgoing=outgoing,
                incoming=None,
                beacon_tip=b"",
                incoming_signature=b"",
            )
        return [self._record(change, peer) for peer in chain.state.members if peer in KEYS_OF][:21]

    def _records(self) -> Message:
        return Records(self._id, tuple(self._record(self._liar._body(self._victim)) for _ in range(3)))

    # --- votes --------------------------------------------------------------------------------

    def _proposal(self) -> Message | None:
        """Return a proposal of the present round or a later one; all vote for it behind it."""
        round = self._victim.engine.round
        block = self._packed(range(round, round + 3))
        if block is None:
            return None
        leader = KEYS_OF[block.header.proposer]
        self._support_with(block)
        return sign_proposal(leader, NETWORK, self._id, block.header.round, block, -1, ())

    def _support(self) -> Message | None:
        """Return votes for what the honest member has proposed."""
        mine = [one for one in self._cell.blocks.values() if one.header.chain == self._id]
        if not mine:
            return None
        self._support_with(mine[-1])
        return self._next.popleft()

    def _support_with(self, block: Block) -> None:
        header = block.header
        voters = [KEYS_OF[peer] for peer in self._victim.state.members if peer in KEYS_OF]
        for kind in (PREVOTE, PRECOMMIT):
            votes = [
                sign_vote(one, NETWORK, self._id, kind, header.height, header.round, header.id)
                for one in voters
            ]
            if votes:
                self._next.append(Votes(self._id, tuple(votes)))
        if not self._next:
            self._next.append(self._status())

    def _status(self) -> Message:
        chain = self._victim
        return Status(self._id, self._height(chain), self._round(chain), 1, 1)

    # --- states -------------------------------------------------------------------------------

    def _head(self) -> Message | None:
        """Return the certified head of a state that was made up; its pages are kept for who asks."""
        chain = self._victim
        height = min(
            2**53 - 1,
            chain.state.height + self._one((1, 1, 1, 2, 2, 5, 5, 40, 40, 2**20, 2**40 - 100, 2**53)),
        )
        handovers = self._led(chain, height)
        data = self._made_up(chain, height, handovers)
        try:
            state = ChainState.restore(chain.genesis, data)
        except DecodeError:
            if not self._seldom():
                return None
            state = chain.state
        packer = next((peer for peer in state.members if peer in KEYS_OF), HOSTILE[0])
        header = Header(
            NETWORK,
            self._id,
            height + 1,
            0,
            state.last_block_id,
            state.members_hash,
            state.next_members_hash,
            state.root,
            bytes(32),
            1,
            packer,
            hostile_beacon(KEYS_OF[packer], self._id, 0).reveal(0),
            0,
        )
        if len(self._states) > 2:
            self._states.clear()
        self._states[height] = data
        self.wait_ms, self._waiting = PATIENT_MS, 2 + len(data) // PAGE_BYTES
        certificate = self._votes_of(header, state.roster)
        return SnapshotHead(self._id, height, max(1, len(data)), header, certificate, handovers)

    def _page(self) -> Message | None:
        """Return the page that the honest member waits for."""
        asked = [one for one in self._cell.asked_hostile if isinstance(one[2], SnapshotRequest)]
        wanted = [one for one in asked if one[2].chain == self._id]
        if not wanted:
            return None
        _, receiver, request = wanted[-1]
        assert isinstance(request, SnapshotRequest)
        self.address = (receiver, HONEST[0])
        start = request.page * PAGE_BYTES
        data = self._states.get(request.height, b"")[start : start + PAGE_BYTES]
        return SnapshotPage(self._id, request.height, request.page, data) if data else None

    def _led(self, chain: Chain, height: int) -> tuple[Handover, ...]:
        """Return the honest member's own handovers, with some more up to `height`."""
        roster: tuple[Member, ...] = chain.state.roster
        handovers = list(chain.handovers)
        for at in range(chain.state.height + 1, min(height, chain.state.height + self._one((0, 1, 3))) + 1):
            coming = [one.peer for one in PUPPETS if one.peer not in [member.peer for member in roster]]
            if not coming or len(roster) >= 30:
                break
            outgoing, incoming = self._one((PeerId(""), roster[-1].peer)), Member(coming[0], "x", "", ())
            following = changed_roster(roster, outgoing, incoming)
            header = Header(
                NETWORK,
                self._id,
                at,
                0,
                bytes(32),
                members_hash(roster),
                members_hash(following),
                *(bytes(32), bytes(32), 1, HOSTILE[0], b"", 0),
            )
            handovers.append(Handover(header, self._votes_of(header, roster), outgoing, incoming))
            roster = following
        return tuple(handovers)

    def _made_up(self, chain: Chain, height: int, handovers: tuple[Handover, ...]) -> bytes:
        """Return a state at `height` like the honest member's own, with other members and odd values."""
        state, known = chain.state, len(chain.handovers)
        snapshot = read_snapshot(state.snapshot())
        core, roster = snapshot.core, state.roster
        for one in handovers[known:]:
            roster = changed_roster(roster, one.outgoing, one.incoming)
        blocks = self._one(((), snapshot.blocks))
        turns = {peer: state.tips[peer] for peer in state.members}
        for member in roster:
            if member.peer in KEYS_OF:
                turns[member.peer] = hostile_beacon(KEYS_OF[member.peer], self._id, 0).tip
                self._numbers[member.peer] = 0
        core = replace(
            core,
            height=height,
            horizon=height - len(blocks),
            roster=replace(
                core.roster,
                present=roster,
                following=roster,
                pending=None,
                number=len(handovers) + 1,
                open=(),
                admitted=(),
                convicted=(),
            ),
            turns=tuple(
                Turns(turns[one.peer], 0 if one.peer in KEYS_OF else state.reveals[one.peer], 0)
                for one in roster
            ),
        )
        data = encode(replace(snapshot, core=core, blocks=blocks))
        if not self._often():
            return data
        seed = Seed(data)
        return mutate_value(self._rng, seed, seed)
