"""The rights to a peer's data [S2.3]: policies, what each transfer is judged by, and the audit log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgepool.core.machine import AccessRefused, CameUnder, RecordRef
from edgepool.core.rights import Subject, refusal
from edgepool.errors import DecodeError, LocalError, StorageError
from edgepool.model.ids import ChainId, PeerId, public_key_of
from edgepool.model.policy import DataPolicy, PolicyTerms, fits
from edgepool.model.record import TransmissionConfirmation
from edgepool.model.twin import DataKey
from edgepool.peer.members import meant
from edgepool.peer.policyview import PolicyView
from edgepool.peer.values import DataAsked
from edgepool.runtime.ports import Clock, PeerIdentity
from edgepool.storage.audit import AuditEntry, AuditLog
from edgepool.storage.origins import Origins

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

BURST = 32
"""How many decisions about one peer are written down at once, of each sort."""
ONE_EVERY_MS = 10_000
"""How often one more is written after that; the others are counted."""
PEERS_COUNTED = 1024

_log = logging.getLogger(__name__)


class DataRights:
    """Sets policies for `peer`'s data, judges transfers, and writes down what was granted and refused.

    `pick` says on which chain the peer writes if none is named.
    """

    def __init__(self, peer: Peer, clock: Clock, pick: Callable[[ChainId | None], ChainId]) -> None:
        self._pick = pick
        settings = peer.settings
        self._peer = peer
        self._clock = clock
        self._audit = AuditLog(settings.folder, settings.rights.audit_bytes)
        self._origins = Origins(settings.folder)
        self._unsaved: dict[bytes, None] = {}
        self._rations: dict[tuple[PeerId, bool], _Ration] = {}

    def start(self) -> None:
        """Take up under which policies the data came that is held."""
        directory = self._peer.node.directory
        directory.access.origins.update(self._origins.load(directory.held))

    async def tend(self) -> None:
        """Make what was written down durable; called every second or so."""
        if self._audit.dirty:
            try:
                await asyncio.to_thread(self._audit.sync)
            except StorageError as error:
                _log.warning("%s", error)

    def close(self) -> None:
        """Write down what is left."""
        try:
            self._audit.close()
        except StorageError as error:
            _log.warning("%s", error)

    # --- policies -------------------------------------------------------------------------------

    async def set_policy(
        self, pattern: DataKey | str, terms: PolicyTerms | None, chain: ChainId | None = None
    ) -> list[RecordRef]:
        """Say who may have this peer's data of the keys that fit `pattern`; None takes that back.

        On `chain`, or else on every chain on which this peer offers such data, or else where it publishes
        by default. Returns where it stands. Raises LocalError, Refused, Unavailable.
        """
        wanted = DataKey.parse(pattern) if isinstance(pattern, str) else pattern
        chains = [chain] if chain is not None else self._offering(wanted) or [self._pick(None)]
        refs = []
        for one in chains:
            standing = self._standing(one, wanted)
            if terms is None and not standing:
                continue
            body = DataPolicy(wanted.part, wanted.kind, standing + 1, terms)
            refs.append(await self._peer.submit(body, chain=one))
        if not refs:
            raise LocalError(f"this peer has set no policy for {wanted} on its chains")
        return refs

    def policies(self, key: DataKey | None = None) -> list[PolicyView]:
        """Return the policies on this peer's chains, of all owners; with `key` those that are for it."""
        found = []
        for chain_id, chain in self._peer.node.chains.items():
            names = {member.peer: member.name for member in chain.people.values()}
            for owner, entry in chain.state.policies():
                if key is None or fits(entry.policy.pattern, key):
                    pool = chain.genesis.invitation.name
                    found.append(self._view(chain_id, pool, owner, entry.policy, names))
        return found

    def _offering(self, pattern: DataKey) -> list[ChainId]:
        """Return the chains on which this peer offers data that fits, or has a policy of that pattern."""
        found = []
        for chain_id, chain in self._peer.node.chains.items():
            offers = chain.state.offers_by(self._peer.id)
            if any(fits(pattern, offer.key) for _, _, offer in offers) or self._standing(chain_id, pattern):
                found.append(chain_id)
        return found

    def _standing(self, chain: ChainId, pattern: DataKey) -> int:
        """Return the version of this peer's policy of a pattern on a chain; 0 if there is none."""
        for owner, entry in self._peer.chain_state(chain).policies():
            if owner == self._peer.id and entry.policy.pattern == pattern:
                return entry.policy.version
        return 0

    def _view(
        self, chain: ChainId, pool: str, owner: PeerId, policy: DataPolicy, names: dict[PeerId, str]
    ) -> PolicyView:
        terms = policy.terms or PolicyTerms()
        pools = {one.chain: one.invitation.name for one in self._peer.pools}
        return PolicyView(
            chain=chain,
            pool=pool,
            owner=owner,
            owner_name=names.get(owner, ""),
            pattern=str(policy.pattern),
            version=policy.version,
            members=list(terms.members),
            member_names=[names.get(one, "") for one in terms.members],
            pools=list(terms.pools),
            pool_names=[pools.get(one, "") for one in terms.pools],
            organisations=list(terms.organisations),
            roles=list(terms.roles),
            purposes=list(terms.purposes),
            valid_until_ms=terms.valid_until_ms,
            hidden=terms.hidden,
        )

    def peer_named(self, who: str) -> PeerId:
        """Return the peer that `who`, a name or a peer id, means; LocalError if it means none or several."""
        chains = self._peer.node.chains.values()
        people = [(one.peer, one.name) for chain in chains for one in chain.people.values()]
        people += [(one.peer, one.name) for one in self._peer.connected()]
        found = meant(who, people)
        if found is not None:
            return found
        try:
            public_key_of(PeerId(who))
        except DecodeError:
            raise LocalError(f"no peer is called '{who[:80]}' here: write its peer id") from None
        return PeerId(who)

    # --- what the data plane asks -----------------------------------------------------------------

    def problem(self, identity: PeerIdentity, body: TransmissionConfirmation) -> str:
        """Say why who has proved to be `identity` may not have confirmed data now, or return ''."""
        subject = Subject(identity.peer, identity.role, identity.organisation)
        now_ms = self._clock.now().wall_ms
        access = self._peer.node.directory.access
        return access.admit(subject, body.key, body.root, body.purpose, now_ms)[1]

    def refused_transfer(self, identity: PeerIdentity, body: TransmissionConfirmation) -> str:
        """Say why a confirmed transfer may not begin, and write that down; or return ''."""
        reason = self.problem(identity, body)
        if reason:
            subject = Subject(identity.peer, identity.role, identity.organisation)
            self._decided(subject, body.key, body.root, body.purpose, reason, at="transfer")
        return reason

    def refused_reader(self) -> str:
        """Say why this peer itself never gets data, by its role, or return ''."""
        return refusal("read data", Subject(self._peer.id, self._peer.settings.role), ("default", "named"))

    async def keep_origin(self, root: bytes) -> None:
        """Make durable under which policy data comes, before it is here. StorageError."""
        origin = self._peer.node.directory.access.origins.get(root)
        if root in self._unsaved and origin is not None:
            await asyncio.to_thread(self._origins.save, root, origin)
            self._unsaved.pop(root, None)

    # --- what the node tells ----------------------------------------------------------------------

    def told(self, notice: AccessRefused | CameUnder) -> None:
        """Take what the node has decided, or learned."""
        if isinstance(notice, CameUnder):
            self._unsaved[notice.root] = None
            return
        self._decided(notice.subject, notice.key, notice.root, notice.purpose, notice.reason)

    def confirmed(self, confirmation: TransmissionConfirmation) -> None:
        """Write down that this peer has countersigned a transfer."""
        subject = self._peer.node.directory.subject(confirmation.requester)
        self._decided(subject, confirmation.key, confirmation.root, confirmation.purpose, "")

    def _decided(
        self,
        subject: Subject,
        key: DataKey,
        root: bytes,
        purpose: str,
        reason: str,
        at: str = "confirmation",
    ) -> None:
        peer, granted, now = subject.peer, not reason, self._clock.now()
        unwritten = self._ration(peer, granted).spend(now.monotonic_ms)
        if unwritten is None:
            return  # nor are watchers told: a flood would push everything else out of their queues
        name = next((one.name for one in self._peer.connected() if one.peer == peer), "")
        self._peer.tell(DataAsked(peer, name, subject.organisation, key, purpose, granted, reason))
        entry = AuditEntry(
            now.wall_ms,
            peer,
            name,
            subject.role,
            subject.organisation,
            str(key),
            root.hex(),
            purpose,
            granted,
            reason[:256],
            at,
            unwritten,
        )
        try:
            self._audit.append(entry)
        except StorageError as error:
            _log.warning("%s", error)

    def _ration(self, peer: PeerId, granted: bool) -> _Ration:
        known = self._rations.pop((peer, granted), None) or _Ration()
        if len(self._rations) >= PEERS_COUNTED:
            del self._rations[next(iter(self._rations))]
        self._rations[peer, granted] = known
        return known


class _Ration:
    """How much may be written about one peer: a burst, and then now and then."""

    def __init__(self) -> None:
        self._left = BURST
        self._filled_ms = 0
        self._unwritten = 0

    def spend(self, now_ms: int) -> int | None:
        """Return None if nothing may be written, else how many went unwritten since the last."""
        more = (now_ms - self._filled_ms) // ONE_EVERY_MS
        if self._left == BURST:
            self._filled_ms = now_ms
        elif more > 0:
            self._left = min(BURST, self._left + more)
            self._filled_ms += more * ONE_EVERY_MS
        if self._left == 0:
            self._unwritten += 1
            return None
        self._left -= 1
        unwritten, self._unwritten = self._unwritten, 0
        return unwritten
