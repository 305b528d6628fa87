"""`edgepool proof make|check` and `edgepool chain genesis`: a record that proves itself elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepool.cli.console import PlainTable, moment, out, print_json, say, size
from edgepool.errors import DecodeError, LocalError, StorageError

if TYPE_CHECKING:
    from edgepool.core.ledger.proof import Fault
    from edgepool.core.ledger.recordproof import RecordProof
    from edgepool.core.machine import KeptRecord
    from edgepool.model.ids import ChainId, PeerId
    from edgepool.model.pool import Genesis

MIN_ID_DIGITS = 4
MAX_GENESIS_BYTES = 4 * 1024 * 1024
_CHAIN_ID = re.compile(r"[0-9a-f]{40}")

app = typer.Typer(
    no_args_is_help=True,
    help="Prove a record to somebody who has neither the chain nor a peer, and check such proofs.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def make(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; the peer may run.")],
    record: Annotated[
        str, typer.Argument(help="A record's id or its beginning, or its place as CHAIN:HEIGHT:INDEX.")
    ],
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="The file to write; it is replaced (default: the id's beginning.proof)."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a small file that proves a record: record, Merkle path, header, votes and members' changes.

    'edgepool chain query' shows the ids and places of records. Whoever gets the file needs to know
    nothing but the pool's chain id (or its genesis) to check it.

    Example: edgepool proof make plant/mill-1 milling:12:0 --out inspection.proof
    """
    from edgepool.cli.query import names_of, open_index
    from edgepool.core.ledger.recordproof import prove_kept_record, record_proof_fault, write_proof
    from edgepool.model.message import MAX_HANDOVERS
    from edgepool.peer.rosters import rosters_for

    peer_folder, genesis, kept = _find(folder, record)
    handovers = rosters_for(peer_folder, genesis, kept.header).handovers
    proof = prove_kept_record(genesis, handovers, kept)
    if proof is None:
        raise LocalError(
            f"block {kept.header.height} of chain '{genesis.invitation.name}' comes after more than "
            f"{MAX_HANDOVERS} changes of its members, and a proof can hold no more"
        )
    fault = record_proof_fault(proof, [genesis.chain])
    if fault is not None:
        raise StorageError(
            f"block {proof.header.height} of chain '{genesis.invitation.name}' proves nothing "
            f"({_reason(proof, fault)}): 'edgepool chain verify {folder}' checks all of it"
        )
    data = write_proof(proof)
    path = out_file or Path(f"{proof.record.id.hex()[:16]}.proof")
    _write(path, data)
    with open_index(peer_folder) as index:
        view = _view(proof, names_of(peer_folder, genesis, index))
    if json:
        print_json({"file": str(path), "size_bytes": len(data), **view})
        return
    shown = view["record"]
    say(
        f"{path} ({size(len(data))}) proves the {shown['kind']} {shown['id'][:16]} of "
        f"{shown['author_name'] or shown['author']} in block {proof.header.height} of chain {view['name']}"
    )
    say(f"check it anywhere with: edgepool proof check {path} --genesis {genesis.chain}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A file that 'edgepool proof make' has written.")],
    genesis: Annotated[
        list[str],
        typer.Option(help="The pool that is trusted: its genesis file, or its chain id. May be repeated."),
    ],
    json: Json = False,
) -> None:
    """Check a proof file with nothing but the pool's genesis; no peer, chain or network is needed.

    The chain id is the hash of the genesis, so the id says as much as the file ('edgepool chain
    genesis' writes it). Take either from somebody you trust, not from who brings the proof. Exit
    code 1 if the proof does not hold; the part that does not is named.

    Example: edgepool proof check inspection.proof --genesis milling.genesis
    """
    from edgepool.core.ledger.proof import Fault
    from edgepool.core.ledger.recordproof import MAX_PROOF_BYTES, read_proof, record_proof_fault

    chains = [_trusted_chain(text) for text in genesis]
    data = _read(file, "proof", MAX_PROOF_BYTES)
    try:
        proof = read_proof(data)
    except DecodeError as error:
        raise LocalError(f"'{file}' is no proof that can be checked here: {error}") from None
    fault = proof if isinstance(proof, Fault) else record_proof_fault(proof, chains)
    if fault is not None:
        reason = fault.reason if isinstance(proof, Fault) else _reason(proof, fault)
        if json:
            print_json({"holds": False, "part": fault.part, "problem": reason})
        else:
            say(f"the proof does not hold, by its {fault.part}: {reason}", "red")
        raise typer.Exit(1)
    assert not isinstance(proof, Fault)
    if json:
        print_json({"holds": True, "part": "", "problem": "", **_view(proof)})
    else:
        _print_proof(_view(proof))


def export_genesis(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; the peer may run.")],
    chain: Annotated[str, typer.Argument(help="A pool's name, or a chain id or its beginning.")],
    out_file: Annotated[
        Path, typer.Option("--out", help="The file to write; it is replaced.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Write a pool's genesis to a file: all that is needed to check proofs of its records.

    It holds who the members are, and that the coordinator and each of them signed for it; no keys.

    Example: edgepool chain genesis plant/mill-1 milling --out milling.genesis
    """
    from edgepool.cli.query import one_peer_folder, stored_pools
    from edgepool.gateway.views import choose_chain
    from edgepool.storage.store import genesis_file

    pool = choose_chain(chain, stored_pools(one_peer_folder(folder)))
    problem = pool.problem(pool.invitation.network)
    if problem:
        raise StorageError(f"the genesis of chain '{pool.invitation.name}' does not hold: {problem}")
    data = genesis_file(pool)
    _write(out_file, data)
    if json:
        print_json({"file": str(out_file), "size_bytes": len(data), "chain": pool.chain})
    else:
        say(f"{out_file} ({size(len(data))}) is the genesis of chain {pool.invitation.name} ({pool.chain})")


def _find(folder: Path, text: str) -> tuple[Path, Genesis, KeptRecord]:
    """Return a record with what its block shows of it, the peer's folder, and the pool it belongs to."""
    from edgepool.cli.query import one_peer_folder, open_index, stored_pools
    from edgepool.core.ledger.proof import keep_record
    from edgepool.gateway.views import choose_chain

    peer_folder = one_peer_folder(folder)
    pools = stored_pools(peer_folder)
    if ":" in text:
        chain, height, index = _place(text)
        pool = choose_chain(chain, pools)
        return peer_folder, pool, _record_at(peer_folder, pool, height, index)
    prefix = text.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_ID_DIGITS},64}}", prefix):
        raise LocalError(
            f"'{text[:80]}' is no record: write its id in hexadecimal, at least {MIN_ID_DIGITS} digits, "
            "or CHAIN:HEIGHT:INDEX"
        )
    with open_index(peer_folder) as found_in:
        found = {one.signed.id: (one.ref.chain, one) for one in found_in.find_id(prefix)}
        kept = {} if found else _kept_by_id(peer_folder, pools, prefix)
        if not found and not kept:
            raise LocalError(f"no record in '{folder}' has an id that begins with '{prefix}'")
        if len(found) + len(kept) > 1:
            some = ", ".join(record_id.hex()[:16] for record_id in (*found, *kept))
            raise LocalError(f"'{prefix}' begins the ids of several records: write more of it ({some})")
        for chain_id, record in kept.values():
            return peer_folder, choose_chain(chain_id, pools), record
        ((chain_id, one),) = found.values()
        record = keep_record(found_in.block(one), one.ref.index)
        return peer_folder, choose_chain(chain_id, pools), record


def _kept_by_id(folder: Path, pools: list[Genesis], prefix: str) -> dict[bytes, tuple[ChainId, KeptRecord]]:
    """Return the records kept of pruned blocks whose ids begin with `prefix`."""
    from edgepool.storage.kept import scan_kept

    return {
        kept.record.id: (pool.chain, kept)
        for pool in pools
        for kept in scan_kept(folder / "chains" / pool.chain)
        if kept.record.id.hex().startswith(prefix)
    }


def _place(text: str) -> tuple[str, int, int]:
    chain, *numbers = text.rsplit(":", 2)
    if len(numbers) != 2 or not all(re.fullmatch("[0-9]{1,15}", number) for number in numbers):
        raise LocalError(
            f"'{text[:80]}' is no place of a record: write CHAIN:HEIGHT:INDEX, such as milling:12:0"
        )
    return chain, int(numbers[0]), int(numbers[1])


def _record_at(folder: Path, pool: Genesis, height: int, index: int) -> KeptRecord:
    """Return the record at a place of a stored chain, from its block or as it was kept of it."""
    from edgepool.core.ledger.proof import keep_record
    from edgepool.storage.kept import scan_kept
    from edgepool.storage.reading import decode_block, first_height, scan_blocks

    where, name = folder / "chains" / pool.chain, pool.invitation.name
    top = 0
    for at, payload in scan_blocks(where):
        if isinstance(payload, StorageError):
            if at <= height:
                raise payload
            break
        top = at
        if at < height:
            continue
        if at > height:
            break
        certified = decode_block(where, pool.chain, height, payload)
        count = len(certified.block.records)
        if index >= count:
            raise LocalError(f"block {height} of chain '{name}' has {count} records, which count from 0")
        return keep_record(certified, index)
    for kept in scan_kept(where):
        if (kept.header.height, kept.index) == (height, index):
            return kept
    first = first_height(where)
    if height < first:
        raise LocalError(
            f"block {height} of chain '{name}' is pruned: the first is {first}, and of those before it only "
            "records behind standing offers are kept"
        )
    raise LocalError(f"chain '{name}' has no block {height}: its height is {top}")


def _trusted_chain(text: str) -> ChainId:
    """Return the chain id that `text` is, or that of the genesis in the file that it names."""
    from edgepool.model.ids import ChainId
    from edgepool.storage.store import read_genesis_file

    if _CHAIN_ID.fullmatch(text.lower()):
        return ChainId(text.lower())
    path = Path(text)
    if path.is_dir() or not path.exists():
        raise LocalError(
            f"'{text[:200]}' is neither a genesis file nor a chain id, which has 40 hexadecimal digits"
        )
    if path.stat().st_size > MAX_GENESIS_BYTES:
        raise LocalError(f"'{path}' is too large for a genesis file")
    return read_genesis_file(path).chain


def _read(path: Path, what: str, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as opened:
            data = opened.read(max_bytes + 1)
    except OSError as error:
        raise LocalError(f"'{path}' cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise LocalError(f"'{path}' is too large for a {what}: it may have {max_bytes} bytes")
    return data


def _write(path: Path, data: bytes) -> None:
    from edgepool.gateway.export import write_out

    if path.is_dir():
        raise LocalError(f"'{path}' is a folder: name the file to write")
    if not path.absolute().parent.is_dir():
        raise LocalError(f"'{path.parent}' does not exist: make the folder first")
    write_out(path, data)


# --- showing a proof ----------------------------------------------------------------------------


def _view(proof: RecordProof, known: dict[PeerId, str] | None = None) -> dict[str, Any]:
    """Return what a proof that holds says, as JSON; `known` are names that the chain has beside the proof."""
    from edgepool.core.ledger.proof import roster_of
    from edgepool.gateway.views import member_names, record_view
    from edgepool.model.succession import KeySuccession
    from edgepool.model.vote import quorum

    plan, header = proof.genesis.invitation, proof.header
    names = {plan.coordinator: "the coordinator"}
    record = proof.record.record
    if isinstance(record.body, KeySuccession):
        heir = record.body.incoming
        names |= {record.author: heir.name, heir.peer: heir.name}
    names |= (known or {}) | member_names(proof.genesis, proof.handovers)
    members = [member.peer for member in roster_of(proof.genesis, proof.handovers)]
    return {
        "record": record_view(proof.record, names),
        "chain": header.chain,
        "name": plan.name,
        "kind": plan.kind,
        "network": plan.network,
        "height": header.height,
        "index": proof.index,
        "records": header.records_count,
        "block": header.id.hex(),
        "time_ms": header.time_ms,
        "packer": header.proposer,
        "packer_name": names.get(header.proposer, ""),
        "signers": [
            {"peer": members[index], "name": names[members[index]]}
            for index, _ in proof.certificate.signatures
        ],
        "members": [{"peer": peer, "name": names[peer]} for peer in members],
        "quorum": quorum(len(members)),
        "handovers": [
            {
                "height": handover.header.height,
                "outgoing": handover.outgoing,
                "outgoing_name": names.get(handover.outgoing, ""),
                "incoming": handover.incoming.peer if handover.incoming else "",
                "incoming_name": handover.incoming.name if handover.incoming else "",
            }
            for handover in proof.handovers
        ],
    }


def _print_proof(view: dict[str, Any]) -> None:
    record = view["record"]
    fields = ", ".join(f"{field} {value}" for field, value in record["body"].items())
    says = record["says"] or fields
    signers = ", ".join(signer["name"] for signer in view["signers"])
    rows = {
        "record": record["id"],
        record["kind"]: says,
        "author": f"{_author(record)}, {moment(record['time_ms'])}",
        "chain": f"{view['name']} ({view['chain']}) of network {view['network']}",
        "place": f"block {view['height']}, record {view['index']} of {view['records']}, counted from 0",
        "packed by": f"{view['packer_name']}, {moment(view['time_ms'])}",
        "signed by": f"{len(view['signers'])} of {len(view['members'])} members "
        f"({view['quorum']} needed): {signers}",
    }
    for handover in view["handovers"]:
        came, left = handover["incoming_name"], handover["outgoing_name"]
        what = " and ".join(filter(None, (came and f"{came} came", left and f"{left} left")))
        if came == left:
            what = f"{came} has another key"
        rows[f"after block {handover['height']}"] = what
    say("the proof holds: the record stands on this chain", "green")
    grid = PlainTable.grid(padding=(0, 2))
    for name, value in rows.items():
        grid.add_row(name, value)
    out.print(grid)


def _author(record: dict[str, Any]) -> str:
    """Return who has written a record; a later key of one without a vote stands on the chain alone."""
    name, peer = record["author_name"], record["author"]
    return f"{name} ({peer})" if name else f"{peer}, which the proof does not name: its peer had no vote"


def _reason(proof: RecordProof, fault: Fault) -> str:
    """Return why a proof does not hold, with the names of members beside their ids."""
    from edgepool.gateway.views import member_names

    reason = fault.reason
    for peer, name in member_names(proof.genesis, proof.handovers).items():
        reason = reason.replace(peer, f"{name} ({peer})")
    return reason
