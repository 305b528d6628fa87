"""How blocks, records, offers and results look as JSON, for the API and for `--json`.

Hashes and signatures are hexadecimal, keys 'PART/KIND', times milliseconds since 1970 UTC. Names
stand beside peer ids wherever the pool has ever known them, be it that they have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edgepool.core.ledger.proof import roster_of
from edgepool.core.machine import RankedOffer, RecordRef
from edgepool.core.rosters import RosterHistory
from edgepool.errors import LocalError
from edgepool.model.block import CertifiedBlock, Handover
from edgepool.model.codec import Wire
from edgepool.model.ids import ChainId, PeerId, short
from edgepool.model.pool import Genesis
from edgepool.model.record import Body, ChainAnchor, MembershipChange, SignedRecord, kind_of
from edgepool.model.succession import KeySuccession
from edgepool.model.trust import TrustChange
from edgepool.model.twin import DataKey
from edgepool.model.vote import Equivocation, quorum
from edgepool.peer.trust import named, trust_text
from edgepool.peer.values import Fetched, Published


def block_view(certified: CertifiedBlock, rosters: RosterHistory) -> dict[str, Any]:
    """Return a block as JSON: header, packer, records, and whose votes make it stand [S3.17].

    `rosters` are those of its chain, at least up to the block.
    """
    header = certified.block.header
    names = rosters.names()
    members = [member.peer for member in rosters.at(header.height)]
    return {
        "chain": header.chain,
        "name": rosters.genesis.invitation.name,
        "height": header.height,
        "id": header.id.hex(),
        "previous": header.previous.hex(),
        "members_hash": header.members_hash.hex(),
        "next_members_hash": header.next_members_hash.hex(),
        "state_root": header.state_root.hex(),
        "records_root": header.records_root.hex(),
        "round": header.round,
        "packer": header.proposer,
        "packer_name": names.get(header.proposer, ""),
        "reveal": header.reveal.hex(),
        "time_ms": header.time_ms,
        "records": [record_view(record, names) for record in certified.block.records],
        "votes": [
            {
                "member": members[index] if index < len(members) else "",
                "name": names.get(members[index], "") if index < len(members) else "no member",
                "signature": signature.hex(),
            }
            for index, signature in certified.certificate.signatures
        ],
        "vote_round": certified.certificate.round,
        "quorum": quorum(len(members)),
        "members": len(members),
    }


def record_view(signed: SignedRecord, names: dict[PeerId, str]) -> dict[str, Any]:
    """Return a record as JSON; `body` has the fields of its kind, `says` a sentence if it governs a pool."""
    record = signed.record
    return {
        "id": signed.id.hex(),
        "kind": kind_of(record.body),
        "author": record.author,
        "author_name": names.get(record.author, ""),
        "time_ms": record.time_ms,
        "since": record.since,
        "body": {field: _plain(value) for field, value in _fields(record.body).items()},
        "says": said(record.body, names),
        "signature": signed.signature.hex(),
    }


def said(body: Body, names: Mapping[PeerId, str]) -> str:
    """Return in a sentence what a record says about the pool itself; '' for records about its work."""
    if isinstance(body, MembershipChange):
        return change_text(body, names)
    if isinstance(body, TrustChange):
        return trust_text(body, names)
    if isinstance(body, Equivocation):
        thing = ("proposals", "prevotes", "precommits")[body.kind]
        blocks = " and ".join(one.block_id.hex()[:16] or "no block" for one in (body.first, body.second))
        who = named(body.member, names)
        return f"{who} has signed two {thing} at height {body.height}, round {body.round}: {blocks}"
    if isinstance(body, ChainAnchor):
        certificate = body.certificate
        block = certificate.block_id.hex()[:16]
        return f"chain {body.sub_chain[:8]} has block {block} at height {certificate.height}"
    if isinstance(body, KeySuccession):
        return f"{body.incoming.name} goes on under the key {short(body.incoming.peer)}"
    return ""


def change_text(change: MembershipChange, names: Mapping[PeerId, str]) -> str:
    """Return a membership change in a clause."""
    came = change.incoming
    comes = named(came.peer, {came.peer: came.name}) if came is not None else ""
    leaves = named(change.outgoing, names) if change.outgoing else ""
    what = f"{comes} comes" if comes else f"{leaves} leaves"
    if change.heir:
        what = f"{leaves} goes on under the key {short(change.heir)}"
    elif comes and leaves:
        what = f"{comes} replaces {leaves}"
    return f"change {change.number}: {what}" + (f" ({change.reason})" if change.reason else "")


def change_view(ref: RecordRef, certified: CertifiedBlock | None) -> dict[str, Any]:
    """Return as JSON where a peer's word for a membership change stands, and who comes and who goes."""
    place = {"chain": ref.chain, "height": ref.height, "index": ref.index}
    body = certified.block.records[ref.index].record.body if certified is not None else None
    if not isinstance(body, MembershipChange):  # its block is pruned already
        return {**place, "number": 0, "incoming": "", "incoming_name": "", "outgoing": ""}
    comes = body.incoming
    return {
        **place,
        "number": body.number,
        "incoming": comes.peer if comes is not None else "",
        "incoming_name": comes.name if comes is not None else "",
        "outgoing": body.outgoing,
    }


def offer_view(ranked: RankedOffer) -> dict[str, Any]:
    """Return an offer as JSON, with the place on chain that proves it."""
    offer = ranked.proof.record.record.body
    return {
        **{field: _plain(value) for field, value in _fields(offer).items()},
        "holder": ranked.holder.peer,
        "holder_name": ranked.holder.name,
        "machine_type": ranked.holder.machine_type,
        "addresses": list(ranked.holder.addresses),
        "reachable": ranked.reachable,
        "refusal": ranked.refusal,
        "network_load_percent": ranked.network_load_percent,
        "processing_load_percent": ranked.processing_load_percent,
        "round_trip_ms": ranked.round_trip_ms,
        "proof": {
            "chain": ranked.proof.header.chain,
            "pool": ranked.proof.genesis.invitation.name,
            "height": ranked.proof.header.height,
            "index": ranked.proof.index,
            "block": ranked.proof.header.id.hex(),
            "votes": len(ranked.proof.certificate.signatures),
            "members": len(roster_of(ranked.proof.genesis, ranked.proof.handovers)),
        },
    }


def published_view(published: Published) -> dict[str, Any]:
    """Return the outcome of a publication as JSON."""
    return {
        "key": str(published.key),
        "version": published.version,
        "root": published.root.hex(),
        "size_bytes": published.size_bytes,
        "chain": published.ref.chain,
        "height": published.ref.height,
        "index": published.ref.index,
    }


def fetched_view(fetched: Fetched, path: str, names: Mapping[PeerId, str]) -> dict[str, Any]:
    """Return the outcome of a fetch as JSON; `path` is where the caller wanted the data.

    `shares` are the holders of whom it came, who sent most first; none if the data was here already.
    `wire_bytes` is what travelled: less than the size if another version was here, or the data was packed.
    """
    largest_first = sorted(fetched.shares.items(), key=lambda share: (-share[1], share[0]))
    return {
        "key": str(fetched.key),
        "version": fetched.version,
        "root": fetched.root.hex(),
        "size_bytes": fetched.size_bytes,
        "path": path,
        "holder": fetched.holder,
        "holder_name": names[fetched.holder],
        "shares": [
            {"holder": peer, "holder_name": names[peer], "size_bytes": size_bytes}
            for peer, size_bytes in largest_first
        ],
        "wire_bytes": fetched.wire_bytes,
        "duration_ms": fetched.duration_ms,
    }


def member_names(genesis: Genesis, handovers: Sequence[Handover] = ()) -> dict[PeerId, str]:
    """Return the names of a pool's members, former members and observers by peer id."""
    return RosterHistory(genesis, tuple(handovers)).names()


def choose_chain(text: str, pools: Iterable[Genesis]) -> Genesis:
    """Return the pool whose chain `text` names: by chain id, start or end of it, or pool name.

    LocalError says which chains there are if none fits, or that several do.
    """
    pools = list(pools)
    exact = [g for g in pools if text in (g.chain, g.invitation.name)]
    found = exact or [g for g in pools if names_chain(text, g.chain, g.invitation.name)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(g.chain for g in found[:8])
        raise LocalError(f"'{text[:80]}' names {len(found)} chains: write the id of one of them ({ids})")
    known = ", ".join(f"{g.invitation.name} ({short(g.chain)})" for g in pools[:8])
    raise LocalError(
        f"there is no chain '{text[:80]}' here: " + (f"there are {known}" if known else "there are none yet")
    )


def names_chain(text: str, chain: ChainId, name: str) -> bool:
    """Say whether `text` can mean the chain: its pool's name, or an end of its id (from 4 digits)."""
    digits = text.removeprefix("…")
    return text == name or (len(digits) >= 4 and (chain.startswith(digits) or chain.endswith(digits)))


def _plain(value: object) -> Any:
    """Return a field of a record as JSON can hold it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, DataKey):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Wire):
        return {field: _plain(item) for field, item in _fields(value).items()}
    return value


def _fields(value: Wire) -> dict[str, Any]:
    """Return exactly the public fields of a value, by name."""
    return msgspec.structs.asdict(value)
