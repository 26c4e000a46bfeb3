"""`edgert plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgert.cli import console
from edgert.cli.options import (
    BudgetOption,
    Json,
    ModelPath,
    Objective,
    ObjectiveOption,
    Precision,
    PrecisionOption,
    TargetsOption,
    ToleranceOption,
    load_arguments,
)


def plan(  # noqa: PLR0917 - a command's options are its arguments
    model: ModelPath,
    explain: Annotated[bool, typer.Option("--explain", help="Say in sentences why, instead of a table.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also store the plan as JSON here.")] = None,
    objective: ObjectiveOption = Objective.latency,
    precision: PrecisionOption = Precision.own,
    tolerance: ToleranceOption = None,
    targets: TargetsOption = None,
    budget: BudgetOption = 10.0,
    as_json: Json = False,
) -> None:
    """Find the fastest correct way to run MODEL here, and show it."""
    import edgert

    arguments = load_arguments(objective, precision, tolerance, targets, budget)
    with (
        console.progress(f"planning {model.name}", quiet=as_json) as progress,
        edgert.load(model, progress=progress, **arguments) as loaded,
    ):
        made = loaded.plan
    if output is not None:
        text = json.dumps(made.to_json(), indent=2) + "\n"
        console.write_file(output, lambda beside: _store(beside, text))
    if as_json:
        console.show_json(made.to_json())
    elif explain:
        console.show(made.explain())
    else:
        from edgert.cli.views import plan_view

        console.show(plan_view(made))


def _store(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
