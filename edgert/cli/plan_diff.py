"""`edgert plan diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from edgert.cli import console
from edgert.cli.options import Json
from edgert.errors import OptionError, UnknownTarget

if TYPE_CHECKING:
    from edgert.plan import Plan

_STORED = "As `edgert plan -o` or `--json` wrote it."
Before = Annotated[Path, typer.Argument(metavar="A", help=_STORED)]
After = Annotated[Path, typer.Argument(metavar="B", help=_STORED)]


def plan_diff(before: Before, after: After, as_json: Json = False) -> None:
    """Show what differs between two stored plans: targets, segments, times, versions, machine."""
    from edgert.partitioner.compare import compare, to_json

    one, other = read_plan(before), read_plan(after)
    changes = compare(one, other)
    if as_json:
        console.show_json({"before": one.id, "after": other.id, "changes": to_json(changes)})
        return
    from edgert.cli.views import table

    console.show(f"plan [bold]{one.id}[/] → [bold]{other.id}[/]" + ("" if changes else ": no difference"))
    if changes:
        made = table("", "before", "after")
        for change in changes:
            made.add_row(f"[bold]{escape(change.what)}[/]", escape(change.before), escape(change.after))
        console.show(made)


def read_plan(path: Path) -> Plan:
    """A plan that was stored as JSON.

    Raises:
        OptionError: it cannot be read, or is no plan that this edgert understands.
    """
    from edgert.plan import Plan

    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise OptionError(
            f"plan {str(path)!r} cannot be read: {error.strerror or error}.", "Give the path of a stored plan."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UnknownTarget) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise OptionError(
            f"{str(path)!r} is not a plan that can be read: {reason}.",
            "Make it again with `edgert plan MODEL -o PLAN.json`.",
        ) from error
