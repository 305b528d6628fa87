"""The command line: `edgepool COMMAND`, and the door through which every error leaves.

Exit codes: 0 all is well, 1 others said no or something checked is bad, 2 bad input. Commands
import what they need when they run, so that `edgepool --help` is quick.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgepool.cli import (
    audit,
    bench,
    budget,
    chain,
    data,
    demo,
    doctor,
    handover,
    init,
    invite,
    join,
    key,
    live,
    lottery,
    member,
    members,
    org,
    policy,
    proof,
    query,
    renew,
    rights,
    rotate,
    run,
    sim,
    status,
    stored,
    topology,
    trust,
    verify,
)
from edgepool.cli.console import show_error
from edgepool.errors import EdgepoolError, LocalError, Refused, RemoteError, Unavailable

INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns errors that are nobody's bug into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Refused, Unavailable, RemoteError) as error:
            show_error(error)
            raise typer.Exit(1) from None
        except EdgepoolError as error:
            show_error(error)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the output has enough: typer ends quietly
                raise
            show_error(LocalError(_of_system(error)))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _of_system(error: OSError) -> str:
    """Return what the system refused as a sentence: no right to a file, no room on the disk, and so on."""
    what = f"'{error.filename}'" if error.filename else "the system refused"
    return f"{what}: {error.strerror or error}; check the path, its owner and the room on its disk"


app = typer.Typer(
    name="edgepool",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo")(demo.demo)
app.command("init")(init.init)
app.command("run")(run.run)
app.command("invite")(invite.invite)
app.command("join")(join.join)
app.command("renew")(renew.renew)
app.command("csr")(renew.csr)
key.app.command("install")(renew.install)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("publish")(data.publish)
app.command("request")(data.request)
app.command("fetch")(data.fetch)
chain.app.command("verify")(verify.verify)
chain.app.command("members")(members.members)
chain.app.command("query")(query.query)
chain.app.command("lottery")(lottery.lottery)
chain.app.command("genesis")(proof.export_genesis)
app.command("rights")(rights.rights)
app.add_typer(policy.app, name="policy")
app.command("audit")(audit.audit)
for name, command in (
    ("list", trust.list_),
    ("admit", trust.admit),
    ("retire", trust.retire),
    ("approve", trust.approve),
    ("trust", trust.trust),
    ("rotate", rotate.rotate),
    ("hand-over", handover.hand_over),
    ("take-over", handover.take_over),
):
    org.app.command(name)(command)
member.app.command("revoke")(trust.revoke)
app.add_typer(org.app, name="org")
app.add_typer(member.app, name="member")
app.add_typer(chain.app, name="chain")
app.add_typer(stored.app, name="data")
app.add_typer(budget.app, name="budget")
app.add_typer(live.app, name="live")
app.add_typer(key.app, name="key")
app.add_typer(bench.app, name="bench")
app.add_typer(sim.app, name="sim")
app.add_typer(proof.app, name="proof")
app.add_typer(topology.app, name="topology")


def main() -> None:
    """Run the command line; this is the console script."""
    if hasattr(sys.stdout, "reconfigure"):
        # A screen without UTF-8 gets '?' for what it cannot show, and no traceback.
        sys.stdout.reconfigure(errors="replace")
        sys.stderr.reconfigure(errors="replace")  # type: ignore[union-attr]
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edgepool {version('edgepool')}")
        raise typer.Exit


@app.callback()
def edgepool(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Machines of a shop floor exchange their data directly: peers, pools, chains and transfers.

    Begin with 'edgepool demo', which runs a whole factory on this machine in three minutes.

    For a gateway of your own: 'edgepool init', then 'edgepool run'; beside it, in another window,
    'edgepool status', 'publish', 'request' and 'fetch'. Every command explains itself with --help.
    """
