"""A plan for a model that is larger than its memory limit: segments that are loaded, run and released in turn.

Every way to run it is rehearsed (`edgert.planning.rehearsal`), its answers are compared, its time is taken; nothing is
chosen that held too much.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from edgert.devices import memory
from edgert.errors import EdgertError, Infeasible
from edgert.execution.segments import Parts
from edgert.execution.streaming import LEAN_FOLDER, LeanParts
from edgert.formats import ModelFile
from edgert.plan import Instance, Plan, Residency, Segment, Transfer
from edgert.planning.candidates import LAST_RESORT, Candidates
from edgert.planning.choose import Choice
from edgert.planning.reference import Checker, Reference, settle
from edgert.planning.rehearsal import LIBRARY_BYTES, MOST_COPIES, Attempt, Rehearsal, free_size, size_of
from edgert.planning.remember import Wish
from edgert.planning.trials import Course, Trial, failed
from edgert.profile import Row, Target

_log = logging.getLogger(__name__)


class Work(Protocol):
    """What of an `Assignment` counts here."""

    @property
    def file(self) -> ModelFile: ...
    @property
    def wish(self) -> Wish: ...
    @property
    def budget_s(self) -> float: ...


def stream(
    work: Work, found: Candidates, course: Course, say: Callable[[str], None],
    plan_of: Callable[[Choice, Candidates, Reference], Plan],
) -> Plan:  # fmt: skip
    """The fastest plan that is right and stays within `Wish.memory_limit_bytes`, its segments taking turns.

    Args:
        work: what to plan.
        found: the targets that there are.
        course: samples, machine and time.
        say: told what is going on; raises `Cancelled`.
        plan_of: makes the plan of a whole model, of which the segments are then replaced.

    Raises:
        Infeasible: no target runs it within the limit: says for the one that came nearest which block, how many bytes
            it needs, and by how many it misses.
    """
    limit_bytes = work.wish.memory_limit_bytes
    if not work.file.graph.nodes:
        raise _uncuttable(work.file, limit_bytes)
    folder = course.cache
    assert folder is not None  # whoever plans in turns gives a folder: the segments are files
    parts = LeanParts(course.source, folder / LEAN_FOLDER, lambda: work.file)
    copies = Parts(course.source, folder / "segments", lambda: work.file)
    rehearsal = Rehearsal(work.file, course, limit_bytes, parts, copies, say)
    attempts, trials, misses = _attempts(rehearsal, ways(found, course, work.wish), quick=not work.budget_s)
    if work.budget_s and len({target.backend for target in attempts}) < 2:  # no other library confirms anything
        resort = [row.target for row in found.left_out if row.target.backend == LAST_RESORT]
        more = _attempts(rehearsal, resort, quick=True)
        attempts, trials, misses = attempts | more[0], trials + more[1], misses + more[2]
    checker = Checker(work.file.graph, course, work.wish.tolerance)
    reference = _reference(trials, checker, course, quick=not work.budget_s)
    trials = [_checked(trial, reference, checker) for trial in trials]
    right = [trial.row for trial in trials if trial.row.outcome == "ok" and trial.row.timing is not None]
    right.sort(key=lambda row: (row.target.backend == LAST_RESORT, row.timing.p50_s if row.timing else 0.0))
    if not right:
        raise _refusal(misses, trials, limit_bytes, work.file)
    winner, others = attempts[right[0].target], right[1:]
    winner = _cut_for_two(rehearsal, winner, [attempts[row.target] for row in others])
    standins, notes = _standins(rehearsal, winner, others)
    rows = (*right, *(trial.row for trial in trials if trial.row.outcome != "ok"))
    plan = plan_of(Choice(rows, right[0], (Instance(0),)), found, reference)
    parts.prune(winner.segments)
    copies.prune(winner.segments if winner.row.target.backend == LAST_RESORT else ())
    return _in_turns(plan, rehearsal, winner, standins, notes)


def ways(found: Candidates, course: Course, wish: Wish) -> list[Target]:
    """Targets to try in turns: of each library on the CPU, at each precision, the one with most threads.

    ONNX Runtime is taken in its lean form unless the user named another; its execution providers, which copy the
    weights, only if named. A .tflite whose weights lie behind its tables is read by LiteRT alone.
    """
    best: dict[tuple[str, str, str], Target] = {}
    for target in found.targets:
        lean = target
        if wish.targets is None and target.backend == "onnxruntime":
            if target.variant:
                continue
            lean = replace(target, variant="lean")
        foreign = course.source.format == "tflite" and lean.backend == "openvino"
        if lean.device.startswith("cpu") and not foreign:
            key = (lean.backend, lean.variant, lean.precision)
            best[key] = max(best.get(key, lean), lean, key=lambda each: (each.device == "cpu:0", each.threads))
    return list(best.values())


def _attempts(
    rehearsal: Rehearsal, targets: Sequence[Target], *, quick: bool
) -> tuple[dict[Target, Attempt], list[Trial], list[Infeasible]]:
    """Each way tried, in the order of promise; `quick`: until one runs."""
    attempts: dict[Target, Attempt] = {}
    trials: list[Trial] = []
    misses: list[Infeasible] = []
    for position, target in enumerate(targets):
        if position > 1 and time.monotonic() > rehearsal.course.deadline_s:
            trials.append(Trial(Row(target, "untried", "the budget was spent")))
            continue
        try:
            attempts[target] = found = rehearsal.attempt(target)
        except Infeasible as error:
            misses.append(error)
            trials.append(Trial(Row(target, "refused", error.message[:400])))
        except EdgertError as error:
            trials.append(Trial(failed(target, error)))
        else:
            trials.append(Trial(found.row, None, found.answers))
            if quick:
                break
    return attempts, trials, misses


def _reference(trials: Sequence[Trial], checker: Checker, course: Course, *, quick: bool) -> Reference:
    if quick:
        return Reference("", reason="budget_s=0: nothing was compared")
    if not course.samples:
        return Reference("", reason="there are no inputs to check on")
    resort = next((trial for trial in trials if trial.row.target.backend == LAST_RESORT and trial.answers), None)
    reason = "the evaluator was not needed, or did not run within the limit"
    evaluated = Reference("onnx", tuple(resort.answers)) if resort else Reference("", reason=reason)
    others = [trial for trial in trials if trial is not resort]
    return settle(evaluated, others, checker, course.source.precision)


def _checked(trial: Trial, reference: Reference, checker: Checker) -> Trial:
    """The trial with its errors against the reference; 'wrong' when it leaves the tolerance."""
    if not trial.answers or not reference.answers:
        return trial
    errors = checker.errors(reference.answers, trial.answers)
    reason = checker.reason(errors, trial.row.target)
    row = replace(trial.row, errors=errors, outcome="wrong" if reason else "ok", reason=reason)
    return replace(trial, row=row)


def _cut_for_two(rehearsal: Rehearsal, winner: Attempt, others: Sequence[Attempt]) -> Attempt:
    """The winner, cut so finely that the best of another library can hold each segment alone: a plan needs a fallback.

    A winner that cannot be cut so, or does not run so, stays as it was.
    """
    rival = next((each for each in others if each.row.target.backend != winner.row.target.backend), None)
    if rival is None:
        return winner
    room = rehearsal.limit_bytes - rival.base_bytes - LIBRARY_BYTES - max(rehearsal.values_bytes)
    most_bytes = int(room / (1.05 * max(rival.copies, 1.0)))
    if max(winner.weights_bytes) <= most_bytes * winner.copies:
        return winner
    try:
        return rehearsal.attempt(winner.row.target, most_bytes)
    except EdgertError as error:
        _log.info("%s cannot be cut for a fallback on %s: %s", winner.row.target, rival.row.target, error.message)
        return winner


def _standins(rehearsal: Rehearsal, winner: Attempt, others: Sequence[Row]) -> tuple[tuple[Target, ...], list[str]]:
    """Of the other targets those that stay within the limit in the winner's segments, fastest first."""
    found, notes = [], []
    for row in others:
        if row.target.backend == winner.row.target.backend and row.target.variant == winner.row.target.variant:
            continue
        try:
            rehearsal.alone(row.target, [replace(segment, target=row.target) for segment in winner.segments])
            found.append(row.target)
        except EdgertError as error:
            notes.append(f"{row.target} is no fallback: {error.message[:200]}")
    return tuple(found), notes


def _in_turns(
    plan: Plan, rehearsal: Rehearsal, winner: Attempt, standins: tuple[Target, ...], notes: Sequence[str]
) -> Plan:
    values = rehearsal.file.graph.values
    crossing = dict.fromkeys(name for segment in winner.segments for name in (*segment.inputs, *segment.outputs))
    residency = Residency(
        rehearsal.limit_bytes, winner.base_bytes, winner.turns.held, winner.weights_bytes, winner.peak_bytes
    )
    return replace(
        plan,
        segments=winner.segments,
        instances=tuple(Instance(index) for index in range(len(winner.segments))),
        transfers=_transfers(winner.segments, rehearsal),
        values=tuple(values[name] for name in crossing),
        fallbacks=standins,
        residency=residency,
        items_per_s=0.0,
        notes=(*plan.notes, *notes),
    )


def _transfers(segments: Sequence[Segment], rehearsal: Rehearsal) -> tuple[Transfer, ...]:
    graph = rehearsal.file.graph
    free = free_size(graph, rehearsal.course.samples)
    makers = {name: index for index, segment in enumerate(segments) for name in segment.outputs}
    moved: dict[tuple[int, int], list[str]] = {}
    for sink, segment in enumerate(segments):
        for name in segment.inputs:
            if name in makers:
                moved.setdefault((makers[name], sink), []).append(name)
    return tuple(
        Transfer(source, sink, tuple(names), sum(size_of(graph, name, free) for name in names))
        for (source, sink), names in sorted(moved.items())
    )


def _refusal(misses: Sequence[Infeasible], trials: Sequence[Trial], limit_bytes: int, file: ModelFile) -> EdgertError:
    if misses:
        nearest = min(misses, key=lambda error: error.excess or 0.0)
        return Infeasible(
            f"{file.path} ({file.graph.weight_bytes} bytes of weights) does not run within {limit_bytes} bytes: "
            f"{nearest.message}", nearest.remedy, block=nearest.block, limit="memory", excess=nearest.excess,
        )  # fmt: skip
    reasons = "; ".join(f"{trial.row.target}: {trial.row.reason}" for trial in trials) or "nothing here reads it"
    return Infeasible(
        f"{file.path}: no target runs it in turns within {limit_bytes} bytes ({reasons}).",
        "Raise the memory limit, or look at `edgert probe` for what would add a backend.",
        block=None, limit="memory", excess=None,
    )  # fmt: skip


def fits_whole(file: ModelFile, limit_bytes: int) -> bool:
    """Whether any library may hold the whole model within the limit, beside what this process holds already."""
    return _whole_bytes(file) <= limit_bytes


def _whole_bytes(file: ModelFile) -> int:
    """What holding the whole model may take at most; of one whose nodes are not known, by the size of its file."""
    weight_bytes = file.graph.weight_bytes if file.graph.nodes else file.path.stat().st_size
    return int(memory.resident().now_bytes + LIBRARY_BYTES + MOST_COPIES * weight_bytes)


def _uncuttable(file: ModelFile, limit_bytes: int) -> Infeasible:
    """For a .tflite on a board that has no reader for it."""
    excess_bytes = _whole_bytes(file) - limit_bytes
    return Infeasible(
        f"{file.path} ({file.path.stat().st_size} bytes) may not fit within {limit_bytes} bytes as a whole, and "
        "nothing here can cut it into segments that take turns.",
        f"Raise the memory limit by {excess_bytes} bytes, or bring a bundle that was compiled within it elsewhere.",
        block=None, limit="memory", excess=float(excess_bytes),
    )  # fmt: skip
