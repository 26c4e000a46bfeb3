"""The options that several commands share, declared once; and what they mean as arguments of `edgert.load`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer


class Objective(StrEnum):
    """What the plan is made for."""

    latency = "latency"
    throughput = "throughput"


class Precision(StrEnum):
    """Which arithmetic the plan may choose."""

    own = "own"
    any = "any"
    f64 = "f64"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    i8 = "i8"


ModelPath: TypeAlias = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A .onnx or .tflite file; for plan and run also a bundle.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, nothing else.")]
ObjectiveOption: TypeAlias = Annotated[
    Objective, typer.Option("--objective", help="One answer soonest, or most answers a second.")
]
PrecisionOption: TypeAlias = Annotated[
    Precision, typer.Option("--precision", help="The model's own, any that stays within the tolerance, or this one.")
]
ToleranceOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--tolerance", min=0.0, help="Largest error of a float output, as a part of its range."),
]
TargetsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--targets", "-t", help="Only these targets: exact or a pattern such as 'onnxruntime@*'; repeatable."),
]
BudgetOption: TypeAlias = Annotated[
    float, typer.Option("--budget", min=0.0, help="Seconds to spend on measuring before the first answer.")
]
MemoryLimitOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--memory-limit", metavar="SIZE", help="Hold no more than this, such as 300MB or 1.5GiB; else what is left."
    ),
]
SourceOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--source", help="What MODEL was made from, where only one accelerator reads MODEL: it stands in."),
]
MachineOption: TypeAlias = Annotated[
    Path | None, typer.Option("--machine", help="Plan for this one, as `edgert probe --json` described it.")
]
ProfileOption: TypeAlias = Annotated[
    Path | None, typer.Option("--profile", help="Measure nothing: plan from what `edgert profile` stored there.")
]


def load_arguments(
    objective: Objective, precision: Precision, tolerance: float | None, targets: Sequence[str] | None, budget_s: float,
    *, memory_limit: str | None = None, source: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The keyword arguments of `edgert.load` that these options stand for; `--targets a,b` is two targets."""
    chosen = [part.strip() for text in targets or () for part in text.split(",") if part.strip()]
    return {
        "objective": objective.value,
        "precision": precision.value,
        "tolerance": tolerance,
        "targets": chosen or None,
        "budget_s": budget_s,
        **({} if memory_limit is None else {"memory_limit_bytes": size_bytes(memory_limit)}),
        **({} if source is None else {"source": source}),
    }


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def size_bytes(text: str) -> int:
    """'300MB', '1.5GiB' or '4096' in bytes."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmg]i?)?b?\s*", text.lower())
    try:
        found = 0 if match is None else int(float(match[1]) * _UNITS[match[2] or ""])
    except ValueError:
        found = 0
    if found <= 0:
        raise typer.BadParameter(f"{text!r} is no size; write such as 300MB", param_hint="--memory-limit")
    return found


class FitChoice(StrEnum):
    """How a picture meets the size that the model wants."""

    stretch = "stretch"
    crop = "crop"
    pad = "pad"


class LayoutChoice(StrEnum):
    """Order of a picture's axes."""

    nchw = "nchw"
    nhwc = "nhwc"
    chw = "chw"
    hwc = "hwc"
    nhw = "nhw"
    hw = "hw"


def size(text: str) -> tuple[int, int] | None:
    """'224x320' or '224' as (height, width); '' as None."""
    if not text:
        return None
    parts = text.lower().split("x")
    try:
        height, width = (int(parts[0]), int(parts[-1])) if len(parts) <= 2 else (0, 0)
    except ValueError:
        height, width = 0, 0
    if min(height, width) < 1:
        raise typer.BadParameter(f"{text!r} is not HEIGHTxWIDTH", param_hint="--resize")
    return height, width


def numbers(text: str, option: str) -> tuple[float, ...]:
    """'0.485,0.456,0.406' as three numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number or numbers with commas", param_hint=option) from error
