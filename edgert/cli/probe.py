"""`edgert probe`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgert.cli import console
from edgert.cli.options import Json


def probe(
    refresh: Annotated[bool, typer.Option("--refresh", help="Look again instead of reading the cache.")] = False,
    as_json: Json = False,
) -> None:
    """Show the devices of this machine and which backend counts right on them.

    A backend that is missing is shown with the reason and the command that helps.
    """
    import edgert

    with console.progress("probing", quiet=as_json) as progress:
        machine = edgert.probe(refresh=refresh, progress=progress)
    if as_json:
        console.show_json(machine.to_json())
        return
    from edgert.cli.views import machine_view

    console.show(machine_view(machine))
