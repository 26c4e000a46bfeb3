"""Splits against whole models, end to end: kept only if they are right and win beyond the noise."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from edgert.buckets import free_axes, shapes_of, text_of
from edgert.devices.remote import Remote, RemoteRunnable
from edgert.errors import EdgertError, OptionError
from edgert.execution.hosted import SERVICE, Prepare, prepare_segments
from edgert.measure import RUN_LIMIT_S, Contestant, hold, sample_name
from edgert.partitioner.race import Interval, Standing, paired_ratio, race
from edgert.plan import Instance, Plan, Segment, Transfer
from edgert.planning.proposals import Proposal
from edgert.planning.setting import Setting
from edgert.planning.workshop import Workshop
from edgert.profile import OutputError, Target
from edgert.samples import synthesise
from edgert.tensor import Data

__all__ = ["Finalist", "contest", "finalist_of", "split_plan", "text_of_ratio"]

_log = logging.getLogger(__name__)
_RACE_SHARE = 0.25
"""Of the budget: what the race of splits against whole models may take."""
_HOPELESS = 2.0
"""A split that is predicted to be that much slower than the best whole model is not raced."""
_FEWEST_DUELS, _MOST_DUELS, _DUEL_SHARE = 4, 12, 0.1
"""Rounds of a duel, and the share of the budget that it has."""
_FAR = 5.0
"""Times the split's time that need no duel."""
Names: TypeAlias = "Target | Proposal"


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


def contest(plan: Plan, workshop: Workshop, proposals: Sequence[Proposal], setting: Setting) -> Plan:
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
            finalist = finalist_of(workshop, proposal, remote, setting)
            if finalist is not None:
                finalists[proposal] = finalist
        return _raced(plan, workshop, finalists, setting) if finalists else plan
    finally:
        remote.close()


def finalist_of(
    workshop: Workshop, proposal: Proposal, remote: Remote, setting: Setting,
    instances: Mapping[Target, Sequence[tuple[int, ...]]] = MappingProxyType({}),
) -> Finalist | None:  # fmt: skip
    """The split prepared in a child and right on every sample; None, with a note, when it is not.

    Args:
        workshop: has the pieces.
        proposal: the split.
        remote: a child for splits.
        setting: has the samples and their right answers.
        instances: cores of each instance that the segments of a target get; one without cores of its own by default.
    """
    course, answers = setting.course, setting.reference.answers
    parts = []
    outputs = [value.name for value in course.source.outputs]
    try:
        for piece in proposal.pieces:
            source = workshop.source(workshop.segment(piece.blocks, piece.target))
            own = tuple(instances.get(piece.target, ((),)))
            parts.append(Prepare(source, piece.target, course.machine.device(piece.target.device), own))
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
    reason = _fails_elsewhere(runnable, coarsest, setting)
    if reason:
        workshop.note(f"the split {proposal} is for one shape alone: {reason}")
        return None
    contestant = SplitContestant(
        proposal.pieces[0].target, course.source, parts[0].device, remote, runnable, course.samples, course.cache,
        max(min(seconds for _, seconds in runs), 1e-7), course.prepare_limit_s, parts=parts, outputs=outputs,
    )  # fmt: skip
    return Finalist(proposal, contestant, errors)


def _fails_elsewhere(runnable: RemoteRunnable, target: Target, setting: Setting) -> str:
    """How the split differs from whole models at other sizes of the free dimensions; '' where it does not.

    A file may state fixed shapes inside a model whose inputs are free, and a piece that was cut there then takes these
    alone. Where no whole model takes the other sizes either, nothing is free in truth.
    """
    feed = _at_other_sizes(setting)
    if feed is None:
        return ""
    shapes = text_of(free_axes(setting.work.file.graph.inputs), shapes_of(feed))
    expected = _whole_answer(setting, feed)
    if expected is None:
        return ""
    try:
        made = runnable.run(feed)
    except EdgertError as error:
        return f"it fails at {shapes} ({error.message[:200]})"
    reason = setting.checker.reason(setting.checker.errors([expected], [made]), target)
    return f"it is wrong at {shapes} ({reason})" if reason else ""


def _at_other_sizes(setting: Setting) -> dict[str, Data] | None:
    """Inputs with free dimensions of another bucket than those of the samples; None where there are none to be had."""
    graph, sample = setting.work.file.graph, shapes_of(setting.course.samples[0])
    named = {value.name: value.shape or () for value in graph.inputs}
    sizes = {
        str(named[name][axis]) or f"{name}[{axis}]": 2 * sample[name][axis] + 1
        for name, axis in free_axes(graph.inputs)
        if name in sample and "+" not in str(named[name][axis])  # a sum follows from its parts
    }
    try:
        return synthesise(graph, sizes=sizes)[0] if sizes else None
    except OptionError as error:
        _log.info("no inputs of other sizes: %s", error.message)
        return None


def _whole_answer(setting: Setting, feed: Mapping[str, Data]) -> Mapping[str, Data] | None:
    """What the quickest whole model that takes these inputs answers, at the model's own precision."""
    own = setting.course.source.precision
    for target, contestant in sorted(setting.whole.items(), key=lambda item: item[1].call_s):
        if target.precision == own:
            try:
                return contestant.runnable.run(feed)
            except EdgertError as error:
                _log.info("%s at other sizes: %s", target, error.message)
    return None


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
            workshop.note(f"the split {standing.name} took {text_of_ratio(standing.ratio)} the fastest's time")
    if not isinstance(first.name, Proposal):
        return plan
    fallen = _faster_before(plan, runners, statistics.median(first.rounds))
    if fallen:
        workshop.note(f"don't split: {fallen}")
        return plan
    ratios: dict[Target, Interval] = {}
    for standing in rest:
        if isinstance(standing.name, Target):
            ratio = standing.ratio
            if not ratio.low > 1.0 and not _far_behind(standing, first):
                # It may have left the race early: too few rounds for an interval.
                ratio = _duel(runners[standing.name], runners[first.name], setting.course.budget_s)
            if not ratio.low > 1.0 and not _far_behind(standing, first):
                rival = f"{standing.name} takes {text_of_ratio(ratio)} its time"
                workshop.note(f"don't split: {first.name} does not win beyond the noise; {rival}")
                return plan
            ratios[standing.name] = ratio
    reasons = {target: f"{text_of_ratio(ratio)} the split's time" for target, ratio in ratios.items()}
    return split_plan(plan, workshop, finalists[first.name], statistics.median(first.rounds), reasons)


def _faster_before(plan: Plan, runners: Mapping[Names, Contestant], split_s: float) -> str:
    """Which whole model fell out of this race, and was faster than the split before; '' for none.

    It may have been killed for what the splits beside it needed: that is no victory.
    """
    for row in plan.candidates:
        failure = runners[row.target].failure if row.target in runners else None
        if failure is not None and row.timing is not None and row.timing.p50_s <= split_s:
            before = f"{1e3 * row.timing.p50_s:.3g} ms before, the split {1e3 * split_s:.3g}"
            return f"{row.target} fell out of the race ({failure.message[:200]}); it took {before}"
    return ""


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


def text_of_ratio(ratio: Interval) -> str:
    """For people, with its interval."""
    return f"{ratio.ratio:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"


def split_plan(
    plan: Plan, workshop: Workshop, winner: Finalist, measured_s: float, reasons: Mapping[Target, str]
) -> Plan:
    """The plan of a split that won; the best whole models are its fallbacks.

    Args:
        plan: for the whole model.
        workshop: has the pieces.
        winner: the split.
        measured_s: of one request.
        reasons: why each rival lost.
    """
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
        replace(row, reason=reasons[row.target]) if row.target in reasons and row.outcome in ("ok", "slow") else row
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
