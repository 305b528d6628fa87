"""`edgepool run`: one peer in the foreground, with its local API."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepool.cli.console import duration, print_json_line, run_async, say, show_error, size
from edgepool.errors import StorageError, Unavailable

if TYPE_CHECKING:
    from edgepool.config import PeerSettings
    from edgepool.core.machine import RecordRef
    from edgepool.model.record import SignedRecord
    from edgepool.peer.peer import Peer
    from edgepool.peer.values import PeerEvent

_Tell = Callable[..., None]
END_TIMEOUT_S = 5.0
"""After so long a peer that was told to end is ended, whatever its threads or the disk are doing.

It is more than all that closing waits for by itself: receipts on their way, and the last words on links.
"""


def run(
    folder: Annotated[Path, typer.Argument(help="A folder that 'edgepool init' has made.")],
    json: Annotated[bool, typer.Option("--json", help="Print what happens as lines of JSON.")] = False,
    blocks: Annotated[bool, typer.Option("--blocks", help="Tell of every block, too.")] = False,
) -> None:
    """Run one peer until Ctrl-C or SIGTERM, and tell what happens.

    A coordinator forms the fixed pools of its settings as soon as their members are connected, and
    tops up pools of fewer than four members with witnesses that are linked to it.
    While it runs, 'edgepool status FOLDER' and the other commands talk to it.

    Example: edgepool run plant/mill-1
    """
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    last_resort = threading.Timer(END_TIMEOUT_S, _end_now)
    last_resort.daemon = True
    try:
        run_async(_run(folder, json, blocks, last_resort))
    finally:
        last_resort.cancel()


def _end_now() -> None:
    """End this process though a thread of it still works: a copy or a sync of gigabytes, a disk that hangs.

    Whatever was acknowledged is synced, and whatever was not is set aside at the next start, as after
    a power cut.
    """
    show_error(Unavailable("what was under way was broken off to end in time; nothing acknowledged is lost"))
    os._exit(0)


async def _run(folder: Path, json: bool, blocks: bool, last_resort: threading.Timer) -> None:
    from edgepool.config import load_peer_settings
    from edgepool.runtime.collector import collect_rarely

    collect_rarely()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        if not stop.is_set():
            stop.set()
            last_resort.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, end)

    def tell(event: str, sentence: str, **facts: Any) -> None:
        if json:
            print_json_line({"event": event, **facts})
        else:
            say(sentence)

    settings = await asyncio.to_thread(load_peer_settings, folder)
    while await _run_once(settings, stop, tell, blocks):
        pass


async def _run_once(settings: PeerSettings, stop: asyncio.Event, tell: _Tell, blocks: bool) -> bool:
    """Run the peer until it is told to stop; True if it is to run again, under its new key."""
    from edgepool.transport.keychange import KeyChange

    stack = AsyncExitStack()
    changing = asyncio.Event()
    try:
        peer = await _open(settings, stack, tell, changing)
        events = asyncio.create_task(_tell_events(peer, tell, blocks))
        stack.push_async_callback(_cancel, events)
        await _wait(stop, changing, events)
        failed = not stop.is_set() and not changing.is_set()
        problems = "; ".join(peer.status().problems)
        former = peer.rotation.former_key()
        if changing.is_set():
            tell("key", f"{peer.name} goes on under its new key", name=peer.name, former=peer.id)
        else:
            tell("ending", f"{peer.name} is ending", name=peer.name)
    finally:
        await stack.aclose()
    if failed:
        raise StorageError(problems or "the peer has stopped by itself: its log says why")
    if changing.is_set():
        await asyncio.to_thread(KeyChange(settings).make, former)
    return changing.is_set() and not stop.is_set()


async def _open(settings: PeerSettings, stack: AsyncExitStack, tell: _Tell, changing: asyncio.Event) -> Peer:
    """Start the peer, its API and the forming of its pools; say where it listens.

    `changing` is set when it is to be closed and opened again under a new key.
    """
    from edgepool.gateway.app import ApiServer
    from edgepool.gateway.pools import form_fixed_pools
    from edgepool.gateway.registrar import open_registrar
    from edgepool.gateway.witnesses import keep_witnesses
    from edgepool.model.ids import with_peer
    from edgepool.peer.peer import Peer

    opening = Peer.open(settings)
    opening.rotation.on_ready = changing.set
    peer = await stack.enter_async_context(opening)

    def tell_pools(text: str) -> None:
        tell("pools", text, text=text)

    registrar = await stack.enter_async_context(open_registrar(peer, tell_pools))
    server = ApiServer(peer, settings.folder, settings.api.host, settings.api.port, registrar)
    await server.start()
    stack.push_async_callback(server.close)
    addresses = [with_peer(address, peer.id) for address in peer.addresses]
    tell(
        "listening",
        f"{peer.name} ({settings.role} of '{settings.network}') {_where(addresses, settings)}\n"
        f"its API is {server.url}; see it with: edgepool status {settings.folder}\n"
        "Ctrl-C ends it",
        name=peer.name,
        id=peer.id,
        addresses=addresses,
        api=server.url,
    )

    pools: list[asyncio.Task[Any]] = [asyncio.create_task(form_fixed_pools(peer, tell_pools))]
    if settings.role == "coordinator":
        pools.append(asyncio.create_task(keep_witnesses(peer, tell_pools)))
    stack.push_async_callback(_cancel, *pools)
    return peer


async def _wait(stop: asyncio.Event, changing: asyncio.Event, events: asyncio.Task[None]) -> None:
    """Wait for a signal, a new key, or for the events to end, which they do when the peer fails."""
    waiting = [asyncio.create_task(stop.wait()), asyncio.create_task(changing.wait())]
    try:
        await asyncio.wait({*waiting, events}, return_when=asyncio.FIRST_COMPLETED)
        if events.done():
            events.result()
    finally:
        await _cancel(*waiting)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _tell_events(peer: Peer, tell: _Tell, blocks: bool) -> None:
    async for event in peer.watch():
        told = _describe(event, peer, blocks)
        if told is not None:
            name, sentence, facts = told
            tell(name, sentence, **facts)


def _describe(event: PeerEvent, here: Peer, blocks: bool) -> tuple[str, str, dict[str, Any]] | None:
    """Return an event's name, sentence and facts, or None if it is not told."""
    from edgepool.peer.values import (
        BlockAdded,
        DataDamaged,
        DataEvicted,
        DataRestored,
        EventsMissed,
        LinkChanged,
        PeerMisbehaved,
        PoolEntered,
        RecordCommitted,
        RosterChanged,
        TransferEnded,
    )

    facts: dict[str, Any]
    match event:
        case LinkChanged(peer, name, up, reason, conduit):
            way = f" through conduit {conduit}" if conduit else ""
            sentence = f"linked to {name}{way}" if up else f"lost the link to {name}: {reason}"
            facts = {"peer": peer, "name": name, "up": up, "reason": reason, "conduit": conduit}
            return "link", sentence, facts
        case PeerMisbehaved(peer, reason):
            return "misbehaved", f"{peer} misbehaves: {reason}", {"peer": peer, "reason": reason}
        case PoolEntered(genesis):
            plan = genesis.invitation
            members = [member.name for member in plan.members]
            facts = {"name": plan.name, "kind": plan.kind, "chain": genesis.chain, "members": members}
            return "pool", f"in {plan.kind} pool {plan.name} with {', '.join(members)}", facts
        case RosterChanged(chain, height, joined, left, same):
            pool = here.chain_state(chain).genesis.invitation.name
            came, went = [one.name for one in joined], [one.name for one in left]
            words = [f"{name} votes" for name in came] + [f"{name} has left" for name in went]
            if same:
                words = [f"{name} votes under its new key" for name in came]
            facts = {"chain": chain, "pool": pool, "height": height, "joined": came, "left": went}
            return "members", f"pool {pool}: {' and '.join(words)}, from block {height} on", facts
        case RecordCommitted(ref, record):
            return _proposal(ref, record, here)
        case TransferEnded(key, peer, outgoing, size_bytes, duration_ms, failure):
            way = "sent" if outgoing else "received"
            if failure:
                sentence = f"{key} was not {way}: {failure}"
            else:
                sentence = f"{way} {key}: {size(size_bytes)} in {duration(duration_ms)}"
            facts = {
                "key": str(key),
                "peer": peer,
                "outgoing": outgoing,
                "size_bytes": size_bytes,
                "duration_ms": duration_ms,
                "failure": failure,
            }
            return "transfer", sentence, facts
        case BlockAdded(chain, certified) if blocks:
            header = certified.block.header
            sentence = f"block {header.height} on chain {chain[:8]} with {header.records_count} records"
            facts = {"chain": chain, "height": header.height, "records": header.records_count}
            return "block", sentence, facts
        case DataDamaged(root, key, reason):
            name = str(key or root.hex()[:16])
            return "damaged", f"data {name} is damaged: {reason}", {"root": root.hex(), "reason": reason}
        case DataRestored(root, key, holder):
            facts = {"root": root.hex(), "key": str(key), "holder": holder}
            return "restored", f"damaged data {key} was got again", facts
        case DataEvicted(root, key, size_bytes):
            name = str(key or root.hex()[:16])
            facts = {"root": root.hex(), "size_bytes": size_bytes}
            return "evicted", f"{name} ({size(size_bytes)}) was dropped to make room", facts
        case EventsMissed(count):
            return "missed", f"{count} events were not told: this screen is too slow", {"count": count}
    return None


def _proposal(ref: RecordRef, record: SignedRecord, here: Peer) -> tuple[str, str, dict[str, Any]] | None:
    """Tell of a change of a pool's members that somebody has just proposed and that is open still."""
    from edgepool.model.record import MembershipChange

    body, author = record.record.body, record.record.author
    if not isinstance(body, MembershipChange):
        return None
    from edgepool.gateway.views import change_text

    pool = here.members(ref.chain)
    names = {member.peer: member.name for member in pool.members}
    comes = body.incoming.peer if body.incoming is not None else ""
    for change in pool.open:
        if (change.proposer, change.outgoing, change.incoming) != (author, body.outgoing, comes):
            continue
        says = change_text(body, names)  # type: ignore[arg-type]
        sentence = f"pool {pool.name}: {change.proposer_name or author} proposes {says}"
        if pool.voting and not change.approved and here.settings.consensus.approve == "manual":
            folder = here.settings.folder
            sentence += (
                f"; to agree, say: edgepool member approve {folder} {pool.name} {change.proposer_name}"
            )
        facts = {"chain": ref.chain, "pool": pool.name, "proposer": author, "says": says}
        return "proposal", sentence, facts
    return None


def _where(addresses: list[str], settings: PeerSettings) -> str:
    """Say where a peer can be reached."""
    if settings.listen:
        return f"listens on {', '.join(addresses)}"
    return f"accepts nothing from outside; its conduits are {', '.join(settings.conduits) or 'not set'}"
