"""`edgert profile`."""

from __future__ import annotations

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


def profile(  # noqa: PLR0917 - a command's options are its arguments
    model: ModelPath,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Store it as JSON here.")] = None,
    objective: ObjectiveOption = Objective.latency,
    precision: PrecisionOption = Precision.any,
    tolerance: ToleranceOption = None,
    targets: TargetsOption = None,
    budget: BudgetOption = 10.0,
    as_json: Json = False,
) -> None:
    """Measure MODEL on every target of this machine, for `edgert compile --profile` elsewhere."""
    import edgert
    from edgert.planning.offline import profile_document, profile_of, write_profile

    arguments = load_arguments(objective, precision, tolerance, targets, budget)
    with (
        console.progress(f"measuring {model.name}", quiet=as_json) as progress,
        edgert.load(model, progress=progress, **arguments) as loaded,
    ):
        found = profile_of(loaded.plan)
    if output is not None:
        write_profile(output, found)
    if as_json:
        console.show_json(profile_document(found))
        return
    from edgert.cli.views import candidates_view

    console.show(f"profile of {model.name} on machine {found.machine}", *candidates_view(found.rows, set()))
