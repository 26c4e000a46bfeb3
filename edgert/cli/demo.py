"""`edgert demo`: a trained network on real digits, on whatever this machine has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgert.cli import console
from edgert.cli.options import BudgetOption, Json
from edgert.errors import EdgertError, to_json

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType

    from edgert.graph import Value
    from edgert.machine import Machine
    from edgert.plan import Plan, Receipt
    from edgert.tensor import Array
    from edgert.transforms import Transform

MODELS = ("digits_f32.onnx", "digits_i8.onnx", "digits_f32.tflite", "digits_i8.tflite")
_SHADES = " ░▒▓█"
_BRIGHTEST = 16
"""Of the bundled images."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One file of the network, run on every test image."""

    model: str
    plan: Plan
    receipt: Receipt
    """Of the last image."""
    answers: np.ndarray[Any, np.dtype[np.int64]]
    """Digit read in each image."""
    accuracy: float
    expected: float
    """As measured when the network was trained."""


def demo(
    digits: Annotated[int, typer.Option("--digits", min=0, max=100, help="How many to draw.")] = 8,
    budget: BudgetOption = 3.0,
    as_json: Json = False,
) -> None:
    """Read 360 handwritten digits with a trained network: float and INT8, ONNX and TFLite.

    Everything is in the package: nothing is downloaded.
    """
    import edgert

    with console.progress("looking at this machine", quiet=as_json) as progress:
        machine = edgert.probe(progress=progress)
    if not as_json:
        console.show(_welcome(machine))
    images, labels, about = _bundled()
    trials: list[Trial] = []
    failures: dict[str, EdgertError] = {}
    for name in MODELS:
        try:
            trials.append(_try(name, images, labels, about, budget, as_json))
        except EdgertError as error:
            failures[name] = error
            console.show_error(error)
    if as_json:
        console.show_json(_document(trials, failures))
    else:
        _show(trials, images, labels, digits)
    if failures:
        raise typer.Exit(console.PARTIAL if trials else console.FAILED)


def _bundled() -> tuple[Array, Array, Mapping[str, Any]]:
    """Test images (n, 8, 8) of 0 to 16, their digits, and what is known of the network."""
    import numpy as np

    from edgert.data import path

    stored = np.load(path("digits.npz"), allow_pickle=False)
    return stored["images"], stored["labels"], json.loads(path("digits.json").read_text(encoding="utf-8"))


def _try(  # noqa: PLR0917 - what a trial needs, once
    name: str, images: Array, labels: Array, about: Mapping[str, Any], budget_s: float, as_json: bool
) -> Trial:
    import numpy as np

    import edgert
    from edgert.data import path
    from edgert.transforms import apply

    with (
        console.progress(f"planning {name}", quiet=as_json) as progress,
        edgert.load(path(name), budget_s=budget_s, progress=progress) as model,
    ):
        steps = before(model.inputs[0])
        results = [model.run({about["input"]: apply(steps, image)}) for image in images]
        answers = np.array([int(np.argmax(next(iter(result.values())))) for result in results])
        accuracy = float((answers == labels).mean())
        return Trial(name, model.plan, results[-1].receipt, answers, accuracy, about["accuracy"][name])


def before(value: Value) -> list[Transform]:
    """From an 8 x 8 image of 0 to 16 to an input of the network."""
    from edgert.transforms import Normalise, Quantise, ToLayout

    steps: list[Transform] = [Normalise(scale=1 / _BRIGHTEST)]
    if value.quantization is not None and value.dtype is not None:
        steps.append(Quantise(value.quantization, value.dtype))
    return [*steps, ToLayout("nchw" if value.shape is not None and value.shape[1] == 1 else "nhwc")]


def _welcome(machine: Machine) -> str:
    from rich.markup import escape

    devices = ", ".join(f"{device.id} [bold]{escape(device.name)}[/]" for device in machine.devices)
    backends = ", ".join(dict.fromkeys(reach.backend for reach in machine.reached()))
    return f"{devices}\ndriven by {escape(backends)}  [dim](more: edgert probe)[/]"


def _show(trials: Sequence[Trial], images: Array, labels: Array, digits: int) -> None:
    from edgert.cli.views import receipt_line, table
    from edgert.units import time_text

    right = ("a request", "tried", "right", "trained")
    made = table("model", "runs on", *right, right=right, whole=("model", "runs on"))
    for trial in trials:
        targets = " → ".join(str(target) for target in trial.plan.targets)
        tried = sum(row.outcome != "untried" for row in trial.plan.candidates)
        made.add_row(trial.model, f"[bold green]{targets}[/]", time_text(trial.plan.measured_s), str(tried),
                     f"[bold]{trial.accuracy:.1%}[/]", f"[dim]{trial.expected:.1%}[/]")  # fmt: skip
    console.show(made)
    if trials:
        console.show(gallery(images, labels, trials[0].answers, digits), receipt_line(trials[0].receipt))


def gallery(images: Array, labels: Array, answers: Array, count: int) -> RenderableType:
    """A digit of each kind with what was read; the last one is the first that was misread, if there is one."""
    import numpy as np
    from rich.columns import Columns

    wrong = [int(index) for index in np.flatnonzero(answers != labels)[:1]]
    seen_before = np.array([np.count_nonzero(labels[:index] == label) for index, label in enumerate(labels)])
    order = np.lexsort((labels, seen_before))  # 0 to 9, then each kind again
    shown = [*order[: count - len(wrong)], *wrong] if count else []
    return Columns([_drawn(images[index], int(labels[index]), int(answers[index])) for index in shown], padding=(1, 3))


def _drawn(image: Array, label: int, answer: int) -> str:
    steps = len(_SHADES) - 1
    rows = ("".join(2 * _SHADES[-(-int(pixel) * steps // _BRIGHTEST)] for pixel in row) for row in image)
    verdict = f"[green]{answer}[/]" if label == answer else f"[bold red]{answer}[/], it is {label}"
    return "\n".join([*rows, f"read as {verdict}"])


def _document(trials: Sequence[Trial], failures: Mapping[str, EdgertError]) -> dict[str, Any]:
    return {
        "trials": [
            {
                "model": trial.model,
                "targets": [str(target) for target in trial.plan.targets],
                "measured_s": trial.plan.measured_s,
                "images": len(trial.answers),
                "accuracy": trial.accuracy,
                "expected_accuracy": trial.expected,
                "receipt": {**asdict(trial.receipt), "targets": [str(target) for target in trial.receipt.targets]},
            }
            for trial in trials
        ],
        "failures": {name: to_json(error) for name, error in failures.items()},
    }
