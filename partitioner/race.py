"""Which of several candidates is fastest, found by timing them in turn until the order is certain.

Two identical programs timed one after another differ by several percent on a shared machine, since its speed drifts.
So all candidates are timed in rounds, in a random order, and compared within a round, where the drift is the same for
both: the statistic is the mean over rounds of log(time / leader's time), with Student's t interval (as in paired
comparison; W. S. Gosset, "The probable error of a mean", Biometrika 6, 1908). A candidate whose interval lies beyond
the indifference margin is dropped, so the rounds get shorter (as in racing algorithms; Maron and Moore, "Hoeffding
races", NIPS 1993).
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Name = TypeVar("Name")

_T975 = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23,
    2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09,
)  # fmt: skip
"""97.5% quantile of Student's t for 1, 2, ... degrees of freedom."""
_FEWEST_ROUNDS = 12
"""Before anything is dropped on statistics."""
_FAR_ROUNDS = 4
_FAR = math.log(1.5)
_MOST_HEATS = 3
_PLAUSIBLE = 1.25
"""A candidate may win the next heat when its interval of the last one reaches down to this ratio."""
_PLAUSIBLE_DISTURBED = 2.0
"""The same when other work ran: with one of two cores taken, two threads lose half of their speed and one nothing."""
"""A candidate that was so much slower in each of its first `_FAR_ROUNDS` rounds is dropped without more."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% interval of a ratio of times; 1 means equal."""

    low: float
    ratio: float
    high: float


@dataclass(frozen=True, slots=True)
class Standing(Generic[Name]):
    """How one candidate did."""

    name: Name
    rounds: tuple[float, ...]
    """Seconds of its median call in each round that it took part in, from the first on."""
    ratio: Interval
    """Its time over the winner's, from the rounds that both took part in."""

    @property
    def median_s(self) -> float:
        return statistics.median(self.rounds)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Name]):
    """The end of a race."""

    standings: tuple[Standing[Name], ...]
    """Fastest first."""
    certain: bool
    """True when no candidate is left that could still be faster than the winner by more than the margin."""


def paired_ratio(times: Sequence[float], others: Sequence[float]) -> Interval:
    """Ratio `times` / `others` of two series that were measured in the same rounds, with its 95% interval.

    exp(mean(d) -+ t s / sqrt(n)) for d = log(times / others) over n rounds with standard deviation s; one round
    alone gives an infinite interval.
    """
    logs = [math.log(time / other) for time, other in zip(times, others, strict=True)]
    centre = statistics.fmean(logs)
    if len(logs) < 2:
        return Interval(0.0, math.exp(centre), math.inf)
    quantile = _T975[min(len(logs) - 1, len(_T975)) - 1]
    half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(centre - half), math.exp(centre), math.exp(centre + half))


def race(
    names: Sequence[Name],
    visit: Callable[[Name], float],
    more: Callable[[], bool],
    *,
    margin: float = 1.02,
    most_rounds: int = 40,
    seed: int = 0,
) -> Outcome[Name]:
    """Time candidates in interleaved rounds until it is certain which is fastest, within a margin.

    Args:
        names: the candidates; at least one.
        visit: times one candidate and returns the seconds of its median call; infinity drops it.
        more: whether there is budget for another round. Asked after each round; the first round always happens.
        margin: candidates within this ratio of the leader count as equal to it.
        most_rounds: bound on the rounds.
        seed: of the order within rounds.

    Ensures that a candidate is dropped only when it is slower than the leader at that time by more than `margin` with
    97.5% confidence, or was half as slow again in each of four rounds.
    """
    order = random.Random(seed)
    times: dict[Name, list[float]] = {name: [] for name in names}
    alive = list(names)
    certain = len(alive) == 1
    for round_number in range(1, most_rounds + 1):
        for name in order.sample(alive, len(alive)):
            times[name].append(visit(name))
        alive = [name for name in alive if math.isfinite(times[name][-1])]
        if not alive:
            break
        leader = min(alive, key=lambda name: statistics.median(times[name]))
        ratios = {name: paired_ratio(times[name], times[leader]) for name in alive if name != leader}
        alive = [name for name in alive if name == leader or not _beaten(name, leader, ratios[name], times, margin)]
        certain = round_number >= _FEWEST_ROUNDS and all(
            ratios[name].low * margin >= 1.0 for name in alive if name != leader
        )
        if certain or len(alive) == 1 or not more():
            certain = certain or len(alive) == 1
            break
    return Outcome(_standings(times, alive), certain)


def heats(
    names: Sequence[Name],
    heat: Callable[[Sequence[Name]], Outcome[Name]],
    more: Callable[[], bool],
    disturbed: Callable[[], bool],
) -> Outcome[Name]:
    """Race in up to three heats, each with everything prepared anew, until two in a row say the same.

    A program keeps some of its luck for as long as it lives (where its memory lies, whether its threads sleep or spin
    when work comes), and somebody else's work may outlast a whole race and slow one candidate more than another;
    neither shows in a race's own interval. What counts is the mean over heats of log(time / rival's time).

    Args:
        names: the candidates; at least one.
        heat: races candidates, as `race` does.
        more: whether there is budget for another heat.
        disturbed: whether the machine had other work in the last heat.

    Returns:
        Every candidate, the winner first; each ratio to the winner is the mean over the heats that both ran in, its
        interval spans those of the heats.
    """
    outcomes: list[Outcome[Name]] = []
    left, leader = list(names), None
    while len(outcomes) < _MOST_HEATS:
        outcomes.append(heat(left))
        if not outcomes[-1].standings:
            break
        before, leader = leader, _leader(outcomes)
        if (leader == before == outcomes[-1].standings[0].name) or not more():
            break
        plausible = _PLAUSIBLE_DISTURBED if disturbed() else _PLAUSIBLE
        kept = (leader, outcomes[0].standings[0].name)
        left = [s.name for s in outcomes[-1].standings if s.ratio.low <= plausible or s.name in kept]
        if len(left) == 1:
            break
    return _together([outcome for outcome in outcomes if outcome.standings])


def _leader(outcomes: Sequence[Outcome[Name]]) -> Name:
    """Of those that ran in the last heat, the fastest by the mean over the heats that it shares with the first winner.

    The first winner runs in every heat; where it fell, the last heat alone counts.
    """
    rival = outcomes[0].standings[0].name
    running = [standing.name for standing in outcomes[-1].standings]
    if rival not in running:
        return running[0]
    return min(running, key=lambda name: _ratio(outcomes, name, rival).ratio)


def _ratio(outcomes: Sequence[Outcome[Name]], name: Name, rival: Name) -> Interval:
    """Time of `name` / time of `rival` over the heats in which both ran; infinite when there is none."""
    found = []
    for outcome in outcomes:
        rounds = {standing.name: standing.rounds for standing in outcome.standings}
        if name in rounds and rival in rounds:
            common = min(len(rounds[name]), len(rounds[rival]))
            found.append(paired_ratio(rounds[name][:common], rounds[rival][:common]))
    if not found:
        return Interval(0.0, math.inf, math.inf)
    mean = math.exp(statistics.fmean(math.log(interval.ratio) for interval in found))
    return Interval(min(interval.low for interval in found), mean, max(interval.high for interval in found))


def _together(outcomes: Sequence[Outcome[Name]]) -> Outcome[Name]:
    if len(outcomes) < 2:
        return outcomes[0] if outcomes else Outcome((), certain=False)
    winner = _leader(outcomes)
    last = {standing.name: standing for outcome in outcomes for standing in outcome.standings}
    # Those of the later heats first: they were still in it when the others were out.
    order = {name: index for index, outcome in enumerate(outcomes) for name in (s.name for s in outcome.standings)}
    standings = [replace(standing, ratio=_ratio(outcomes, name, winner)) for name, standing in last.items()]
    standings.sort(key=lambda s: (s.name != winner, -order[s.name], s.ratio.ratio))
    agreed = outcomes[-1].standings[0].name == winner
    return Outcome(tuple(standings), agreed and outcomes[-1].certain)


def _beaten(name: Name, leader: Name, ratio: Interval, times: dict[Name, list[float]], margin: float) -> bool:
    rounds = len(times[name])
    if rounds >= _FAR_ROUNDS:
        pairs = zip(times[name], times[leader], strict=True)
        if all(math.log(time / best) > _FAR for time, best in pairs):
            return True
    return rounds >= _FEWEST_ROUNDS and ratio.low > margin


def _standings(times: dict[Name, list[float]], alive: Sequence[Name]) -> tuple[Standing[Name], ...]:
    """Winner first: the fastest of those still in the race; the others by their ratio to it."""
    finished = {name: [time for time in series if math.isfinite(time)] for name, series in times.items()}
    ran = [name for name in times if finished[name]]
    if not ran:
        return ()
    winner = min(alive or ran, key=lambda name: statistics.median(finished[name]))
    standings = []
    for name in ran:
        common = min(len(finished[name]), len(finished[winner]))
        ratio = paired_ratio(finished[name][:common], finished[winner][:common])
        standings.append(Standing(name, tuple(finished[name]), ratio))
    standings.sort(key=lambda standing: (standing.name != winner, standing.ratio.ratio))
    return tuple(standings)
