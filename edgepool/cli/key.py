"""`edgepool key encrypt|decrypt`: a peer's private key under a passphrase, or without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepool.cli.console import print_json, say

if TYPE_CHECKING:
    from edgepool.gateway.keys import KeyChange

app = typer.Typer(
    no_args_is_help=True,
    help="Keep a peer's private key under a passphrase.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="A peer's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def encrypt(
    folder: Folder,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            help="A file that only its owner may read, with the passphrase; best on another medium "
            "(default: that of the settings, or the environment variable EDGEPOOL_PASSPHRASE)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Encrypt a peer's key in place and name the passphrase's file in the settings.

    The peer keeps its id and its certificate; it needs the passphrase whenever it starts.

    Example: edgepool key encrypt plant/mill-1 --passphrase-file /media/stick/mill-1
    """
    from edgepool.gateway.keys import encrypt_key

    change = encrypt_key(folder, passphrase_file)
    _show(folder, change, "encrypted", json)


@app.command()
def decrypt(folder: Folder, json: Json = False) -> None:
    """Write a peer's key without its passphrase and take the passphrase's file out of the settings.

    The file itself stays where it is.

    Example: edgepool key decrypt plant/mill-1
    """
    from edgepool.gateway.keys import decrypt_key

    change = decrypt_key(folder)
    _show(folder, change, "plain", json)


def _show(folder: Path, change: KeyChange, state: str, json: bool) -> None:
    if json:
        print_json({"key": str(change.key), "state": state, **_facts(change)})
        return
    say(f"{change.key} {'is now' if change.changed else 'was already'} {state}")
    if change.source:
        say(f"its passphrase is taken from {change.source}")
    if change.to_write:
        verb = "write this line into" if state == "encrypted" else "take this line out of"
        say(f"{verb} the table [identity] of {folder / 'edgepool.toml'}: {change.to_write}", "yellow")


def _facts(change: KeyChange) -> dict[str, object]:
    return {"changed": change.changed, "passphrase_from": change.source, "to_write": change.to_write}
