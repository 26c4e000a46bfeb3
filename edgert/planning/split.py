"""Whether a model runs faster in pieces: tried where it can pay, kept only if it wins the race beyond the noise."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from edgert.devices.remote import Remote
from edgert.errors import Cancelled, EdgertError
from edgert.execution.hosted import SERVICE, Prepare, prepare_segments
from edgert.execution.segments import Parts
from edgert.formats import ModelFile
from edgert.measure import RUN_LIMIT_S, Contestant, hold, sample_name
from edgert.partitioner.blocks import blocks_of
from edgert.partitioner.race import Interval, Standing, paired_ratio, race
from edgert.plan import Instance, Plan, Segment, Transfer
from edgert.planning.candidates import LAST_RESORT
from edgert.planning.capability import Capability, capability, everything
from edgert.planning.costs import measure_blocks, remembered_links
from edgert.planning.proposals import Proposal, by_capability, by_cost, measured, short
from edgert.planning.quarantine import Quarantine
from edgert.planning.reference import LIMIT_S, Checker, Reference
from edgert.planning.remember import Memory, Wish
from edgert.planning.trials import Course, Trial, Trials
from edgert.planning.workshop import Workshop, reference_values
from edgert.profile import OutputError, Target
from edgert.tensor import Data

_log = logging.getLogger(__name__)
_WORTH_S = 1e-3
"""A model that some target runs whole in less is not split: handing over values costs a tenth of that."""
_SHARE, _RACE_SHARE = 0.5, 0.25
"""Of the budget: what asking and measuring pieces may take at least, and the race of splits against whole models."""
_MOST_WHOLE, _MOST_PARTIAL, _MOST_RACED = 3, 4, 4
_HOPELESS = 2.0
"""A split that is predicted to be that much slower than the best whole model is not raced."""
_FEWEST_DUELS, _MOST_DUELS, _DUEL_SHARE = 4, 12, 0.1
"""Rounds of a duel, and the share of the budget that it has."""
_FAR = 5.0
"""Times the split's time that need no duel."""
_MOST_BLOCKS = 3000
_MOST_NAMED = 5
"""Refused blocks of one target that the notes name."""
Names: TypeAlias = "Target | Proposal"


class Work(Protocol):
    """What of an `Assignment` counts here."""

    @property
    def file(self) -> ModelFile: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def wish(self) -> Wish: ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What a planning knows once whole models were tried."""

    work: Work
    course: Course
    tried: Trials
    trials: Sequence[Trial]
    """Checked, and raced."""
    reference: Reference
    checker: Checker
    say: Callable[[str], None]

    @property
    def targets(self) -> list[Target]:
        """All that were tried."""
        return [trial.row.target for trial in self.trials]

    @property
    def certain(self) -> bool:
        """Whether the reference is one, and undisputed."""
        return bool(self.reference.name) and not self.reference.disputed

    @property
    def whole(self) -> dict[Target, Contestant]:
        """Targets that ran the whole model right, ready to be timed."""
        return {
            trial.row.target: trial.contestant
            for trial in self.trials
            if trial.contestant is not None and trial.contestant.failure is None
        }


@dataclass(frozen=True, slots=True)
class Field:
    """Who takes part."""

    whole: tuple[Target, ...]
    """Ran the whole model right; fastest first."""
    partial: tuple[Target, ...]
    """Refused it, or got it wrong, and may take a part."""


@dataclass
class SplitContestant(Contestant):
    """Several segments in one child, timed end to end."""

    parts: Sequence[Prepare] = ()
    outputs: Sequence[str] = ()

    def _revive(self) -> None:
        if self.runnable.generation == self.remote.generation and self.remote.pid is not None:
            return
        hold(self.remote, self.samples)
        self.runnable = prepare_segments(
            self.remote, self.parts, self.outputs, self.cache, timeout_s=self.prepare_limit_s
        )


@dataclass(frozen=True, slots=True)
class Finalist:
    """A split that gave the right numbers."""

    proposal: Proposal
    contestant: SplitContestant
    errors: tuple[OutputError, ...]


def consider(plan: Plan, setting: Setting) -> Plan:
    """The plan, or a better one in pieces; its notes say what was tried and why it lost."""
    entrants = _field(setting)
    if entrants is None:
        return plan
    with _folder(setting.course.cache) as folder:
        workshop = _workshop(setting, folder)
        if not 2 <= len(workshop.blocks) <= _MOST_BLOCKS:
            return plan
        try:
            workshop.values = _values(workshop, setting)
            better = _contest(plan, workshop, _proposals(workshop, entrants), setting)
        except _Quiet as error:
            workshop.note(str(error))
            better = plan
        finally:
            workshop.save()
        workshop.parts.prune(better.segments if len(better.segments) > 1 else ())
    return replace(better, notes=(*better.notes, *workshop.notes))


class _Quiet(EdgertError):
    """Splitting cannot even be tried; the message is a note."""


def _field(setting: Setting) -> Field | None:
    """Who takes part in a split; None where none can pay.

    It can where several devices run the model (software ones only take part when the user names them), or where a
    target refuses the whole model, or gets it wrong at the model's own precision, and may be fast on a part of it.
    """
    if not setting.reference.answers or setting.checker.random or setting.work.wish.objective != "latency":
        return None
    graph = setting.work.file.graph
    if any(value.name not in graph.producers for value in graph.outputs) or len(graph.nodes) < 2:
        return None
    whole = _best_of_each(setting.whole)
    if not whole or whole[0][0] < _WORTH_S:
        return None
    taken = {_way(target) for _, target in whole}
    partial = _may_take_a_part(setting, taken)
    devices = {target.device for _, target in whole} | {target.device for target in partial}
    if not partial and len(devices) < 2:
        return None
    # The best of each device stays, however slow: it may be the only one for something.
    kept: list[Target] = []
    for _, target in whole:
        if len(kept) < _MOST_WHOLE or target.device not in {other.device for other in kept}:
            kept.append(target)
    return Field(tuple(kept), tuple(partial[:_MOST_PARTIAL]))


def _best_of_each(whole: Mapping[Target, Contestant]) -> list[tuple[float, Target]]:
    best: dict[tuple[str, ...], tuple[float, Target]] = {}
    for target, contestant in whole.items():
        entry = (contestant.call_s, target)
        best[_way(target)] = min(best.get(_way(target), entry), entry)
    return sorted(best.values())


def _way(target: Target) -> tuple[str, ...]:
    """The target without its threads."""
    return target.backend, target.variant, target.device, target.precision


def _library(target: Target) -> tuple[str, ...]:
    """The target without its threads and precision."""
    return target.backend, target.variant, target.device


def _may_take_a_part(setting: Setting, taken: set[tuple[str, ...]]) -> list[Target]:
    """Of each way that does not run the whole model right, the target with most threads."""
    found: dict[tuple[str, ...], Target] = {}
    for trial in setting.trials:
        target, outcome = trial.row.target, trial.row.outcome
        # Where nothing confirmed the numbers, nobody knows who is wrong.
        proved = setting.certain and target.precision == setting.course.source.precision
        if target.backend == LAST_RESORT or _way(target) in taken:
            continue
        if outcome == "refused" or (outcome == "wrong" and proved):
            known = found.get(_way(target))
            if known is None or known.threads < target.threads:
                found[_way(target)] = target
    return list(found.values())


@contextmanager
def _folder(cache: Path | None) -> Iterator[Path]:
    """Where segments are written: beside what backends compiled, or nowhere to stay."""
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="edgert-") as folder:
        yield Path(folder)


def _workshop(setting: Setting, folder: Path) -> Workshop:
    work, course = setting.work, setting.course
    memory = work.memory
    key = [memory.machine.fingerprint, memory.versions(), work.wish.samples, asdict(work.wish.tolerance)]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = memory.folder / "costs" / memory.model[:16] / f"{name}.json" if memory.folder else None
    workshop = Workshop(
        work.file, blocks_of(work.file.graph), course, work.wish.tolerance,
        Parts(course.source, folder / "segments", lambda: work.file), Quarantine(memory.folder, memory.machine),
        setting.tried.remote, lambda target: [other for other in setting.targets if _way(other) == _way(target)],
        setting.say, memory=path,
        certain=setting.certain, deadline_s=max(course.deadline_s, time.monotonic() + _SHARE * course.budget_s),
    )  # fmt: skip
    workshop.load()
    return workshop


def _values(workshop: Workshop, setting: Setting) -> Mapping[str, Data]:
    """The reference's values wherever blocks meet: from the reference itself where it is quick, else from a CPU target
    that agreed with it.
    """
    own = setting.course.source.precision
    right = [target for target in setting.whole if target.precision == own and target.device.startswith("cpu")]
    if setting.reference.name == "onnx" and not any(target.backend == LAST_RESORT for target in right):
        right.insert(0, Target(LAST_RESORT, "cpu:0", own))
    reasons = []
    for target in right[:3]:
        setting.say(f"asking {target} for the values inside the model")
        try:
            return reference_values(workshop, target, min(LIMIT_S, max(1.0, workshop.deadline_s - time.monotonic())))
        except EdgertError as error:
            if isinstance(error, Cancelled):
                raise
            reasons.append(f"{target}: {error.message}")
    raise _Quiet(f"no split was tried: the values inside the model are not to be had ({'; '.join(reasons)[:300]})")


def _proposals(workshop: Workshop, entrants: Field) -> list[Proposal]:
    """The best few ways to split, by what their segments took."""
    found = [everything(target, len(workshop.blocks)) for target in entrants.whole]
    for target in entrants.partial:
        kin = next((each for each in found if each.refused and _library(each.target) == _library(target)), None)
        found.append(capability(workshop, target, kin))
    _explain(workshop, found)
    made: list[Proposal] = []
    for placement, cause in by_capability(workshop, found):
        made += measured(workshop, placement, cause)
    useful = [each for each in found if each.taken]
    if workshop.in_time and len(useful) > 1:
        costs = measure_blocks(workshop, useful)
        if costs.complete:
            children = {each.target.device: workshop.remote_of(each.target) for each in useful}
            children.pop("cpu:0", None)
            links = remembered_links(workshop, children) if children else ()
            made += by_cost(workshop, costs, links)
        else:
            workshop.note("the time was over before every block was measured: splits are by what targets take alone")
    return sorted(dict.fromkeys(made), key=lambda proposal: proposal.predicted_s)[:_MOST_RACED]


def _explain(workshop: Workshop, found: Sequence[Capability]) -> None:
    """Note which blocks each target does not take, and why."""
    for each in found:
        known = [(number, row) for number, row in each.refused.items() if row.outcome != "untried"]
        for number, row in known[:_MOST_NAMED]:
            name = short(workshop.blocks[number].id)
            workshop.note(f"block {name!r} on {each.target}: {row.outcome}: {row.reason[:160]}")
        if len(known) > _MOST_NAMED:
            workshop.note(f"{each.target} does not take {len(known) - _MOST_NAMED} more blocks")
        if len(known) < len(each.refused):
            workshop.note(f"{each.target} was not asked for {len(each.refused) - len(known)} blocks: the time was over")


def _contest(plan: Plan, workshop: Workshop, proposals: Sequence[Proposal], setting: Setting) -> Plan:
    """Race the splits end to end against every whole model; the plan of the winner."""
    best_s = min(contestant.call_s for contestant in setting.whole.values())
    chances = []
    for proposal in proposals:
        if proposal.predicted_s > _HOPELESS * best_s:
            ratio = proposal.predicted_s / best_s
            workshop.note(f"don't split: {proposal} is predicted at {ratio:.2f}x the best whole model")
        else:
            chances.append(proposal)
    if not chances:
        return plan
    remote = Remote("splits", service=SERVICE)
    try:
        finalists = {}
        for proposal in chances:
            setting.say(f"preparing {proposal}")
            finalist = _finalist(workshop, proposal, remote, setting)
            if finalist is not None:
                finalists[proposal] = finalist
        return _raced(plan, workshop, finalists, setting) if finalists else plan
    finally:
        remote.close()


def _finalist(workshop: Workshop, proposal: Proposal, remote: Remote, setting: Setting) -> Finalist | None:
    """The split prepared in a child and right on every sample; None, with a note, when it is not."""
    course, answers = setting.course, setting.reference.answers
    parts = []
    outputs = [value.name for value in course.source.outputs]
    try:
        for piece in proposal.pieces:
            source = workshop.source(workshop.segment(piece.blocks, piece.target))
            parts.append(Prepare(source, piece.target, course.machine.device(piece.target.device)))
        hold(remote, course.samples)
        runnable = prepare_segments(remote, parts, outputs, course.cache, timeout_s=course.prepare_limit_s)
        runs = [runnable.run_held(sample_name(index), timeout_s=RUN_LIMIT_S) for index in range(len(answers))]
    except EdgertError as error:
        workshop.note(f"the split {proposal} failed: {error.message[:200]}")
        return None
    errors = setting.checker.errors(answers, [answer for answer, _ in runs])
    # Whoever computes at the lowest precision sets the rule for the whole; each segment was held to its own before.
    coarsest = min((piece.target for piece in proposal.pieces), key=lambda target: _width(target.precision))
    reason = setting.checker.reason(errors, coarsest)
    if reason:
        workshop.note(f"the split {proposal} gives wrong numbers though each of its segments is right: {reason}")
        return None
    contestant = SplitContestant(
        proposal.pieces[0].target, course.source, parts[0].device, remote, runnable, course.samples, course.cache,
        max(min(seconds for _, seconds in runs), 1e-7), course.prepare_limit_s, parts=parts, outputs=outputs,
    )  # fmt: skip
    return Finalist(proposal, contestant, errors)


def _width(precision: str) -> int:
    return {"f64": 64, "f32": 32, "i8": 31}.get(precision, 16)


def _raced(plan: Plan, workshop: Workshop, finalists: Mapping[Proposal, Finalist], setting: Setting) -> Plan:
    runners: dict[Names, Contestant] = {name: each.contestant for name, each in finalists.items()}
    runners |= dict(setting.whole.items())
    setting.say(f"racing {len(finalists)} splits against {len(runners) - len(finalists)} whole models")
    end_s = time.monotonic() + _RACE_SHARE * setting.course.budget_s
    outcome = race(list(runners), lambda name: runners[name].visit(), lambda: time.monotonic() < end_s)
    if not outcome.standings:
        return plan
    first, *rest = outcome.standings
    for standing in rest:
        if isinstance(standing.name, Proposal):
            workshop.note(f"the split {standing.name} took {_text(standing.ratio)} the fastest's time")
    if not isinstance(first.name, Proposal):
        return plan
    ratios: dict[Target, Interval] = {}
    for standing in rest:
        if isinstance(standing.name, Target):
            ratio = standing.ratio
            if not ratio.low > 1.0 and not _far_behind(standing, first):
                # It may have left the race early: too few rounds for an interval.
                ratio = _duel(runners[standing.name], runners[first.name], setting.course.budget_s)
            if not ratio.low > 1.0 and not _far_behind(standing, first):
                rival = f"{standing.name} takes {_text(ratio)} its time"
                workshop.note(f"don't split: {first.name} does not win beyond the noise; {rival}")
                return plan
            ratios[standing.name] = ratio
    return _split_plan(plan, workshop, finalists[first.name], statistics.median(first.rounds), ratios)


def _far_behind(standing: Standing[Names], first: Standing[Names]) -> bool:
    """Whether it took many times as long in every round, of which there were at least two: no noise does that."""
    pairs = list(zip(standing.rounds, first.rounds, strict=False))
    return len(pairs) >= 2 and all(time_s > _FAR * best_s for time_s, best_s in pairs)


def _duel(one: Contestant, other: Contestant, budget_s: float) -> Interval:
    """Time of `one` over that of `other`, in turns; infinite where it fails."""
    end_s = time.monotonic() + _DUEL_SHARE * budget_s
    times: list[tuple[float, float]] = []
    while len(times) < _FEWEST_DUELS or (len(times) < _MOST_DUELS and time.monotonic() < end_s):
        pair = (one.visit(), other.visit()) if len(times) % 2 else (other.visit(), one.visit())[::-1]
        if math.isinf(pair[1]):
            return Interval(0.0, 0.0, 0.0)
        if math.isinf(pair[0]):
            return Interval(math.inf, math.inf, math.inf)
        times.append(pair)
    return paired_ratio([pair[0] for pair in times], [pair[1] for pair in times])


def _text(ratio: Interval) -> str:
    return f"{ratio.ratio:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"


def _split_plan(
    plan: Plan, workshop: Workshop, winner: Finalist, measured_s: float, ratios: Mapping[Target, Interval]
) -> Plan:
    """The plan of a split that won; the best whole models are its fallbacks."""
    segments = tuple(
        replace(
            workshop.segment(piece.blocks, piece.target), measured_s=row.timing.p50_s if row.timing else 0.0,
            errors=row.errors, cause=winner.proposal.cause,
        )
        for piece, row in zip(winner.proposal.pieces, winner.proposal.rows, strict=True)
    )  # fmt: skip
    graph = workshop.file.graph
    crossing_ = dict.fromkeys(name for segment in segments for name in (*segment.inputs, *segment.outputs))
    check = plan.verification
    rows = tuple(
        replace(row, reason=f"{_text(ratio)} the split's time")
        if (ratio := ratios.get(row.target)) is not None and row.outcome in ("ok", "slow") else row
        for row in plan.candidates
    )  # fmt: skip
    return replace(
        plan,
        segments=segments,
        instances=tuple(Instance(number) for number in range(len(segments))),
        transfers=_transfers(workshop, segments),
        values=tuple(graph.values[name] for name in crossing_),
        fallbacks=tuple(dict.fromkeys((plan.segments[0].target, *plan.fallbacks))),
        verification=replace(check, errors=winner.errors if check.reference else ()),
        measured_s=measured_s,
        items_per_s=0.0,
        predicted_s=winner.proposal.predicted_s,
        candidates=rows,
    )


def _transfers(workshop: Workshop, segments: Sequence[Segment]) -> tuple[Transfer, ...]:
    makers = {name: number for number, segment in enumerate(segments) for name in segment.outputs}
    moved: dict[tuple[int, int], list[str]] = {}
    for sink, segment in enumerate(segments):
        for name in segment.inputs:
            if name in makers:
                moved.setdefault((makers[name], sink), []).append(name)
    values = workshop.file.graph.values
    return tuple(
        Transfer(source, sink, tuple(names), sum(workshop.size(values[name]) for name in names))
        for (source, sink), names in sorted(moved.items())
    )
