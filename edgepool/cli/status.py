"""`edgepool status`: one screen of one peer; every red cell has its explanation below."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from edgepool.cli.conduits import (
    PATH_COLUMNS,
    conduit_line,
    conduit_table,
    libp2p_line,
    path_cells,
    places_table,
    transfer_peer,
)
from edgepool.cli.console import PlainTable, columns, duration, moment, out, print_json, run_async, size

if TYPE_CHECKING:
    from edgepool.peer.lifeview import CertificateStatus
    from edgepool.peer.values import ChainStatus, PeerStatus

BUSY_PERCENT = 90
STANDSTILL_MS = 30_000

ORDINARY = (
    "dropped_no_link",
    "dropped_duplicate",
    "dropped_outbox",
    "lost_silent",
    "lost_half_open",
    "refused_paused",
)
"""What links that come and go count by themselves: what mattered was said again, nobody did wrong."""

MEANINGS = {
    "refused_handshake": "callers did not speak TLS, said nothing, or did not want this peer's certificate, "
    "and got nowhere; if it goes on rising, look for a foreign program or another authority's peer",
    "refused_no_certificate": "callers showed no certificate and got nowhere; if it goes on rising, look for "
    "a foreign program",
    "refused_foreign": "callers had a certificate of an organisation that is not admitted here; if it is to "
    "be, see 'edgepool org admit', else look for a foreign peer",
    "refused_expired": "members came with a certificate that has expired: run 'edgepool renew' there",
    "refused_not_yet_valid": "members came with a certificate that is not valid yet: compare the clocks "
    "there and here",
    "refused_possession": "callers showed a certificate whose key they do not have: it was stolen or copied",
    "refused_chain": "callers sent more certificates than their own and got nowhere; have those certificates "
    "issued by the root directly",
    "refused_oversize_certificate": "callers had a certificate longer than any of this network",
    "refused_unreadable": "callers had a certificate that cannot be read",
    "refused_wrong_key": "callers had a certificate for another kind of key than Ed25519",
    "refused_nameless": "callers had a certificate that does not say who they are: see 'edgepool csr'",
    "refused_wrong_network": "callers had a certificate for another network and got nowhere; look for a peer "
    "with the wrong 'network' in its settings",
    "refused_unknown_role": "callers had a certificate for a role that this version does not know",
    "refused_revoked": "peers whose membership was revoked tried to come in again",
    "refused_stranger": "a member spoke a protocol that is not spoken here: are its version and this one the "
    "same?",
    "refused_wrong_peer": "at the address of a known peer somebody else answers: correct its address in "
    "known_peers",
    "refused_oversize": "a member announced a message over limits.frame_bytes, and its link was ended; the "
    "log says whose: its software is broken or hostile",
    "refused_garbage": "a member sent what is no message, and its link was ended; the log says whose: its "
    "software is broken or hostile",
    "refused_misbehaviour": "a member sent what its role or its chains do not allow, and it was ignored: its "
    "software is broken or hostile",
    "refused_throttled": "one address sent so many callers that proved nothing that it was sent away before "
    "TLS; look for a foreign program or an attack there",
    "refused_busy": "all places for handshakes, links or transfers were taken, and callers were put off; if "
    "it goes on rising, raise limits.handshakes, limits.links or limits.transfers_served",
    "refused_other_road": "members dialled links over TLS, which go over libp2p alone here: give them that "
    'road, or set transport = "both"',
    "failed_mdns": "the local network could not be asked who is there: see that this machine has one with "
    "IPv4, or set mdns = false under [libp2p]",
    "refused_place": "a libp2p relay gives this peer no place: set relay = true under [libp2p] there",
    "restarted_libp2p": "the libp2p child ended, hung or grew, and was started again, and its links came "
    "back; the log says why",
    "refused_token": "connections began with a token that is not good here, and got nowhere: late ones, or "
    "somebody who guesses; if it goes on rising, look for a foreign program",
    "refused_circuit": "members asked this conduit for somebody who keeps no place here, or for more than "
    "their share; if it goes on rising, raise conduit.circuits or start whom they ask for",
    "refused_nested": "a member came through a conduit to use this peer as one: a path has one conduit only; "
    "its software is broken or hostile",
    "lost_revoked": "connections of peers were cut, since their membership was revoked",
    "lost_retired": "connections were cut, since the root of their certificates was retired: have those "
    "peers get new certificates",
    "lost_lapsed": "links were ended, since the certificates they were made with have lapsed: run 'edgepool "
    "doctor' there",
    "dropped_events": "messages came faster than this machine takes them and were dropped; others say them "
    "again, but blocks slow down",
    "dropped_frame_too_long": "this peer made messages over limits.frame_bytes: raise it on all peers",
    "failed_handler": "this peer failed inside while it took a message: its log says where",
}
"""What each count of things turned away means, and what to do."""


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of a running peer.")] = Path("."),
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show one running peer: links, chains, transfers, and what is wrong, if anything is.

    A red cell has a number; the sentence with that number says what it means and what to do.

    Example: edgepool status plant/mill-1
    """
    answer = run_async(_ask(folder))
    if json:
        print_json(answer)
    else:
        out.print(StatusScreen(answer, int(time.time() * 1000)).render())


async def _ask(folder: Path) -> PeerStatus:
    from edgepool.gateway.client import ApiClient

    async with ApiClient.of(folder) as client:
        return await client.status()


class StatusScreen:
    """Draws a status; `explanations` are the numbered sentences for what it drew red."""

    def __init__(self, status: PeerStatus, now_ms: int) -> None:
        self.explanations: list[str] = []
        self._status = status
        self._now_ms = now_ms
        self._unexplained = list(status.problems)

    def render(self) -> RenderableType:
        """Return the whole screen."""
        parts: list[RenderableType] = [self._head(), Text()]
        parts += [self._links(), Text(), self._chains(), Text()]
        if self._status.conduits:
            parts += [places_table(self._status.conduits), Text()]
        if self._status.conduit is not None and self._status.conduit.pairs:
            parts += [conduit_table(self._status.conduit), Text()]
        if self._status.transfers:
            parts += [self._transfers(), Text()]
        parts += [self._totals()]
        for problem in self._unexplained:
            self._number(problem)
        if self.explanations:
            parts += [Text(), Text("What is red", style="bold red")]
            parts += [Text(f"[{n}] {text}") for n, text in enumerate(self.explanations, 1)]
        else:
            parts += [Text(), Text("Nothing is wrong.", style="green")]
        return Group(*parts)

    def red(self, cell: str, explanation: str) -> Text:
        """Return a red cell that refers to its explanation."""
        return Text.assemble((cell, "red"), (f" [{self._number(explanation)}]", "bold red"))

    def _number(self, explanation: str) -> int:
        if explanation not in self.explanations:
            self.explanations.append(explanation)
        return self.explanations.index(explanation) + 1

    def _problem(self, start: str, otherwise: str) -> str:
        """Return the peer's own sentence that begins with `start`, if it has one."""
        for problem in self._unexplained:
            if problem.startswith(start):
                self._unexplained.remove(problem)
                return problem
        return otherwise

    def _head(self) -> RenderableType:
        status = self._status
        what = status.role if not status.machine_type else f"{status.role}, {status.machine_type}"
        table = PlainTable.grid(padding=(0, 2))
        table.add_row("peer", Text.assemble((status.name, "bold"), f" ({what}) of '{status.network}'"))
        table.add_row("id", status.id)
        table.add_row("reached at", ", ".join(status.addresses) or "nowhere: it accepts nothing from outside")
        table.add_row("up for", duration(max(0, self._now_ms - status.started_ms)))
        if status.certificate is not None:
            table.add_row("certificate", self._certificate(status.certificate))
        table.add_row("load", self._load())
        if status.conduit is not None:
            table.add_row("conduit", conduit_line(status.conduit))
        if status.libp2p is not None:
            table.add_row("libp2p", libp2p_line(status.libp2p))
        return table

    def _certificate(self, own: CertificateStatus) -> Text:
        text = f"{left(own.days_left)}, until {moment(own.valid_until_ms)}"
        if problem := self._problem("this peer's certificate", ""):
            return self.red(text, f"{problem}; 'edgepool doctor' says what to do")
        due = f"renewed {moment(own.due_ms)}" if own.due_ms > self._now_ms else "being renewed"
        if own.problem:
            due += f" (tried again by itself: {own.problem})"
        return Text(f"{text}; {due}")

    def _load(self) -> Text:
        status = self._status
        network, processors = status.network_load_percent, status.processing_load_percent
        cells = []
        for name, percent, meaning in (
            ("network", network, "transfers wait for the uplink; others will be asked for data first"),
            (
                "processors",
                processors,
                "this machine is short of processor time: blocks and transfers slow down",
            ),
        ):
            text = f"{name} {percent} %"
            cells.append(
                self.red(text, f"the {name} {_verb(name)} {percent} % busy: {meaning}")
                if percent >= BUSY_PERCENT
                else Text(text)
            )
        return Text(", ").join(cells)

    def _links(self) -> RenderableType:
        status = self._status
        table = columns("peer", "role", "machine", "up for", "certificate", *PATH_COLUMNS, title="Links")
        for link in sorted(status.links, key=lambda link: link.name):
            lasts = left(link.certificate_days_left) if link.certificate_until_ms else ""
            about = link.name, link.role, link.machine_type, duration(link.up_ms), lasts
            table.add_row(*about, *path_cells(link))
        linked = {link.name for link in status.links}
        for name in status.wanted:
            if name not in linked:
                sentence = (
                    f"there is no link to {name}: either it is not running, or the network between is cut, "
                    "or its certificate is not accepted ('refused' below then counts)"
                )
                table.add_row(name, "", "", self.red("no link", sentence))
        if not status.wanted and not status.links:
            table.add_row(Text("none yet: add a known peer to the settings, or wait for a pool", style="dim"))
        return table

    def _chains(self) -> RenderableType:
        table = columns(
            "pool",
            "kind",
            "chain",
            "height",
            "last packer",
            "last block",
            "reached",
            "waiting",
            title="Chains",
        )
        for chain in self._status.chains:
            table.add_row(
                chain.name,
                chain.kind + _standing(chain),
                chain.id[:8],
                str(chain.height),
                chain.last_packer,
                duration(max(0, self._now_ms - chain.last_block_ms)) + " ago" if chain.height else "",
                Text("") if chain.left else self._reached(chain),
                self._waiting(chain),
            )
        if not self._status.chains:
            table.add_row(Text("none yet: a coordinator forms the pools", style="dim"))
        return table

    def _reached(self, chain: ChainStatus) -> Text:
        reached = len(chain.members) - len(chain.missing)
        text = f"{reached} of {len(chain.members)}"
        if not chain.missing:
            return Text(text)
        away = ", ".join(chain.missing)
        start = f"pool {chain.name}:"
        if reached < chain.quorum:
            sentence = self._problem(
                start, f"{start} {chain.quorum} members must agree, and {away} cannot be reached"
            )
            return self.red(text, f"{sentence} (start them, or mend the network to them)")
        self._problem(start, "")
        return Text(f"{text}, without {away}", style="yellow")

    def _waiting(self, chain: ChainStatus) -> Text:
        text = str(chain.waiting)
        idle_ms = self._now_ms - chain.last_block_ms
        if not chain.waiting or idle_ms < STANDSTILL_MS:
            return Text(text)
        return self.red(
            text,
            f"pool {chain.name}: {chain.waiting} records wait and no block has come for {duration(idle_ms)} "
            f"(round {chain.round}): fewer than {chain.quorum} members are working on it",
        )

    def _transfers(self) -> RenderableType:
        table = columns("data", "", "peer", "done", "rate", title="Transfers under way")
        for transfer in self._status.transfers:
            share = 100 * transfer.done_bytes // transfer.size_bytes if transfer.size_bytes else 100
            table.add_row(
                transfer.key,
                "to" if transfer.outgoing else "from",
                transfer_peer(transfer),
                f"{share} % of {size(transfer.size_bytes)}",
                f"{size(transfer.bytes_per_s)}/s",
            )
        return table

    def _totals(self) -> RenderableType:
        totals = self._status.totals
        table = PlainTable.grid(padding=(0, 2))
        failed: Text = Text(f"{totals.failed} failed")
        if totals.failed:
            failed = self.red(
                f"{totals.failed} failed",
                f"{totals.failed} of {totals.demands} requests for data failed: nobody reachable had it, "
                "or its holder refused or broke off; 'edgepool request' shows who has what",
            )
        table.add_row(
            "demands", Text.assemble(f"{totals.demands} made, {totals.answered} answered, ", failed)
        )
        received = size(totals.bytes_received) + _through(totals.received_by_conduit, "received")
        sent = size(totals.bytes_sent) + _through(totals.sent_by_conduit, "sent")
        table.add_row("data", f"{received}, {sent}")
        stored = self._status.storage
        table.add_row(
            "stored",
            f"{size(stored.used_bytes)} of {size(stored.quota_bytes)}, {size(stored.kept_bytes)} must stay, "
            f"{size(stored.quarantined_bytes)} damaged",
        )
        if totals.first_data_ms:
            table.add_row("first data", moment(totals.first_data_ms))
        for reason, count in sorted(totals.refused.items()):
            text = f"{count} × {reason}"
            if reason in ORDINARY or (reason == "refused_wrong_peer" and not self._somebody_else()):
                table.add_row("counted", Text(text, style="dim"))
                continue
            meaning = MEANINGS.get(reason, "if it goes on rising, look at this peer's log")
            table.add_row("refused", self.red(text, f"{text}: {meaning}"))
        return table

    def _somebody_else(self) -> bool:
        """Say whether one is met where another should be, and not only while that one changed its key."""
        said = (*self._status.problems, *(place.reason for place in self._status.conduits))
        return any("another peer answers" in text for text in said)


def left(days: float) -> str:
    """Return the time that a certificate has left, for people."""
    if days < 0:
        return "expired"
    if days >= 2:
        return f"{days:.0f} days left"
    return f"{24 * days:.0f} hours left" if days * 24 >= 2 else f"{24 * 60 * days:.0f} minutes left"


def _through(by_conduit: dict[str, int], moved: str) -> str:
    """Return what of that which was `moved` went through conduits."""
    through = sum(by_conduit.values())
    return f" {moved} ({size(through)} through conduits)" if through else f" {moved}"


def _standing(chain: ChainStatus) -> str:
    """Return what this peer is in a pool, if it does not vote."""
    return ", ended" if chain.ended else ", left" if chain.left else "" if chain.voting else ", observing"


def _verb(name: str) -> str:
    return "are" if name.endswith("s") else "is"
