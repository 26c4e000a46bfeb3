"""`edgert run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from edgert.cli import console
from edgert.cli.options import (
    BudgetOption,
    FitChoice,
    Json,
    LayoutChoice,
    MemoryLimitOption,
    ModelPath,
    Objective,
    ObjectiveOption,
    Precision,
    PrecisionOption,
    SourceOption,
    TargetsOption,
    ToleranceOption,
    load_arguments,
    numbers,
    size,
)
from edgert.errors import OptionError

if TYPE_CHECKING:
    from edgert.tensor import Data

_PICTURES = "For pictures"
_CLASSES = "For classifiers"

_Inputs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="[NAME=]FILE", help=".npy .npz .png .jpg .wav or 'random'; repeatable."),
]
_Output: TypeAlias = Annotated[Path | None, typer.Option("--output", "-o", help="Store all outputs in this .npz.")]
_Seed: TypeAlias = Annotated[int, typer.Option("--seed", help="Of random inputs.")]
_Resize: TypeAlias = Annotated[
    str, typer.Option("--resize", metavar="HxW", help="Size; else the model's own.", rich_help_panel=_PICTURES)
]
_Fit: TypeAlias = Annotated[
    FitChoice, typer.Option("--fit", help="How the picture meets that size.", rich_help_panel=_PICTURES)
]
_Layout: TypeAlias = Annotated[
    LayoutChoice | None, typer.Option("--layout", help="Else by the shape.", rich_help_panel=_PICTURES)
]
_Scale: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--scale", help="Factor for pixels; else 1/255 for floats, 1 for integers.", rich_help_panel=_PICTURES
    ),
]
_Mean: TypeAlias = Annotated[
    str, typer.Option("--mean", metavar="M[,M,M]", help="Subtracted after --scale.", rich_help_panel=_PICTURES)
]
_Std: TypeAlias = Annotated[
    str, typer.Option("--std", metavar="S[,S,S]", help="Divided by after --mean.", rich_help_panel=_PICTURES)
]
_Grayscale: TypeAlias = Annotated[bool, typer.Option("--grayscale", help="One channel.", rich_help_panel=_PICTURES)]
_Labels: TypeAlias = Annotated[
    Path | None, typer.Option("--labels", help="One class name a line, or a JSON list.", rich_help_panel=_CLASSES)
]
_TopK: TypeAlias = Annotated[
    int | None, typer.Option("--top-k", "-k", min=1, help="Show the k best classes.", rich_help_panel=_CLASSES)
]
_Softmax: TypeAlias = Annotated[
    bool, typer.Option("--softmax", help="Turn scores into shares first.", rich_help_panel=_CLASSES)
]


def run(  # noqa: PLR0917 - a command's options are its arguments
    model: ModelPath, inputs: _Inputs = None, output: _Output = None, seed: _Seed = 0, resize: _Resize = "",
    fit: _Fit = FitChoice.stretch, layout: _Layout = None, scale: _Scale = None, mean: _Mean = "0", std: _Std = "1",
    grayscale: _Grayscale = False, labels: _Labels = None, top_k: _TopK = None, softmax: _Softmax = False,
    objective: ObjectiveOption = Objective.latency, precision: PrecisionOption = Precision.own,
    tolerance: ToleranceOption = None, targets: TargetsOption = None, budget: BudgetOption = 10.0,
    memory_limit: MemoryLimitOption = None, source: SourceOption = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Run MODEL once, on files or random numbers; show the outputs and the receipt."""
    import edgert
    from edgert.cli import answers
    from edgert.cli import inputs as reading
    from edgert.cli.classes import best_classes, read_labels

    if output is not None and output.suffix != ".npz":
        raise OptionError(f"{output} is not a .npz file.", f"Write --output {output.with_suffix('.npz')}.")
    given = reading.read(inputs or [])
    names = None if labels is None else read_labels(labels)
    options = reading.ImageOptions(size(resize), fit.value, None if layout is None else layout.value, scale,
                                   numbers(mean, "--mean"), numbers(std, "--std"), grayscale)  # fmt: skip
    arguments = load_arguments(objective, precision, tolerance, targets, budget, memory_limit=memory_limit,
                               source=source)  # fmt: skip
    with console.progress(f"planning {model.name}", quiet=as_json) as progress:
        loaded = edgert.load(model, progress=progress, **arguments)
    with loaded:
        feed, lines = reading.fit(given, loaded.inputs, options, lambda: _random(loaded.path, seed))
        result, values = loaded.run(feed), loaded.outputs
    top = None
    if names is not None or top_k is not None:
        top = best_classes(result, values, names, top_k or 5, softmax=softmax)
    if output is not None:
        _store(output, result)
    if as_json:
        console.show_json(answers.document(result, result.receipt, lines, top))
    else:
        console.show(*answers.view(result, result.receipt, lines, top))
    if result.receipt.degraded:
        raise typer.Exit(console.PARTIAL)


def _random(model: Path, seed: int) -> Mapping[str, Data]:
    from edgert.formats import open_model
    from edgert.samples import synthesise

    return synthesise(open_model(model).graph, seed=seed)[0]


def _store(path: Path, outputs: Mapping[str, Data]) -> None:
    import zipfile

    import numpy as np

    odd = [name for name, data in outputs.items() if not isinstance(data, np.ndarray) or data.dtype.kind not in "biufc"]
    if odd:
        raise OptionError(f"outputs {', '.join(odd)} are no plain arrays; .npz cannot hold them.", "Use --json.")

    def write(beside: Path) -> None:  # not numpy.savez: it has no outputs called 'file'
        with zipfile.ZipFile(beside, "w") as archive:
            for name, data in outputs.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(data), allow_pickle=False)

    console.write_file(path, write)
