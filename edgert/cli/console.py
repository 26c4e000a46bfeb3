"""Where words go: results to stdout, everything else to stderr; progress only when somebody watches."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console, RenderableType
from rich.markup import escape

from edgert import interrupts
from edgert.errors import EdgertError, OptionError

OK, FAILED, USAGE, PARTIAL, BUG, INTERRUPTED = 0, 1, 2, 3, 70, interrupts.INTERRUPTED
"""Exit codes, described in docs/cli.md and at the foot of `edgert --help`."""

Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and the part that is done, 0 to 1."""


def show(*things: RenderableType) -> None:
    """Print a result for people."""
    console = Console(highlight=False)
    for thing in things:
        console.print(thing)


def show_text(text: str) -> None:
    """Print lines for people as they are: a narrow terminal folds them, a pipe gets them whole."""
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def show_json(document: Any) -> None:
    """Print exactly one JSON document; NaN and infinity, which JSON lacks, become null."""
    sys.stdout.write(json.dumps(finite(document), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def note(text: str) -> None:
    """Say something on stderr that is not the result."""
    Console(stderr=True, highlight=False).print(f"[dim]{escape(text)}[/]")


def show_error(error: EdgertError) -> None:
    """The culprit in red and the remedy below, on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(error.message or str(error))}")
    if error.remedy:
        console.print(f"  [bold]try:[/] {escape(error.remedy)}")


def finite(thing: Any) -> Any:
    """The same data with null for every float that JSON cannot say, and lists for tuples."""
    if isinstance(thing, float):
        return thing if math.isfinite(thing) else None
    if isinstance(thing, Mapping):
        return {str(key): finite(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [finite(item) for item in thing]
    return thing


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, then put it in its place, so that no half-written file is ever there.

    Raises:
        OptionError: the folder cannot be written to.
    """
    beside = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(beside)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise OptionError(
            f"{path} cannot be written: {error.strerror or error}.", "Choose a folder that you may write to."
        ) from error


@contextmanager
def progress(title: str, *, quiet: bool) -> Iterator[Progress | None]:
    """A bar on stderr that vanishes at the end; None when nobody watches (no terminal, or `quiet`)."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("[bold]{task.fields[title]}"), BarColumn(24), TimeElapsedColumn(),
               TextColumn("[dim]{task.description}", markup=True))  # fmt: skip
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=1.0, title=title)
        yield lambda text, part: bars.update(task, description=escape(text), completed=part)
