"""The contracts by which a pool governs itself: members, trust, evidence against liars, anchors.

[S3.6] and the decision record 0007. Whether a change is to be approved is for people and for the policy of
each member; here is only what can stand.
"""

from __future__ import annotations

from functools import lru_cache

from msgspec.structs import replace

from edgepool.core.ledger.support import MAX_OPENED
from edgepool.core.ledger.view import VERDICTS_KEPT, View
from edgepool.core.rights import Subject, refusal
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Member
from edgepool.model.record import Body, ChainAnchor, MembershipChange, SignedRecord
from edgepool.model.succession import KeySuccession
from edgepool.model.trust import RevokePeer, TrustChange
from edgepool.model.vote import Equivocation


class MembershipContract:
    """Members, and the coordinator, say who should leave and who should come, one change at a time.

    A member that changes its key succeeds itself: nothing of it may be different but the key.
    """

    name = "membership"
    version = 2

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this change may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, MembershipChange)
        roster = view.roster
        if roster.repeats(body, signed.record.author):
            return ""
        if body.number != roster.number:
            decided = roster.number - 1
            return f"{decided} changes are decided here: the next is {roster.number}, not {body.number}"
        if roster.decided is not None:
            return "this block has decided a change already: the next one can stand in the next block"
        if body.incoming is not None and view.trust.is_revoked(body.incoming.peer):
            return f"the membership of {body.incoming.peer} was revoked: it can come with a new key only"
        misfit = roster.misfit(body) or _voter_problem(body) or _succession_problem(view, body)
        if misfit:
            return misfit
        authors = roster.supporters(body)
        if signed.record.author in authors:
            return "the author has said so already"
        if not authors and roster.full_for(signed.record.author):
            return f"{MAX_OPENED} changes that the author has proposed are open, and others support them all"
        return _terms_problem(view.network, view.chain, body)


class KeySuccessionContract:
    """Who has no vote goes on under another key by its own word: observers, and a coordinator without one.

    It needs no approval, as no vote depends on it; but a coordinator that asks for a revocation is heard.
    """

    name = "succession"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this peer may not go on under the key that it names, or return ''."""
        body, old = signed.record.body, signed.record.author
        assert isinstance(body, KeySuccession)
        roster = view.roster
        coming = [one.peer for one in roster.newcomers()]
        if roster.may_write(old) or old in coming:
            return "a member's new key comes by a change of the members"
        if body.incoming.peer in coming:
            return f"{body.incoming.peer} is to become a member: a new key is one that nobody had"
        if any(former == old for former, _ in roster.passed_on):
            return "the author has said so already"
        if any(peer == old and view.coordinator in by for peer, by in view.trust.to_be_revoked()):
            return f"the coordinator asks for the revocation of {old}: nobody succeeds it"
        before = roster.observing.get(old)
        if before is None:  # the coordinator, who does not observe the pool either
            before = replace(body.incoming, peer=old, role="coordinator")
        return _heir_problem(view, before, body.incoming) or _adoption_problem(
            view.network, view.chain, old, body
        )


class TrustContract:
    """Members of a main chain, and its coordinator, say which roots to trust and whom to revoke [S3.6].

    What a root's certificate says is not judged: parsers differ, and all members must decide alike.
    """

    name = "trust"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this change may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, TrustChange)
        if view.kind != "fixed":
            return "only a main chain, that of a fixed pool, says whom to trust"
        misfit = view.trust.misfit(body.step)
        if misfit:
            return misfit
        authors = view.trust.supporters(body)
        if signed.record.author in authors:
            return "the author has said so already"
        if not authors and view.trust.full_for(signed.record.author):
            return f"{MAX_OPENED} changes that the author has proposed are open, and others support them all"
        return _revocation_problem(view.network, body.step) if isinstance(body.step, RevokePeer) else ""


class EvidenceContract:
    """A member that has signed two different things at one place is convicted, once, whatever key it has."""

    name = "evidence"
    version = 2

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this evidence may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, Equivocation)
        roster = view.roster
        member = roster.heir(body.member)
        if member not in roster.next_members:
            return f"{body.member} is no member"
        if member in roster.convicted:
            return f"there is evidence against {body.member} here already"
        if body.height > view.height + 1:
            return f"height {body.height} is to come: the chain is at {view.height}"
        after, last = roster.votes_of(body.member)
        if body.height <= after:
            return f"{body.member} was no member yet at height {body.height}"
        if body.height > last:
            return f"{body.member} was no member any more at height {body.height}"
        return _evidence_problem(view.network, view.chain, body)


def expiry_problem(view: View, body: Body) -> str:
    """Say why `body`, if it is evidence, comes too late for a new block, or return ''.

    What a former key has signed counts as long as the last height on which it voted is in the window: so
    whoever had copied it cannot have its heir convicted for ever. Present keys answer for all that they have
    signed. It is no rule for what may stand: blocks that have a certificate are not judged by it.
    """
    if not isinstance(body, Equivocation):
        return ""
    _, last = view.roster.votes_of(body.member)
    if last > view.horizon:
        return ""
    return f"{body.member} was succeeded at height {last}, which is forgotten: it convicts nobody any more"


class ChainAnchorContract:
    """Members keep the heads of sub-chains on their main chain, each author's of one chain ever higher.

    The certificate is not judged: whoever verifies the sub-chain does that.
    """

    name = "anchor"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this anchor may not stand, or return ''."""
        body = signed.record.body
        assert isinstance(body, ChainAnchor)
        if view.kind != "fixed":
            return "only a main chain, that of a fixed pool, keeps anchors"
        if body.sub_chain == view.chain:
            return "a chain does not anchor itself"
        last = view.anchored(signed.record.author, body.sub_chain)
        if body.certificate.height <= last:
            return f"the author has anchored that chain up to height {last} already"
        return ""


def _voter_problem(body: MembershipChange) -> str:
    """Say why who is to come may not be a member by its role, or return ''."""
    incoming = body.incoming
    return "" if incoming is None else refusal("vote", Subject(incoming.peer, incoming.role))


def _succession_problem(view: View, body: MembershipChange) -> str:
    """Say why a member may not go on under the new key that `body` names, or return ''."""
    incoming, old = body.incoming, body.outgoing
    if not body.heir or incoming is None:
        return ""
    member = next(one for one in view.roster.following if one.peer == old)
    return _heir_problem(view, member, incoming)


def _heir_problem(view: View, before: Member, incoming: Member) -> str:
    """Say why `before`, who is in this pool, may not go on as `incoming`, or return ''."""
    old, roster = before.peer, view.roster
    if old in roster.convicted or view.trust.is_revoked(old):
        return f"{old} is convicted or revoked: nobody succeeds it"
    if view.trust.is_revoked(incoming.peer):
        return f"the membership of {incoming.peer} was revoked: a new key is one that nobody had"
    for what in ("name", "machine_type", "role"):
        if getattr(incoming, what) != getattr(before, what):
            return f"a new key does not change the {what.replace('_', ' ')} of a peer"
    passing = (one.incoming.peer for one in roster.passing)
    if view.author(incoming.peer)[1] or roster.is_known(incoming.peer) or incoming.peer in passing:
        return f"{incoming.peer} has had to do with this pool before: a new key is one that nobody had"
    return ""


@lru_cache(maxsize=VERDICTS_KEPT)
def _terms_problem(network: str, chain: ChainId, body: MembershipChange) -> str:
    return body.terms_problem(network, chain)


@lru_cache(maxsize=VERDICTS_KEPT)
def _adoption_problem(network: str, chain: ChainId, old: PeerId, body: KeySuccession) -> str:
    return "" if body.adoption(old).holds(network, chain) else "the new key has not signed the succession"


@lru_cache(maxsize=VERDICTS_KEPT)
def _revocation_problem(network: str, step: RevokePeer) -> str:
    return step.problem(network)


@lru_cache(maxsize=VERDICTS_KEPT)
def _evidence_problem(network: str, chain: ChainId, body: Equivocation) -> str:
    return body.problem(network, chain)
