"""A plan for a model that is larger than its memory limit: segments that are loaded, run and released in turn.

Every way to run it is tried as it will run: in a child, segment by segment, within the limit. What it held is read
from the kernel, its answers are compared, its time is taken; nothing is chosen that held too much. The ways are tried
one after another, each alone: two children at once would hold twice as much.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from edgert.devices import memory
from edgert.devices.remote import Remote
from edgert.errors import EdgertError, Infeasible
from edgert.execution.hosted import Prepare
from edgert.execution.segments import Parts
from edgert.execution.streaming import LEAN_FOLDER, LeanParts
from edgert.execution.streaming_host import SERVICE, prepare_streamed, resident_of
from edgert.formats import ModelFile
from edgert.graph import Graph
from edgert.measure import RUN_LIMIT_S, sample_name
from edgert.partitioner.blocks import Block, blocks_of
from edgert.partitioner.cuts import UNKNOWN_BYTES, weights_of
from edgert.partitioner.residency import Load, Turns, take_turns
from edgert.plan import Instance, Plan, Residency, Segment, Transfer
from edgert.planning.candidates import LAST_RESORT, Candidates
from edgert.planning.choose import Choice
from edgert.planning.reference import LIMIT_S, Checker, Reference, settle
from edgert.planning.remember import Wish
from edgert.planning.trials import Course, Trial, failed
from edgert.profile import Row, Target, Timing
from edgert.tensor import Data

_log = logging.getLogger(__name__)
_LIBRARY_BYTES = 24 << 20
"""What a library takes beyond being imported: code that is read in when it first runs, threads."""
_MOST_COPIES = 2.5
"""What a library holds of a model's weights at most, times their size in the file (OpenVINO's 2.1, as measured)."""
_COPIES: Mapping[str, float] = {  # library -> the same, to begin with; what it holds is then measured
    "onnxruntime+lean": 1.0, "onnxruntime": 1.1, "openvino": 2.2, "litert+builtin": 1.0, "litert": 2.0,
    LAST_RESORT: 3.0,
}  # fmt: skip
_ATTEMPTS = 3
"""Cuts that are tried for one way before it counts as too large."""
_MOST_RUNS = 5


class Work(Protocol):
    """What of an `Assignment` counts here."""

    @property
    def file(self) -> ModelFile: ...
    @property
    def wish(self) -> Wish: ...
    @property
    def budget_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to run the model in turns, tried."""

    row: Row
    turns: Turns
    segments: tuple[Segment, ...]
    answers: list[dict[str, Data]]
    base_bytes: int
    """What this process and the library hold without a model."""
    peak_bytes: int
    """The most that a run held beyond that."""
    weights_bytes: tuple[int, ...]
    """Of each segment, as the target holds them."""
    copies: float
    """What it holds of the weights, times their size in the file; 0 when that was not asked."""


@dataclass
class Rehearsal:
    """What trying a model in turns takes."""

    file: ModelFile
    course: Course
    limit_bytes: int
    parts: LeanParts
    copies: Parts
    """For who takes no links: onnx's evaluator refuses weights that have a second name."""
    say: Callable[[str], None]
    """Told what is going on; raises `Cancelled` to end it."""
    blocks: Sequence[Block] = field(init=False)
    values_bytes: Sequence[int] = field(init=False)
    """Of each block, while it runs."""

    def __post_init__(self) -> None:
        graph = self.file.graph
        self.blocks = blocks_of(graph)
        self.values_bytes = _values_bytes(graph, self.blocks, _free(graph, self.course.samples))

    def loads(self, copies: float) -> list[Load]:
        """What the blocks take where a library holds so many times the weights."""
        graph = self.file.graph
        return [
            Load(block.id, int(copies * weights_of(graph, block)), values)
            for block, values in zip(self.blocks, self.values_bytes, strict=True)
        ]

    def attempt(self, target: Target, most_bytes: int | None = None) -> Attempt:
        """The model in turns on a target, cut so that what it really holds stays within the limit.

        Args:
            target: on the CPU.
            most_bytes: of the file's weights in one segment, where it can be helped.

        Raises:
            Infeasible: some block alone does not fit.
            EdgertError: the target refuses a segment, fails or crashes.
        """
        copies = _COPIES.get(_library(target), _MOST_COPIES)
        for _ in range(_ATTEMPTS):
            found, excess = self._cut_and_run(target, copies, most_bytes)
            if excess <= 0:
                return found
            room = self.limit_bytes - found.base_bytes
            # What it held decides, with a twentieth to spare: held grows with the weights that are held at once.
            copies *= 1.05 * (room + excess) / room
            _log.info("%s held %d bytes too many: cutting for %.2fx the weights", target, excess, copies)
        raise Infeasible(
            f"{target} holds {found.base_bytes + found.peak_bytes} bytes in the smallest segments that were tried, "
            f"{excess} more than the limit.", "Raise the memory limit.",
            block=None, limit="memory", excess=float(excess),
        )  # fmt: skip

    def alone(self, target: Target, segments: Sequence[Segment]) -> Attempt:
        """As `attempt`, with the segments of another target, each held alone: whether it can stand in.

        Raises:
            Infeasible: it holds more than the limit.
            EdgertError: as `attempt`.
        """
        held = tuple((index,) for index in range(len(segments)))
        with _Child(target, self.course) as child:
            base_bytes = child.base_bytes()
            turns = Turns((), held, 0)
            found = child.run(self, segments, turns, base_bytes=base_bytes, weights=(), copies=0.0, runs=1)
        excess = found.base_bytes + found.peak_bytes - self.limit_bytes
        if excess > 0:
            raise Infeasible(
                f"{target} holds {excess} bytes more than the limit in the chosen segments.", "Raise the memory limit.",
                block=None, limit="memory", excess=float(excess),
            )  # fmt: skip
        return found

    def _cut_and_run(self, target: Target, copies: float, most_bytes: int | None) -> tuple[Attempt, int]:
        with _Child(target, self.course) as child:
            base_bytes = child.base_bytes()
            budget_bytes = self.limit_bytes - base_bytes - _LIBRARY_BYTES
            loads = self.loads(copies)
            turns = take_turns(loads, budget_bytes, None if most_bytes is None else int(copies * most_bytes))
            segments = self._segments(target, turns)
            self.say(f"trying {target} in {len(segments)} segments")
            weights = tuple(sum(load.weights_bytes for load in loads[low:high]) for low, high in turns.segments)
            found = child.run(
                self, segments, turns, base_bytes=base_bytes, weights=weights, copies=copies, runs=_MOST_RUNS
            )
        return found, found.base_bytes + found.peak_bytes - self.limit_bytes

    def _segments(self, target: Target, turns: Turns) -> tuple[Segment, ...]:
        graph = self.file.graph
        if len(turns.segments) == 1:
            inputs, outputs = (tuple(value.name for value in values) for values in (graph.inputs, graph.outputs))
            return (Segment(target, (), inputs, outputs, cause="all of it fits"),)
        made = []
        for low, high in turns.segments:
            nodes = sorted(node for block in self.blocks[low:high] for node in block.nodes)
            inputs, outputs = graph.boundary(frozenset(nodes))
            names_of = tuple(graph.nodes[index].name for index in nodes)
            made.append(Segment(target, names_of, inputs, outputs, cause="takes its turn in memory"))
        return tuple(made)


class _Child:
    """A child in which one target is tried; ended afterwards, since an idle one holds its library."""

    def __init__(self, target: Target, course: Course) -> None:
        self.remote = Remote(f"{target} in turns", service=SERVICE)
        self._target, self._course = target, course

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.remote.close()

    def base_bytes(self) -> int:
        """What this process and the child hold once it has loaded the library."""
        self.remote.reaches(self._target.backend, [self._course.machine.device(self._target.device)],
                            timeout_s=self._course.prepare_limit_s)  # fmt: skip
        return memory.resident().now_bytes + resident_of(self.remote).now_bytes

    def run(
        self, work: Rehearsal, segments: Sequence[Segment], turns: Turns,
        *, base_bytes: int, weights: tuple[int, ...], copies: float, runs: int,
    ) -> Attempt:  # fmt: skip
        """Run the segments in turns on every sample; the first sample several times, where time allows."""
        course, remote, target, values = self._course, self.remote, self._target, work.file.graph.values
        device = course.machine.device(target.device)
        files = work.copies if target.backend == LAST_RESORT else work.parts
        parts = [Prepare(files.source(segment, values), target, device) for segment in segments]
        for index, sample in enumerate(course.samples):
            # Not by `measure.hold`, whose ceiling counts the weights that ONNX Runtime maps, and not what is resident.
            remote.hold(sample_name(index), sample)
        resident_of(remote, reset=True)
        outputs = [value.name for value in course.source.outputs]
        runnable = prepare_streamed(remote, parts, outputs, turns.held, timeout_s=course.prepare_limit_s)
        limit_s = LIMIT_S if target.backend == LAST_RESORT else max(RUN_LIMIT_S, 3 * course.budget_s)
        answers, times = [], []
        for index in range(len(course.samples)):
            made, run_s = runnable.run_held(sample_name(index), timeout_s=limit_s)
            answers.append(made)
            times.append(run_s)
        while len(times) < runs and time.monotonic() < course.deadline_s and target.backend != LAST_RESORT:
            times.append(runnable.run_held(sample_name(0), timeout_s=limit_s)[1])
        found = resident_of(remote)
        peak_bytes = max(0, memory.resident().now_bytes + found.peak_bytes - base_bytes)
        times.sort()
        timing = Timing(statistics.median(times), times[0], times[-1], len(times), 1) if times else None
        row = Row(target, "ok", "", timing, (), runnable.ran_on, runnable.prepare_s, peak_bytes)
        return Attempt(row, turns, tuple(segments), answers, base_bytes, peak_bytes, weights, copies)


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
    room = rehearsal.limit_bytes - rival.base_bytes - _LIBRARY_BYTES - max(rehearsal.values_bytes)
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
    free = _free(graph, rehearsal.course.samples)
    makers = {name: index for index, segment in enumerate(segments) for name in segment.outputs}
    moved: dict[tuple[int, int], list[str]] = {}
    for sink, segment in enumerate(segments):
        for name in segment.inputs:
            if name in makers:
                moved.setdefault((makers[name], sink), []).append(name)
    return tuple(
        Transfer(source, sink, tuple(names), sum(_size(graph, name, free) for name in names))
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
    return int(memory.resident().now_bytes + _LIBRARY_BYTES + _MOST_COPIES * weight_bytes)


def _uncuttable(file: ModelFile, limit_bytes: int) -> Infeasible:
    """For a .tflite on a board that has no reader for it."""
    excess_bytes = _whole_bytes(file) - limit_bytes
    return Infeasible(
        f"{file.path} ({file.path.stat().st_size} bytes) may not fit within {limit_bytes} bytes as a whole, and "
        "nothing here can cut it into segments that take turns.",
        f"Raise the memory limit by {excess_bytes} bytes, or bring a bundle that was compiled within it elsewhere.",
        block=None, limit="memory", excess=float(excess_bytes),
    )  # fmt: skip


# ---- sizes of values


def _values_bytes(graph: Graph, blocks: Sequence[Block], free: int) -> list[int]:
    """Of each block, in their order: what waits for it or later ones, and all that it makes."""
    position = {node: number for number, block in enumerate(blocks) for node in block.nodes}
    born = {value.name: 0 for value in graph.inputs}
    born |= {name: position[maker] for name, maker in graph.producers.items()}
    outputs = {value.name for value in graph.outputs}
    change = [0] * (len(blocks) + 1)
    for name, first in born.items():
        last = max((position[reader] for reader in graph.consumers.get(name, ())), default=first)
        size = _size(graph, name, free)
        change[first] += size
        change[len(blocks) if name in outputs else last + 1] -= size
    found, alive = [], 0
    for number in range(len(blocks)):
        alive += change[number]
        found.append(alive)
    return found


def _size(graph: Graph, name: str, free: int) -> int:
    value = graph.values.get(name)
    size = None if value is None else value.size_bytes(free)
    return UNKNOWN_BYTES if size is None else size


def _free(graph: Graph, samples: Sequence[Mapping[str, Data]]) -> int:
    """The largest size that the samples give a free dimension."""
    sizes = [1]
    for sample in samples:
        for value in graph.inputs:
            shape = getattr(sample.get(value.name), "shape", ())
            sizes += [got for got, size in zip(shape, value.shape or (), strict=False) if isinstance(size, str)]
    return max(sizes)


def _library(target: Target) -> str:
    return f"{target.backend}+{target.variant}" if target.variant else target.backend
