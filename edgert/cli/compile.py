"""`edgert compile`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgert.cli import console
from edgert.cli.options import (
    BudgetOption,
    Json,
    MachineOption,
    MemoryLimitOption,
    ModelPath,
    Objective,
    ObjectiveOption,
    Precision,
    PrecisionOption,
    ProfileOption,
    SourceOption,
    TargetsOption,
    ToleranceOption,
    load_arguments,
)

if TYPE_CHECKING:
    from edgert.bundle import Bundle


def compile_(  # noqa: PLR0917 - a command's options are its arguments
    model: ModelPath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle; else MODEL with .edgert for its suffix.")
    ] = None,
    machine: MachineOption = None,
    profile: ProfileOption = None,
    objective: ObjectiveOption = Objective.latency,
    precision: PrecisionOption = Precision.own,
    tolerance: ToleranceOption = None,
    targets: TargetsOption = None,
    budget: BudgetOption = 10.0,
    memory_limit: MemoryLimitOption = None,
    source: SourceOption = None,
    as_json: Json = False,
) -> None:
    """Pack MODEL with its plan into one file that runs on its machine without planner and readers of models."""
    from edgert.compile import compile_model
    from edgert.planning.offline import read_machine, read_profile

    there = None if machine is None else read_machine(machine)
    known = None if profile is None else read_profile(profile)
    arguments = load_arguments(objective, precision, tolerance, targets, budget, memory_limit=memory_limit,
                               source=source)  # fmt: skip
    with console.progress(f"compiling {model.name}", quiet=as_json) as progress:
        made = compile_model(model, output or model.with_suffix(".edgert"), machine=there, profile=known,
                             progress=progress, **arguments)  # fmt: skip
    if as_json:
        console.show_json(_document(made))
        return
    console.show(*_lines(made))


def _lines(made: Bundle) -> Iterator[str]:
    from rich.markup import escape

    from edgert.units import size_text

    plan, check = made.plan, made.plan.verification
    yield f"[bold]{escape(str(made.path))}[/], {size_text(made.path.stat().st_size)}"
    yield f"  [dim]plan[/]      {plan.id}, for machine {made.machine.fingerprint}"
    yield f"  [dim]runs on[/]   [bold green]{', '.join(map(str, dict.fromkeys(plan.targets)))}[/]"
    yield f"  [dim]checked[/]   {escape(f'against {check.reference}' if check.verified else f'no: {check.reason}')}"
    yield f"  [dim]falls to[/]  {', '.join(map(str, plan.fallbacks)) or 'nothing: on another machine it is refused'}"
    for note in plan.notes:
        yield f"  [yellow]note:[/] {escape(note)}"


def _document(made: Bundle) -> dict[str, Any]:
    plan = made.plan
    return {
        "path": str(made.path),
        "size_bytes": made.path.stat().st_size,
        "plan": plan.id,
        "machine": made.machine.fingerprint,
        "targets": [str(target) for target in plan.targets],
        "fallbacks": [str(target) for target in plan.fallbacks],
        "verified": plan.verification.verified,
        "members": {
            name: {"size_bytes": member.size_bytes, "sha256": member.sha256} for name, member in made.members.items()
        },
    }
