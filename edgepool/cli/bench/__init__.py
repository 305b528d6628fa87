"""`edgepool bench` and its commands: what a peer costs on this machine, each in a module of its own."""

from __future__ import annotations

import typer

from edgepool.cli.bench import chain, conduit, ledger, live, parts, pools, transfer, transport

app = typer.Typer()
app.callback(invoke_without_command=True)(parts.bench)
app.command("ledger")(ledger.ledger)
app.command("pools")(pools.pools)
app.command("chain")(chain.chain)
app.command("conduit")(conduit.conduit)
app.command("live")(live.live)
app.command("transfer")(transfer.transfer)
app.command("transport")(transport.transport)
