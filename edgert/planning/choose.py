"""From trials to a plan: check the answers, race what is right, and say why each of the others lost."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgert.devices.remote import RemoteRunnable
from edgert.errors import EdgertError, ModelUnsupported
from edgert.measure import Contestant, hold, sample_name
from edgert.partitioner.race import Outcome
from edgert.plan import Instance
from edgert.planning.heats import Heats
from edgert.planning.reference import Checker, Reference
from edgert.planning.trials import Course, Trial, Trials, failed
from edgert.profile import Row, Target, Timing

_log = logging.getLogger(__name__)
_FAR_BEHIND = 4.0
"""A target whose first calls are that much slower than the best is not raced."""
_RACE_SHARE = 0.5
"""Share of the budget that the race has at least, also when trying took longer than it should."""
_THROUGHPUT_ROUNDS = 5
_THROUGHPUT_S = 0.25
"""How long all instances run in one throughput measurement."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What won, and what is known of every candidate."""

    rows: tuple[Row, ...]
    """Fastest first, then what failed."""
    winner: Row
    instances: tuple[Instance, ...]


def check(trials: Sequence[Trial], reference: Reference, checker: Checker) -> list[Trial]:
    """The trials with their errors against the reference; what leaves the tolerance becomes 'wrong'."""
    if not reference.answers:
        return list(trials)
    checked = []
    for trial in trials:
        if trial.contestant is None:
            checked.append(trial)
            continue
        errors = checker.errors(reference.answers, trial.answers)
        reason = checker.reason(errors, trial.row.target)
        row = replace(trial.row, errors=errors, outcome="wrong" if reason else "ok", reason=reason)
        if reason:
            _log.info("%s gives wrong numbers: %s", row.target, reason)
        checked.append(Trial(row, None if reason else trial.contestant, trial.answers))
    return checked


def fastest(trials: Sequence[Trial], course: Course, say: Callable[[str], None]) -> tuple[Row, ...]:
    """Race the trials that are right; all rows, fastest first, what failed last.

    Raises:
        ModelUnsupported: nothing ran; with each target's reason.
    """
    runners = {trial.row.target: trial.contestant for trial in trials if trial.contestant is not None}
    rows = {trial.row.target: trial.row for trial in trials}
    if not runners:
        reasons = "; ".join(f"{row.target}: {row.reason}" for row in rows.values()) or "no backend reads this format"
        remedy = "`edgert probe` shows what would add a backend; `edgert plan MODEL --explain` each target's reason."
        if not course.patient and any(row.outcome == "timeout" for row in rows.values()):
            remedy = f"If the model is that slow, give it a larger budget_s than {course.budget_s:g}; {remedy}"
        raise ModelUnsupported(f"{course.source.path}: no target on this machine runs this model ({reasons}).", remedy)
    quickest_s = min(contestant.call_s for contestant in runners.values())
    for target, contestant in list(runners.items()):
        if contestant.call_s > _FAR_BEHIND * quickest_s:
            times = contestant.call_s / quickest_s
            timing = Timing(contestant.call_s, contestant.call_s, contestant.call_s, 1, 0)
            rows[target] = replace(
                rows[target], outcome="slow", timing=timing, reason=f"first calls {times:.1f}x the best"
            )
            del runners[target]
    say(f"racing {len(runners)} of {len(trials)} targets")
    end_s = max(course.deadline_s, time.monotonic() + _RACE_SHARE * course.budget_s)
    outcome = Heats(runners, end_s, course.deadline_s).run()
    _enter(rows, outcome, runners)
    order = [standing.name for standing in outcome.standings]
    order += [target for target in rows if target not in order]
    ranked = [rows[target] for target in order]
    if not any(row.outcome == "ok" for row in ranked):
        return fastest(standing(trials), course, say)  # all that raced fell: those too slow to race still stand
    return tuple(
        sorted(ranked, key=lambda row: ("ok", "slow").index(row.outcome) if row.outcome in ("ok", "slow") else 2)
    )


def standing(trials: Sequence[Trial]) -> list[Trial]:
    """The trials after a race: those that failed in it are no contestants any more."""
    return [
        trial
        if trial.contestant is None or trial.contestant.failure is None
        else replace(
            trial,
            row=replace(failed(trial.row.target, trial.contestant.failure), ran_on=trial.row.ran_on),
            contestant=None,
        )
        for trial in trials
    ]


def _enter(rows: dict[Target, Row], outcome: Outcome[Target], runners: Mapping[Target, Contestant]) -> None:
    for standing in outcome.standings:
        series = sorted(standing.rounds)
        timing = Timing(
            statistics.median(series), series[0], series[math.ceil(0.95 * len(series)) - 1], len(series), len(series)
        )
        ratio = standing.ratio
        reason = (
            ""
            if standing is outcome.standings[0]
            else f"{ratio.ratio:.2f}x the chosen ({ratio.low:.2f}-{ratio.high:.2f})"
        )
        rows[standing.name] = replace(rows[standing.name], timing=timing, reason=reason)
    for target, contestant in runners.items():
        if contestant.failure is not None:
            rows[target] = replace(failed(target, contestant.failure), ran_on=rows[target].ran_on)


def latency_choice(rows: tuple[Row, ...]) -> Choice:
    """One instance of the fastest."""
    return Choice(rows, rows[0], (Instance(0),))


def throughput_choice(
    rows: tuple[Row, ...], trials: Sequence[Trial], work: Trials, say: Callable[[str], None]
) -> Choice:
    """The target and number of instances that finish most items a second, all instances with cores of their own.

    Tried for each CPU target: as many instances as its threads leave cores for; one where that fails.
    """
    contestants = {trial.row.target: trial.contestant for trial in trials if trial.contestant is not None}
    entries = []
    for row in rows:
        contestant = contestants.get(row.target)
        if row.outcome in ("ok", "slow") and contestant is not None and contestant.failure is None:
            entries.append(Crowd.of(contestant))
    for _ in range(_THROUGHPUT_ROUNDS):
        for entry in entries:
            say(f"throughput of {entry.contestant.target}")
            entry.measure()
    fallen = {entry.contestant.target: entry.failure for entry in entries if entry.failure is not None}
    entries = [entry for entry in entries if entry.failure is None]
    if not entries:  # each was right and was timed alone: one instance of the fastest is what is left
        return latency_choice(rows)
    rows = tuple(replace(row, reason=_fell(fallen[row.target])) if row.target in fallen else row for row in rows)
    best = max(entries, key=lambda entry: entry.items_per_s)
    by_target = {entry.contestant.target: entry for entry in entries}
    measured = [
        replace(row, timing=replace(row.timing, items_per_s=by_target[row.target].items_per_s,
                                    instances=len(by_target[row.target].cores)))
        if row.target in by_target and row.timing is not None else row
        for row in rows
    ]  # fmt: skip
    measured.sort(key=lambda row: -(row.timing.items_per_s if row.timing else 0.0))
    winner = next(row for row in measured if row.target == best.contestant.target)
    others = (replace(row, outcome="ok" if row.outcome == "slow" else row.outcome) for row in measured)
    return Choice(tuple(others), winner, tuple(Instance(0, cores) for cores in best.cores))


def _fell(error: EdgertError) -> str:
    return f"failed while its throughput was measured: {error.message[:300]}"


@dataclass
class Crowd:
    """Several instances of one target, prepared in one child."""

    contestant: Contestant
    runnables: list[RemoteRunnable]
    cores: list[tuple[int, ...]]
    rates: list[float]
    failure: EdgertError | None = None
    """What even one instance alone died of, if it did."""

    @classmethod
    def of(cls, contestant: Contestant) -> Crowd:
        return cls(contestant, [], split_cores(contestant.device.cores, contestant.target.threads), [])

    @property
    def items_per_s(self) -> float:
        return statistics.median(self.rates) if self.rates else 0.0

    def measure(self) -> None:
        if self.failure is not None:
            return
        seconds = max(_THROUGHPUT_S, 3 * self.contestant.call_s)
        try:
            self._gather()
            self.rates.append(self.contestant.remote.throughput(self.runnables, self.cores, sample_name(0), seconds))
        except EdgertError as error:
            _log.info("%s, %d instance(s): %s", self.contestant.target, len(self.cores), error.message)
            if len(self.cores) > 1:  # some libraries fail with two instances at once: one may still be good
                self.runnables, self.cores, self.rates = [], [()], []
            else:
                self.failure = error

    def _gather(self) -> None:
        """As many prepared instances as there are sets of cores: again, when another target took the child along."""
        contestant, remote = self.contestant, self.contestant.remote
        if self.runnables and remote.pid is not None and self.runnables[0].generation == remote.generation:
            return
        there = remote.pid is not None and contestant.runnable.generation == remote.generation
        if not there:
            hold(remote, contestant.samples)
        made = [contestant.runnable] if there else []
        while len(made) < len(self.cores):
            made.append(
                remote.prepare(
                    contestant.source, contestant.target, contestant.device, contestant.cache,
                    timeout_s=contestant.prepare_limit_s,
                )
            )  # fmt: skip
        self.runnables = made


def split_cores(cores: Sequence[int], threads: int) -> list[tuple[int, ...]]:
    """Cores for as many instances of so many threads as fit; not pinned where there is only one, or no threads to
    count.
    """
    if threads <= 0 or len(cores) // threads <= 1:
        return [()]
    return [tuple(cores[start : start + threads]) for start in range(0, len(cores) - threads + 1, threads)]
