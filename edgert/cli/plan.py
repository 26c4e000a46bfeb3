"""`edgert plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from edgert.errors import MissingPackage, ModelError, OptionError

if TYPE_CHECKING:
    from edgert.plan import Plan


def plan(  # noqa: PLR0917 - a command's options are its arguments
    model: ModelPath,
    explain: Annotated[bool, typer.Option("--explain", help="Say in sentences why, instead of a table.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also store the plan as JSON here.")] = None,
    draw: Annotated[
        Path | None, typer.Option("--draw", help="Also draw it: an .svg picture, or an .html page whose boxes open.")
    ] = None,
    export_placement: Annotated[
        Path | None, typer.Option(help="Also write a copy of the .onnx that carries the placement.")
    ] = None,
    import_placement: Annotated[
        Path | None, typer.Option(help="Only the targets that this .onnx's device configuration names.")
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
    """Find the fastest correct way to run MODEL here, or on the machine that is described, and show it."""
    if draw is not None and draw.suffix not in (".svg", ".html"):
        raise OptionError(f"{str(draw)!r} is neither .svg nor .html.", "Name the picture plan.svg or plan.html.")
    if import_placement is not None:
        targets = [*(targets or ()), *_placed(import_placement)]
    arguments = load_arguments(objective, precision, tolerance, targets, budget, memory_limit=memory_limit,
                               source=source)  # fmt: skip
    with console.progress(f"planning {model.name}", quiet=as_json) as progress:
        made, file = _made(model, machine, profile, {**arguments, "progress": progress})
    if output is not None:
        text = json.dumps(made.to_json(), indent=2) + "\n"
        console.write_file(output, lambda beside: _store(beside, text))
    if draw is not None:
        picture = _picture(draw, model.name, file, made)
        console.write_file(draw, lambda beside: _store(beside, picture))
    if export_placement is not None:
        _export(file, made, export_placement)
    if as_json:
        console.show_json(made.to_json())
    elif explain:
        console.show_text(_reasons(file, made))
    else:
        from edgert.cli.views import plan_view

        console.show(plan_view(made))


def _made(model: Path, machine: Path | None, profile: Path | None, arguments: Mapping[str, Any]) -> tuple[Plan, Path]:
    """The plan, and the model file that it is for: of a bundle the one inside."""
    if machine is None and profile is None:
        import edgert

        with edgert.load(model, **arguments) as loaded:
            return loaded.plan, loaded.path
    from edgert.compile import plan_model
    from edgert.planning.offline import read_machine, read_profile

    there = None if machine is None else read_machine(machine)
    known = None if profile is None else read_profile(profile)
    return plan_model(model, machine=there, profile=known, **arguments)[0], model


def _store(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _placed(path: Path) -> tuple[str, ...]:
    from edgert.formats import open_model
    from edgert.formats.onnx_placement import read_placement, wishes

    return wishes(read_placement(open_model(path)))


def _export(model: Path, made: Plan, to: Path) -> None:
    from edgert.formats import open_model
    from edgert.formats.onnx_placement import write_placement

    write_placement(open_model(model), made, to)


def _picture(to: Path, name: str, model: Path, made: Plan) -> str:
    from edgert.formats import open_model

    graph = open_model(model).graph
    if to.suffix == ".svg":
        from edgert.partitioner.draw import draw_svg

        return draw_svg(made, graph, name) + "\n"
    from edgert.partitioner.page import draw_html

    return draw_html(made, graph, name)


def _reasons(model: Path, made: Plan) -> str:
    """By segment; what the plan alone tells where the nodes cannot be read (a board without a reader)."""
    from edgert.formats import open_model
    from edgert.partitioner.explain import explain

    try:
        graph = open_model(model).graph
    except (MissingPackage, ModelError) as error:
        console.note(f"explained without the model's nodes: {error.message}")
        return made.explain()
    return explain(made, graph)
