"""`edgert daemon`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from edgert.cli.console import PARTIAL

DaemonFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of .onnx, .tflite and .edgert files.")]
EndpointOption = Annotated[
    str | None, typer.Option(help="Where to listen, such as ipc:///run/edgert/edgert.sock.", show_default=False)
]
StateOption = Annotated[Path | None, typer.Option(help="Where versions of the models are kept.", show_default=False)]
GroupOption = Annotated[bool, typer.Option("--group", help="Let members of the socket folder's group connect.")]
BudgetOption = Annotated[float, typer.Option(min=0, help="Seconds to plan each model; 0 answers at once.")]
DrainOption = Annotated[float, typer.Option(min=0, help="Seconds that requests in flight may take at the end.")]
WaitingOption = Annotated[int, typer.Option(min=1, help="Requests of one model that may wait.")]


def daemon(  # noqa: PLR0917 - a command's options are its arguments
    folder: DaemonFolder,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    group: GroupOption = False,
    budget: BudgetOption = 0.0,
    drain: DrainOption = 20.0,
    waiting: WaitingOption = 64,
) -> None:
    """Serve the models of FOLDER to others on this box, until SIGTERM. Prints nothing; logs to stderr."""
    from edgert.client import default_endpoint
    from edgert.serving.daemon import Settings, serve
    from edgert.serving.service import Limits
    from edgert.transport.keys import Keyring

    log_for_operators()
    where = endpoint or default_endpoint()
    keyring = Keyring() if where.startswith("tcp://") else None
    settings = Settings(folder, where, state, group, budget, drain, Limits(waiting=waiting), keyring)
    if not serve(settings):
        raise typer.Exit(PARTIAL)


def log_for_operators() -> None:
    """At least INFO; under systemd with a level that the journal knows (sd-daemon(3)) in place of a second time."""
    root = logging.getLogger()
    root.setLevel(min(root.level, logging.INFO))
    if "JOURNAL_STREAM" not in os.environ:
        return
    for handler in root.handlers:
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = 3 if record.levelno >= logging.ERROR else 4 if record.levelno >= logging.WARNING else 6
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())
