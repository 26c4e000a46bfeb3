"""What answers when the chosen target fails: an ordered list that ends in what this board can always run.

1. Other accelerators that were right, fastest first: one that is lost rarely takes the others along.
2. CPU targets that were right, of each library the fastest. Those with the model's own arithmetic come first: a
   quantised model that was meant for an NPU falls to the CPU's integer kernels, not to floats.
3. onnx's evaluator, where it ran this model.

What counts is what prepared and ran here, in a child: a library that imports and then refuses this model, or gives
wrong numbers on this board, is not in the list. Each library is tried once whatever the budget, so the list does not
depend on how much time there was. So a .tflite ends in LiteRT (or tflite-runtime, the one for 32-bit boards), and an
.onnx in ONNX Runtime and the evaluator, unless these failed on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgert.errors import NoLastResort
from edgert.formats.artefacts import mark_of
from edgert.graph import Graph
from edgert.planning.candidates import LAST_RESORT, Candidates
from edgert.planning.reference import Reference
from edgert.profile import Precision, Row, Target

AT_ONCE = "budget_s=0: stands in, and is tried in a child process when it is needed"
"""Why a fallback of a plan that was made at once is untried."""


def fallbacks(
    winner: Row, rows: Sequence[Row], reference: Reference, found: Candidates, own: Precision
) -> tuple[Target, ...]:
    """The targets to fall back on, in order; see above.

    Where nothing confirmed the yardstick, whoever differs from it is not known to be wrong: it comes after the others.

    Args:
        winner: the chosen target's row.
        rows: all that was tried, fastest first.
        reference: by which they were judged.
        found: what was left out among it, the evaluator among that.
        own: the model's own precision.
    """
    usable = [row for row in rows if row.outcome in ("ok", "slow")]
    if not reference.name:
        usable += [row for row in rows if row.outcome == "wrong" and not any(error.mismatch for error in row.errors)]
    best: dict[tuple[str, str, str], Target] = {}
    for row in sorted(usable, key=lambda row: _lowered(row.target, own)):  # stable: the fastest of each stays first
        best.setdefault(_way(row.target), row.target)
    best.pop(_way(winner.target), None)
    place = {row.target: number for number, row in enumerate(usable)}
    ordered = sorted(best.values(), key=lambda target: (_is_cpu(target), _lowered(target, own), place[target]))
    if reference.name == "onnx" and winner.target.backend != LAST_RESORT:
        ordered += [row.target for row in found.left_out if row.target.backend == LAST_RESORT]
    return tuple(ordered)


def unproven(winner: Target, tried: Sequence[Row], found: Candidates, own: Precision) -> tuple[Row, ...]:
    """The rows of fallbacks for a plan that was made at once, where nothing but the winner ran yet.

    Of each way to run on a CPU the most promising target that was not refused already: other libraries first, since
    what ails the winner may ail all of its library, and of these the model's own arithmetic first. None has met this
    board, so whoever runs the plan prepares each in a child process, and only when it is needed.

    Args:
        winner: what ran.
        tried: what was tried before it, and failed.
        found: all that there is, most promising first.
        own: the model's own precision.
    """
    failed = {_way(row.target) for row in tried} | {_way(winner)}
    best: dict[tuple[str, str, str], Target] = {}
    for target in sorted(found.targets, key=lambda target: _lowered(target, own)):  # stable: by promise
        if _is_cpu(target) and _way(target) not in failed:
            best.setdefault(_way(target), target)
    ordered = sorted(best.values(), key=lambda target: (target.backend == winner.backend, _lowered(target, own)))
    return tuple(Row(target, "untried", AT_ONCE) for target in ordered)


def require_last_resort(
    graph: Graph, path: object, winner: Row, resorts: Sequence[Target], rows: Sequence[Row]
) -> None:  # fmt: skip
    """Make certain that something on the CPU can answer for a model that runs on an accelerator.

    Raises:
        NoLastResort: only the accelerator reads it; says who refused it, and what to give instead.
    """
    if _is_cpu(winner.target) or any(_is_cpu(target) for target in resorts):
        return
    mark = mark_of(graph)
    what = f"holds {mark.op}, {mark.what}: " if mark else ""
    refusals = "; ".join(f"{row.target}: {row.reason}" for row in rows if _is_cpu(row.target))
    raise NoLastResort(
        f"{path} {what}runs on {winner.target} alone, and nothing could answer if that is lost "
        f"({refusals or 'no CPU target reads it'}).",
        "Give the model that it was made from: it is compiled for the device here, and the CPU can stand in. Or name "
        "the target in targets= to run it without a last resort.",
        target=str(winner.target),
    )


def _is_cpu(target: Target) -> bool:
    return target.device.startswith("cpu")


def _lowered(target: Target, own: Precision) -> bool:
    """Whether a CPU target computes in another arithmetic than the model's own."""
    return _is_cpu(target) and target.precision != own


def _way(target: Target) -> tuple[str, str, str]:
    return (target.backend, target.variant, target.device)
