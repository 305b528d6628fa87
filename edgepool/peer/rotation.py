"""Gives a running peer a new key, step by step, so that a power cut in any of them harms nothing [S3.6].

First the next key and its certificate are made beside the present ones. Then the new key takes the place of
the old one on every chain on which the peer votes; each member approves that by itself. When it votes on all
of them the program that runs this peer closes it, makes the change (transport/keychange.py) and opens it
again: from then on it is its new key. That one offers again what the old one has offered, and puts the old
one's own revocation on the main chains. See the decision record 0016.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from edgepool.core.chain import Chain
from edgepool.core.ledger.succession import inherited_offers
from edgepool.core.machine import ApproveChange, Succeed
from edgepool.core.pools.joining import succession
from edgepool.core.succeeding import lacks_revocation, place_to_pass_on, places
from edgepool.errors import EdgepoolError, LocalError, Refused, Unavailable
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.lineage import Line, follow
from edgepool.model.pool import Member
from edgepool.model.record import DataOffer
from edgepool.model.succession import key_succession
from edgepool.model.trust import RevokePeer, own_revocation
from edgepool.model.vote import quorum
from edgepool.peer.keypools import KeyPools
from edgepool.peer.trust import FORMER_KEY
from edgepool.peer.values import KeyStatus
from edgepool.runtime.ports import Clock
from edgepool.transport.identity import Identity, read_own_key
from edgepool.transport.keychange import KeyChange

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

LOOK_EVERY_S = 0.05
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEP_TIMEOUT_MS = 15_000
UNDECIDED_MS = 60_000
"""How long members may take to decide whether this peer comes into their pool, before its key changes."""
AT_ONCE = 16
"""How many offers are made again at the same time."""
COMES_INTO_NONE = "its key is being changed: ask again in a moment"
"""Why the peer comes into no pool meanwhile."""

_log = logging.getLogger(__name__)


class KeyRotation:
    """The change of one peer's key; it goes on by itself whenever the peer runs.

    `on_ready` is called, at most once, when the peer is to be closed, changed and opened again. Without it,
    in a program that cannot do so, no change is begun.
    """

    def __init__(self, peer: Peer, identity: Identity, clock: Clock) -> None:
        self.on_ready: Callable[[], None] | None = None
        self.hindrance: Callable[[], str] = lambda: ""
        """Says why this is no time to begin, or ''; whoever runs this peer may know of something."""
        self._peer = peer
        self._identity = identity
        self._clock = clock
        self._files = KeyChange(peer.settings)
        self.line, self.line_problem = self._read_line()
        """Which keys this peer had before, as it tells others; and why nothing is known of that, or ''."""
        self._pools = KeyPools(peer)
        self._noting: asyncio.Task[None] | None = None
        self._is_in_more = False
        self._task: asyncio.Task[None] | None = None
        self._next: Signer | None = None
        self._undecided_ms: int | None = None
        self._is_ready = False
        self._beginning = False
        self._problem = ""

    # --- from outside ---------------------------------------------------------------------------

    def lost(self) -> frozenset[ChainId]:
        """Return the chains of pools that know this peer by its key, and of which it knows nothing."""
        return frozenset(self._pools.missing())

    def start(self) -> None:
        """Go on with what was begun in an earlier life."""
        self.joined()
        if self._files.begun or self._files.is_made:
            self._task = asyncio.create_task(self._run(), name=f"key of {self._peer.name}")

    async def close(self) -> None:
        """Stop; what is begun goes on when the peer is opened again."""
        tasks = [task for task in (self._task, self._noting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def joined(self) -> None:
        """The peer is perhaps in one pool more: have it written down that these know it by its key."""
        self._is_in_more = True
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._note_pools(), name=f"pools of {self._peer.name}")

    async def _note_pools(self) -> None:
        while self._is_in_more:
            self._is_in_more = False
            lines = self._pools.lines()
            try:
                if lines:
                    await asyncio.to_thread(self._pools.write, lines)
            except LocalError as error:  # in such a folder no key can change either
                _log.warning("%s", error)

    async def begin(self) -> KeyStatus:
        """Begin to change the key, or say how far that is; the rest goes on by itself.

        Raises LocalError (not for this peer), Unavailable (nobody there to certify or to agree), Refused.
        """
        if self._task is not None and not self.is_under_way:
            await asyncio.wait({self._task})  # the last change is over; only the disk is not done with it
        if self._task is None or self._task.done():
            if self._beginning:
                raise LocalError("the change of the key is being begun already")
            self._beginning = True
            try:
                await self._begin()
            finally:
                self._beginning = False
        return self.status()

    def status(self) -> KeyStatus:
        """Return how far the change is."""
        chains = self._places()
        state, former, heir = "", "", ""
        if self._files.is_made:
            state, former = "settling", self._former_id()
        elif self._next is not None:
            heir = self._next.peer
            state = "ready" if self._is_ready else "passing"
        elif self._files.begun:
            state = "certifying"
        return KeyStatus(
            peer=self._peer.id,
            state=state,
            next=heir,
            former=former,
            waiting=[chain.genesis.invitation.name for chain in chains] if state == "passing" else [],
            problem=self._problem,
        )

    @property
    def is_under_way(self) -> bool:
        """Say whether a change is begun, or is just being begun, and not at its end."""
        return self._beginning or self._files.begun or self._files.is_made

    def former_key(self) -> RevokePeer:
        """Return what the present key leaves behind for the time when it is the former one."""
        return own_revocation(self._identity.signer, self._peer.settings.network)

    def _read_line(self) -> tuple[Line, str]:
        try:
            return self._files.line(self._identity.peer), ""
        except LocalError as error:
            _log.warning("%s", error)
            return (), str(error)

    # --- beginning ------------------------------------------------------------------------------

    async def _begin(self) -> None:
        problem = self._unfit()
        if problem:
            raise LocalError(problem)
        lacking = [chain for chain in self._places() if not self._has_quorum(chain)]
        if lacking:
            names = ", ".join(chain.genesis.invitation.name for chain in lacking)
            raise Unavailable(
                f"too few members of {names} are linked to agree now: 'edgepool status' names who is missing"
            )
        _, passphrase = await asyncio.to_thread(read_own_key, self._peer.settings)
        await asyncio.to_thread(self._files.begin, passphrase)
        try:
            await self._certify()
        except EdgepoolError:
            await asyncio.to_thread(self._files.give_up)
            self._next = None
            raise
        self._task = asyncio.create_task(self._run(), name=f"key of {self._peer.name}")

    def _unfit(self) -> str:
        if self.on_ready is None:
            return "the program in which this peer runs cannot open it again under a new key"
        if self._files.is_made:
            return "the last change of its key is not at its end: its log says why; restart it"
        return self._forgotten() or self.hindrance()

    def _forgotten(self) -> str:
        """Say which pools know the present key and would not hear of the next one, or return ''."""
        names = ", ".join(name or chain for chain, name in self._pools.missing().items())
        return names and (
            f"this peer has lost the chains of {names}, which would not hear of its new key: wait until "
            f"'edgepool status' shows them again, or take out of {self._pools.path} what is over"
        )

    def _has_quorum(self, chain: Chain) -> bool:
        linked = {one.peer for one in self._peer.connected()} | {self._peer.id}
        return sum(peer in linked for peer in chain.state.members) >= quorum(len(chain.state.members))

    async def _certify(self) -> None:
        """See to it that there is a certificate for the next key."""
        _, passphrase = await asyncio.to_thread(read_own_key, self._peer.settings)
        key = await asyncio.to_thread(self._files.next_key, passphrase)
        signer = Signer(key.private_bytes_raw())
        if not self._identity.has_next(signer.peer, self._files.certificate):
            certificate = await self._peer.certifier.ask(signer)
            await self._identity.keep_next(certificate, self._files.certificate)
        self._next = signer

    # --- the way --------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Do what is left, with growing pauses where it fails."""
        pause_s = FIRST_PAUSE_S
        await self._await_registrar()
        while True:
            try:
                if self._files.is_made:
                    await self._settle()
                else:
                    await self._pass_on()
                self._problem = ""
                return
            except EdgepoolError as error:
                if str(error) != self._problem:
                    _log.warning("the change of the key waits: %s", error)
                self._problem = str(error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _await_registrar(self) -> None:
        """Let a registrar, which certifies itself, be opened first, if it is that at all."""
        if self._peer.settings.authority.folder:
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_PAUSE_S):
                    while self._peer.certifier.serve is None:  # noqa: ASYNC110 - it has no event
                        await asyncio.sleep(LOOK_EVERY_S)

    async def _pass_on(self) -> None:
        """Let the next key take the place of this one on all chains; then tell who runs this peer."""
        pools = self._peer.node.pools
        pools.closed = COMES_INTO_NONE
        await self._certify()
        assert self._next is not None
        # An invitation may still come true.
        await asyncio.sleep(max(0, pools.settled_ms - self._clock.now().monotonic_ms) / 1000)
        while waiting := self._places():
            chain = place_to_pass_on(waiting, self._peer.id)
            if chain is not None:
                await self._propose(chain, self._next)
            await asyncio.sleep(LOOK_EVERY_S)
        if forgotten := self._forgotten():
            raise Unavailable(forgotten)
        self._wait_for_decisions()
        await self._certify()  # it may have taken long
        follows = follow(self._identity.signer, self._next, self._peer.settings.network)
        await asyncio.to_thread(self._files.note, follows)
        await self._durable()
        self._is_ready = True
        if self.on_ready is not None:
            self.on_ready()

    def _wait_for_decisions(self) -> None:
        """Raise Unavailable while members decide whether the present key comes into their pool.

        It would be a member there that nobody is any more. Whoever never decides is waited for only so long.
        """
        now_ms = self._clock.now().monotonic_ms
        if self._undecided_ms is None:
            self._undecided_ms = now_ms
        coming = self._peer.node.room.undecided()
        if coming and now_ms < self._undecided_ms + UNDECIDED_MS:
            names = ", ".join(chain.genesis.invitation.name for chain in coming)
            raise Unavailable(
                f"the members of {names} have not decided yet whether this peer comes in: it goes on when "
                f"they have, or in {UNDECIDED_MS // 1000} s"
            )

    async def _durable(self) -> None:
        """Wait until all is durable that has happened up to now: the old key's last vote is not forgotten."""
        with suppress(Refused):
            # Any command does: it is answered when what came before it is stored.
            await self._peer.command(ApproveChange(ChainId(""), PeerId("")), STEP_TIMEOUT_MS)

    def _places(self) -> list[Chain]:
        return places(self._peer.node.chains.values(), self._peer.id)

    async def _propose(self, chain: Chain, heir: Signer) -> None:
        number, member = chain.state.change_number, self._as_member(chain, heir.peer)
        chain_id, network = chain.id, self._peer.settings.network
        if not chain.state.may_write(self._peer.id):
            said = await asyncio.to_thread(key_succession, heir, network, chain_id, self._peer.id, member)
            await self._peer.submit(said, chain=chain_id)
            return
        terms = (self._identity.signer, heir, network, chain_id, number, member)
        change = await asyncio.to_thread(succession, *terms)
        try:
            await self._peer.command(Succeed(chain_id, change), STEP_TIMEOUT_MS)
        except Refused:
            if chain.state.change_number == number and chain.state.pending_change != change:
                raise

    def _as_member(self, chain: Chain, heir: PeerId) -> Member:
        """Return this peer as a pool knows it, under its next key, at the same addresses."""
        own = self._peer.member(self._peer.id)
        assert own is not None
        people = (*chain.state.roster, *chain.state.next_roster, *chain.state.observers)
        named = next((one for one in people if one.peer == self._peer.id), own)
        behind = f"/p2p/{self._peer.id}"
        addresses = tuple(
            f"{one.removesuffix(behind)}/p2p/{heir}" if one.endswith(behind) else one for one in own.addresses
        )
        return Member(heir, named.name, named.machine_type, addresses, named.role)

    # --- afterwards -----------------------------------------------------------------------------

    def _former_id(self) -> str:
        try:
            former = self._files.former()
        except LocalError:
            return ""
        return former.peer if former is not None else ""

    async def _settle(self) -> None:
        """Offer again what the former key has offered, and have that key revoked; then forget it."""
        former = await asyncio.to_thread(self._files.former)
        if former is None:
            return
        for chain in tuple(self._peer.node.chains.values()):
            if chain.member:
                await self._offer_again(chain)
        for chain in tuple(self._peer.node.chains.values()):
            if chain.genesis.invitation.kind == "fixed" and chain.state.names(self._peer.id):
                await self._revoke(chain, former)
        await asyncio.to_thread(self._files.over)

    async def _offer_again(self, chain: Chain) -> None:
        """Offer under the present key what is held and stands under a former one."""
        held = self._peer.node.directory.held
        wanted = [one for one in inherited_offers(chain.state, self._peer.id) if one.root in held]
        for start in range(0, len(wanted), AT_ONCE):
            await asyncio.gather(*(self._offer(chain, one) for one in wanted[start : start + AT_ONCE]))

    async def _offer(self, chain: Chain, offer: DataOffer) -> None:
        addresses = self._peer.addresses
        again = DataOffer(
            offer.key,
            offer.version,
            offer.root,
            offer.size_bytes,
            addresses[0] if addresses else "",
            offer.free_percent,
        )
        try:
            await self._peer.submit(again, chain=chain.id)
        except Refused:
            if any(one.root == offer.root for one in inherited_offers(chain.state, self._peer.id)):
                raise

    async def _revoke(self, chain: Chain, former: RevokePeer) -> None:
        """Have the former key revoked; where this peer has no word the members are asked to say theirs."""
        has_a_word = chain.member or chain.state.coordinator == self._peer.id
        while not chain.state.trust.is_revoked(former.peer):
            if not has_a_word:
                linked = [one.peer for one in self._peer.connected()]
                told = tuple(peer for peer in chain.state.members if peer in linked)
                self._peer.certifier.show_revocation(told, former)
                await asyncio.sleep(FIRST_PAUSE_S)
            elif lacks_revocation(chain, self._peer.id, former):
                await self._peer.trusting.change(
                    former, reason=FORMER_KEY, chain=chain.id, timeout_ms=STEP_TIMEOUT_MS
                )
            await asyncio.sleep(LOOK_EVERY_S)
