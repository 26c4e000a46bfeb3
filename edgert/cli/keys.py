"""`edgert keys make | list | allow | remove`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from edgert.cli import console
from edgert.cli.options import Json

keys = typer.Typer(no_args_is_help=True, help="Say which machines may talk to this one over TCP.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the other machine is called here.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Its public key, in quotes: see `edgert keys list` there.")]


@keys.command()
def make(as_json: Json = False) -> None:
    """Make this machine's key pair and show its public key. The secret stays in a file that only you can read."""
    from edgert.transport.keys import Keyring

    ring = Keyring()
    public = ring.make().public
    if as_json:
        console.show_json({"public": public, "folder": str(ring.folder)})
    else:
        console.show(escape(public))
        console.note(f"On the other machine: edgert keys allow NAME '{public}'")


@keys.command("list")
def list_(as_json: Json = False) -> None:
    """Show this machine's public key, and those of the machines that may connect."""
    from edgert.errors import OptionError
    from edgert.transport.keys import Keyring

    ring = Keyring()
    try:
        own = ring.own().public
    except OptionError as error:
        own = None
        console.show_error(error)
    if as_json:
        console.show_json({"own": own, "peers": dict(ring.peers()), "folder": str(ring.folder)})
        return
    rows = [("own key", own)] if own else []
    for name, key in [*rows, *ring.peers().items()]:
        console.show(f"{escape(name):<20} {escape(key)}")


@keys.command()
def allow(name: Name, key: Key) -> None:
    """Let the machine with this public key connect to this one, and know it by NAME."""
    from edgert.transport.keys import Keyring

    Keyring().allow(name, key)


@keys.command()
def remove(name: Name) -> None:
    """Forget a machine: it may not connect any more."""
    from edgert.transport.keys import Keyring

    Keyring().remove(name)
