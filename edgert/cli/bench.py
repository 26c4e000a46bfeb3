"""`edgert bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgert.cli import console
from edgert.cli.options import (
    BudgetOption,
    Json,
    Objective,
    ObjectiveOption,
    Precision,
    PrecisionOption,
    TargetsOption,
    ToleranceOption,
    load_arguments,
)
from edgert.errors import EdgertError, OptionError, to_json

if TYPE_CHECKING:
    from edgert.bench import Report

PICTURES = (".png", ".svg")


def bench(  # noqa: PLR0917 - a command's options are its arguments
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help=".onnx or .tflite files.")],
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.0, help="For measuring each model.")] = 10.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the inputs and of the order of the rounds.")] = 0,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the result here: .png or .svg.")] = None,
    objective: ObjectiveOption = Objective.latency,
    precision: PrecisionOption = Precision.own,
    tolerance: ToleranceOption = None,
    targets: TargetsOption = None,
    budget: BudgetOption = 10.0,
    as_json: Json = False,
) -> None:
    """Race edgert's choice against every other target and plain ONNX Runtime.

    Each contender lives in a process of its own, and they take turns.

    A model that cannot be measured is reported, and the others go on; exit code 3.
    """
    if picture is not None and picture.suffix not in PICTURES:
        raise OptionError(f"picture {picture} is neither {' nor '.join(PICTURES)}.", "Choose one of the two.")
    arguments = load_arguments(objective, precision, tolerance, targets, budget)
    reports: list[Report] = []
    failures: dict[str, EdgertError] = {}
    for model in models:
        try:
            reports.append(_one(model, seconds, seed, as_json, arguments))
        except EdgertError as error:
            if len(models) == 1:
                raise
            failures[str(model)] = error
            console.show_error(error)
    _show(reports, failures, as_json)
    if picture is not None and reports:
        from edgert.cli.picture import draw

        console.write_file(picture, lambda beside: draw(reports, beside))
    if failures:
        raise typer.Exit(console.PARTIAL if reports else console.FAILED)


def _one(model: Path, seconds: float, seed: int, as_json: bool, arguments: dict[str, Any]) -> Report:
    from edgert.bench import bench as measure
    from edgert.cli.reports import report_view

    with console.progress(model.name, quiet=as_json) as progress:
        report = measure(model, seconds=seconds, seed=seed, progress=progress, **arguments)
    if not as_json:
        console.show(report_view(report))  # at once: the next model takes a while
    return report


def _show(reports: list[Report], failures: dict[str, EdgertError], as_json: bool) -> None:
    from edgert.bench import overall
    from edgert.cli.reports import overall_view

    if as_json:
        console.show_json(
            {
                "models": [report.to_json() for report in reports],
                "overall": overall(reports),
                "failures": {model: to_json(error) for model, error in failures.items()},
            }
        )
    elif len(reports) > 1:
        console.show(overall_view(reports))
