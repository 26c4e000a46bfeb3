"""Make a plan for a model on a machine: candidates -> tried -> checked -> raced -> remembered. The one place that
makes a `Plan`.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from edgert.buckets import free_axes, shapes_of
from edgert.devices.backend import Source
from edgert.errors import Cancelled, InputError, ModelUnsupported, OptionError
from edgert.feed import Feeder
from edgert.formats import ModelFile
from edgert.formats.artefacts import Artefact
from edgert.graph import Graph
from edgert.machine import Machine
from edgert.measure import RUN_LIMIT_S
from edgert.options import is_list
from edgert.plan import Controls, Plan, Segment, Verification
from edgert.planning.candidates import LAST_RESORT, Candidates, candidates
from edgert.planning.choose import Choice, check, fastest, latency_choice, standing, throughput_choice
from edgert.planning.drift import distrust
from edgert.planning.fallbacks import fallbacks, require_last_resort, unproven
from edgert.planning.mixed import mixed
from edgert.planning.reference import LIMIT_S, Checker, Reference, evaluate, settle
from edgert.planning.remember import Memory, Wish
from edgert.planning.trials import Course, Trial, Trials, run_limit_s
from edgert.profile import Row, Timing
from edgert.samples import controls, digest_of, synthesise
from edgert.tensor import Data
from edgert.verify import draws_random_numbers

__all__ = ["Assignment", "Memory", "Wish", "distrust", "first_plan", "make_plan", "user_samples"]

_log = logging.getLogger(__name__)
_SMALL_BYTES = 1 << 20
_ONE_AT_A_TIME = threading.Lock()
"""Two races in one process would time each other."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Everything that a planning needs."""

    file: ModelFile
    machine: Machine
    wish: Wish
    memory: Memory
    budget_s: float
    samples: Sequence[Mapping[str, Data]] = ()
    """The user's; empty for synthesised ones."""
    progress: Callable[[str, float], None] = lambda _message, _share: None
    """Told what is going on, and which share of the budget is spent (0 to 1)."""
    artefact: Artefact | None = None
    """What was compiled from the model for one accelerator, where the user has such a file."""

    @property
    def source(self) -> Source:
        graph = self.file.graph
        return Source(
            self.file.path, self.file.format, graph.inputs, graph.outputs, self.file.precision, self.artefact
        )  # fmt: skip


def make_plan(assignment: Assignment, cancelled: Callable[[], bool] = lambda: False) -> Plan:
    """The fastest plan that is right, measured now.

    Args:
        assignment: what to plan.
        cancelled: asked now and then; the planning ends when it says so.

    Raises:
        Cancelled: `cancelled` said so.
        ModelUnsupported: no target runs the model; with each one's reason.
        UnknownTarget, OptionError: the wish cannot be met.
    """
    source, wish = assignment.source, assignment.wish
    found = candidates(source, assignment.machine, wish.precision, wish.targets)
    samples = _samples(assignment)
    with _ONE_AT_A_TIME:
        started_s = time.monotonic()
        course = Course(
            source, assignment.machine, samples, assignment.memory.compiled(), started_s + assignment.budget_s,
            assignment.budget_s, assignment.memory.rows(wish.samples), _corners(assignment),
        )  # fmt: skip

        def say(message: str) -> None:
            if cancelled():
                raise Cancelled(f"planning of {source.path.name} was called off.")
            spent = (time.monotonic() - started_s) / assignment.budget_s if assignment.budget_s else 1.0
            assignment.progress(message, min(1.0, spent))

        if _takes_turns(assignment):
            plan = _streamed(assignment, found, course, say)
        else:
            with Trials(course) as work:
                plan = _measured(assignment, found, course, work, say)
    steering = plan.controls or _controls(assignment, plan, samples)
    plan = replace(plan, shapes=_measured_shapes(assignment.file.graph, samples), controls=steering)
    assignment.memory.keep_plan(wish, plan)
    # What ran out of a short time is tried again when there is more of it.
    lasting = [row for row in plan.candidates if course.patient or row.outcome != "timeout"]
    assignment.memory.keep_rows(wish.samples, plan.verification.reference, lasting)
    return plan


def _measured_shapes(graph: Graph, samples: Sequence[Mapping[str, Data]]) -> dict[str, tuple[int, ...]]:
    """Where the graph leaves some open: those of the first sample, on which everything is timed."""
    return shapes_of(samples[0]) if samples and free_axes(graph.inputs) else {}


def _takes_turns(assignment: Assignment) -> bool:
    """Whether the model may be too large to be held whole under the limit."""
    limit_bytes = assignment.wish.memory_limit_bytes
    if not limit_bytes:
        return False
    from edgert.planning.streaming import fits_whole

    return not fits_whole(assignment.file, limit_bytes)


def _streamed(assignment: Assignment, found: Candidates, course: Course, say: Callable[[str], None]) -> Plan:
    """A plan whose segments take turns in memory."""
    from edgert.planning.streaming import stream  # as for splits

    def plan_of(choice: Choice, found: Candidates, reference: Reference) -> Plan:
        return _plan(assignment, choice, found, reference)

    if course.cache is not None:
        return stream(assignment, found, course, say, plan_of)
    with tempfile.TemporaryDirectory(prefix="edgert-") as folder:
        return stream(assignment, found, replace(course, cache=Path(folder)), say, plan_of)


def _samples(assignment: Assignment) -> list[Mapping[str, Data]]:
    """The user's, else synthesised; none for a graph that does not say what it takes."""
    graph = assignment.file.graph
    if assignment.samples:
        feed = Feeder(graph.inputs, sorted(graph.optional_inputs))
        return [feed(sample) for sample in assignment.samples]
    # A second and third set catch a library that ignores an input: cheap for small models, too slow for large ones.
    count = 3 if graph.weight_bytes < _SMALL_BYTES else 1
    try:
        return list(synthesise(graph, count=count, corners=_corners(assignment)))
    except OptionError as error:
        _log.warning("%s: no inputs to check and time on: %s", assignment.file.path.name, error)
        return []


def _controls(assignment: Assignment, plan: Plan, samples: Sequence[Mapping[str, Data]]) -> Controls | None:
    """The inputs that steer the model, and the values of them that were checked: none where nothing confirmed the plan.

    None for a model without such inputs, for random numbers, and for one whose memory has no room for a second opinion.
    """
    graph = assignment.file.graph
    names = controls(graph)
    if not names or plan.residency is not None or draws_random_numbers(graph):
        return None
    plain = samples[: len(samples) - 1] if _corners(assignment) else samples
    sets = [{name: sample.get(name) for name in names} for sample in plain] if plan.verification.reference else []
    return Controls(names, tuple(dict.fromkeys(digest_of([each]) for each in sets)), assignment.wish.tolerance)


def _corners(assignment: Assignment) -> bool:
    """Whether the last set is drawn from corners: not for quantised models, which round ties as each library likes."""
    small = assignment.file.graph.weight_bytes < _SMALL_BYTES
    return small and not assignment.samples and assignment.file.precision != "i8"


def _measured(
    assignment: Assignment, found: Candidates, course: Course, work: Trials, say: Callable[[str], None]
) -> Plan:
    checker = Checker(assignment.file.graph, course, assignment.wish.tolerance)
    with ThreadPoolExecutor(max_workers=1) as pool:
        evaluation = evaluate(pool, course)
        trials = work.run(found.targets, lambda target: say(f"trying {target}"))
        trials += work.run(mixed(course.source, [trial.row for trial in trials]))
        say("waiting for the reference answer")
        evaluated = evaluation.result()
    reference = settle(evaluated, trials, checker, course.source.precision)
    trials = check(trials, reference, checker)
    if not any(trial.contestant for trial in trials):
        trials.extend(_last_resort(found, work, reference, checker, evaluated))
    if not any(trial.contestant for trial in trials) and any(trial.prepared for trial in trials):
        return _untried(assignment, trials, found)
    try:
        rows = fastest(trials, course, say)
    except ModelUnsupported:
        if any(trial.row.target.backend == LAST_RESORT for trial in trials):
            raise
        trials = standing(trials) + _last_resort(found, work, reference, checker, evaluated)
        rows = fastest(trials, course, say)
    if assignment.wish.objective == "throughput":
        choice = throughput_choice(rows, trials, work, say)
    else:
        choice = latency_choice(rows)
    plan = _plan(assignment, choice, found, reference)
    from edgert.planning.setting import Setting
    from edgert.planning.split import consider  # with the solvers: a load from the cache needs none of them

    return consider(plan, Setting(assignment, course, work, standing(trials), reference, checker, say))


def _untried(assignment: Assignment, trials: Sequence[Trial], found: Candidates) -> Plan:
    """A plan for a model that prepares and refuses the samples everywhere: then the samples are at fault.

    Raises:
        InputError: they were the user's own.
    """
    rows = tuple(trial.row for trial in sorted(trials, key=lambda trial: not trial.prepared))
    if assignment.samples:
        raise InputError(
            f"{assignment.file.path}: every target refused the samples ({rows[0].reason}).",
            "Pass samples= that the model takes.",
        )
    reason = f"no target took the synthesised inputs ({rows[0].reason}); pass samples= to check and time on"
    others = dict.fromkeys(trial.row.target for trial in trials if trial.prepared)
    plan = _plan(assignment, latency_choice(rows), found, Reference("", reason=reason))
    fallbacks = [target for target in others if target.backend != rows[0].target.backend]
    # What the caller sends first is then checked in their place.
    first = None if draws_random_numbers(assignment.file.graph) else Controls((), (), assignment.wish.tolerance)
    return replace(plan, fallbacks=tuple(fallbacks), controls=first)


def _last_resort(
    found: Candidates, work: Trials, reference: Reference, checker: Checker, evaluated: Reference
) -> list[Trial]:
    """The evaluator itself, when nothing else runs the model or gets it right; the user's own targets= is obeyed."""
    targets = [row.target for row in found.left_out if row.target.backend == LAST_RESORT]
    if evaluated.late and work.course.run_limit_s <= LIMIT_S:  # it had as long already, for the reference
        return [Trial(Row(target, "timeout", evaluated.reason)) for target in targets]
    return check(work.run(targets), reference, checker)


def _plan(assignment: Assignment, choice: Choice, found: Candidates, reference: Reference) -> Plan:
    graph, winner = assignment.file.graph, choice.winner
    segment = Segment(
        winner.target, (), tuple(value.name for value in graph.inputs), tuple(value.name for value in graph.outputs)
    )
    timing = winner.timing or Timing(0.0, 0.0, 0.0, 0, 0)
    resorts = fallbacks(winner, choice.rows, reference, found, assignment.file.precision)
    if assignment.wish.targets is None:
        require_last_resort(graph, assignment.file.path, winner, resorts, choice.rows)
    tried = {row.target for row in choice.rows}
    left_out = tuple(row for row in found.left_out if row.target not in tried)
    return Plan(
        model=assignment.memory.model,
        machine=assignment.machine.fingerprint,
        versions=_versions(assignment.machine),
        objective=assignment.wish.objective,
        precision=assignment.wish.precision,
        format=assignment.file.format,
        own_precision=assignment.file.precision,
        inputs=graph.inputs,
        outputs=graph.outputs,
        segments=(segment,),
        instances=choice.instances,
        fallbacks=resorts,
        verification=Verification(
            reference.name, winner.errors if reference.name else (), reference.reason, reference.disputed
        ),
        measured_s=timing.p50_s,
        items_per_s=timing.items_per_s,
        candidates=(*choice.rows, *left_out),
        optional_inputs=tuple(sorted(graph.optional_inputs)),
        budget_s=assignment.budget_s,
        complete=_is_complete(choice.rows, assignment.budget_s),
        notes=(*_notes(reference), *_artefact_notes(assignment, winner)),
    )


def _is_complete(rows: Sequence[Row], budget_s: float) -> bool:
    """Whether a larger budget would find no more: everything was tried, and nothing cut short that more time helps."""
    short = ("untried",) if run_limit_s(budget_s) >= RUN_LIMIT_S else ("untried", "timeout")
    return bool(budget_s) and not any(row.outcome in short for row in rows)


def _notes(reference: Reference) -> tuple[str, ...]:
    if not reference.name:
        return (f"the numbers could not be checked: {reference.reason}",)
    return (f"the numbers are disputed: {reference.disputed}",) if reference.disputed else ()


def _artefact_notes(assignment: Assignment, winner: Row) -> tuple[str, ...]:
    artefact = assignment.artefact
    if artefact is None or not artefact.read_on(winner.target):
        return ()
    return (
        f"{winner.target} runs {artefact.path.name}, {artefact.what}; the fallbacks run {assignment.file.path.name}",
    )


def _versions(machine: Machine) -> dict[str, str]:
    return {backend.name: backend.version for backend in machine.backends if backend.usable}


def first_plan(assignment: Assignment) -> Plan:
    """A plan at once, for `budget_s=0`: the first CPU target, in the order of promise, that prepares and runs in a
    child.

    Nothing is timed or compared, and the plan says so.

    Raises:
        ModelUnsupported: no CPU target runs the model.
        InputError: some prepare it, and refuse the user's samples.
    """
    source = assignment.source
    found = candidates(source, assignment.machine, assignment.wish.precision, assignment.wish.targets)
    resort = [row.target for row in found.left_out if row.target.backend == LAST_RESORT]
    samples = _samples(assignment)
    course = Course(source, assignment.machine, samples, assignment.memory.compiled(), time.monotonic(), 0.0)
    if _takes_turns(assignment):
        return _streamed(assignment, found, course, lambda message: assignment.progress(message, 1.0))
    rows: list[Row] = []
    trials: list[Trial] = []
    with Trials(course) as work:
        instead = mixed(source, [Row(target, "refused") for target in found.targets])
        hung: set[tuple[str, str]] = set()  # another number of threads would end as little
        for target in (*found.targets, *instead, *resort):
            if not target.device.startswith("cpu") and assignment.wish.targets is None:
                continue
            if (target.backend, target.variant) in hung:
                continue
            trial = work.run([target])[0]
            row = trial.row
            if row.outcome == "timeout":
                hung.add((target.backend, target.variant))
            if row.outcome == "ok":
                others = unproven(row.target, rows, found, source.precision)
                choice = Choice(
                    (replace(row, reason="first that ran"), *rows, *others), row, latency_choice((row,)).instances
                )
                plan = _plan(assignment, choice, found, Reference("", reason="budget_s=0: nothing was compared yet"))
                # The evaluator alone may come into this process without having been tried: it is Python, and slow.
                last = resort[:1] if row.target not in resort else []
                return replace(plan, fallbacks=(*(other.target for other in others), *last))
            rows.append(row)
            trials.append(trial)
            if trial.prepared and not samples:
                break  # the others would say as little
    if any(trial.prepared for trial in trials):
        plan = _untried(assignment, trials, found)
        return replace(plan, fallbacks=tuple(dict.fromkeys((*plan.fallbacks, *resort[:1]))))
    reasons = "; ".join(f"{row.target}: {row.reason}" for row in rows) or "no backend reads this format"
    raise ModelUnsupported(
        f"{source.path}: no CPU target runs this model ({reasons}).", "`edgert probe` shows what would add a backend."
    )


def user_samples(samples: Sequence[Mapping[str, Data]] | None) -> tuple[tuple[Mapping[str, Data], ...], str]:
    """The user's samples and their digest; ('' and none) for none.

    Raises:
        OptionError: not a sequence of mappings from input name to array.
    """
    if samples is None:
        return (), ""
    if not is_list(samples) or not all(isinstance(sample, Mapping) for sample in samples):
        raise OptionError("samples= is not a list of mappings.", "Pass [{input name: array, ...}, ...].")
    return tuple(samples), digest_of(samples) if samples else ""
