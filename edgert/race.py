"""A race: contenders timed in turns, and two of them compared by paired rounds. Whoever can be timed can take part.

A round visits every contender once, in random order; a visit is one discarded stretch of calls (the caches belong to
whoever ran before) and then the timed calls, of which the median counts. Two contenders are compared by the ratio
of their medians round by round: what slows the machine for a while slows both. The final is run in several sessions,
before each of which the finalists are prepared anew in new processes: two identical processes differ for as long as
they live, so what was seen in one says little about the next.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from edgert.errors import EdgertError
from edgert.profile import Outcome

Role: TypeAlias = Literal["edgert", "chosen", "candidate", "baseline"]
"""edgert: `Model.run`, receipt included; chosen: a fresh copy of the plan's target; baseline: life without edgert."""
Progress: TypeAlias = Callable[[str, float], None]

VISIT_S = 0.02
"""Timed calls of one visit last at least this long, as far as the call's own length allows."""
HEATS = 0.4
"""Part of the time that goes to the heats."""
SESSIONS = 4
"""Of the final; a measurement of less than a second makes do with one."""
LEAST_HEATS, LEAST_FINALS = 3, 12
"""Rounds that are run even when the time is over; those of the final are shared by its sessions."""
HOPELESS, TOO_SLOW = 20.0, 4.0
"""A candidate that needs so many times the fastest's time leaves the heats after the first round, after the second."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio of times and the range that holds it in 95 of 100 repetitions."""

    ratio: float
    low: float
    high: float
    rounds: int
    """Pairs that it comes from."""


class Contender(Protocol):
    """Something that can be timed."""

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        """Seconds of each of up to `calls` calls; at least one, no new one once `at_most_s` has passed."""
        ...


@dataclass(slots=True)
class Entry:
    """A contender in the race, and what was timed of it so far."""

    name: str
    role: Role
    contender: Contender | None = None
    outcome: Outcome = "ok"
    reason: str = ""
    memory_bytes: int = 0
    prepare_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    medians_s: list[float] = field(default_factory=list)
    """Of each round."""
    renew: Callable[[Entry], None] | None = None
    """Puts a contender of a new process in the place of this one, or None with the reason; None where it stays."""

    def take_part(self, visit_s: float) -> None:
        """One visit: as many calls as fit into `visit_s`, at least three of a quick target and one of a slow one."""
        assert self.contender is not None
        typical_s = statistics.median(self.times_s) if self.times_s else None
        if typical_s is None:
            self.contender.visit(2, visit_s)  # the very first calls allocate and compile
            typical_s = self.contender.visit(1, visit_s)[0]
        if typical_s < visit_s:
            self.contender.visit(1 + int(0.1 * visit_s / typical_s), visit_s)
        calls = max(3 if typical_s < 5 * visit_s else 1, math.ceil(visit_s / typical_s))
        times_s = self.contender.visit(calls, 10 * max(visit_s, typical_s))
        self.times_s += times_s
        self.medians_s.append(statistics.median(times_s))


def silent(_text: str, _part: float) -> None:
    """Nobody watches."""


def race(entries: Sequence[Entry], seconds: float, rng: random.Random, tell: Progress = silent) -> Race:
    """Heats, which find the rival, and the final."""
    ready = [entry for entry in entries if entry.contender is not None]
    start_s = time.perf_counter()
    heats, running = 0, ready
    while running and (heats < LEAST_HEATS or time.perf_counter() - start_s < HEATS * seconds):
        tell(f"heat {heats + 1}", HEATS * min(1.0, heats / LEAST_HEATS))
        play_round(running, rng)
        heats += 1
        running = [entry for entry in running if entry.contender is not None]
        fastest_s = min((statistics.median(entry.medians_s) for entry in running), default=0.0)
        limit_s = fastest_s * (HOPELESS if heats == 1 else TOO_SLOW)
        running = [entry for entry in running if entry.role != "candidate" or _keeps_up(entry, limit_s)]
    rivals = [entry for entry in ready if entry.role == "candidate" and entry.contender is not None]
    rival = min(rivals, key=lambda entry: statistics.median(entry.medians_s), default=None)
    finalists = [entry for entry in ready if entry.role != "candidate" or entry is rival]
    finals, sessions = _final(finalists, (1 - HEATS) * seconds, rng, tell)
    return Race(rival, finals, sessions, time.perf_counter() - start_s)


def _final(
    finalists: Sequence[Entry], seconds: float, rng: random.Random, tell: Progress
) -> tuple[dict[str, list[float]], tuple[int, ...]]:
    """Round medians of each, and how many rounds each session had; renewing costs none of the time."""
    before = {entry.name: len(entry.medians_s) for entry in finalists}
    sessions: list[int] = []
    wanted = SESSIONS if seconds >= 1 - HEATS else 1
    for session in range(wanted):
        if session:
            for entry in finalists:
                if entry.renew is not None and entry.contender is not None:
                    entry.renew(entry)
        end_s, rounds = time.perf_counter() + seconds / wanted, 0
        while any(entry.contender is not None for entry in finalists) and (
            rounds < LEAST_FINALS // wanted or time.perf_counter() < end_s
        ):
            tell(f"final, session {session + 1} of {wanted}", HEATS + (1 - HEATS) * session / wanted)
            play_round(finalists, rng)
            rounds += 1
        sessions.append(rounds)
    return {entry.name: entry.medians_s[before[entry.name] :] for entry in finalists}, tuple(sessions)


def _keeps_up(entry: Entry, limit_s: float) -> bool:
    return statistics.median(entry.medians_s) <= limit_s


def play_round(entries: Sequence[Entry], rng: random.Random, visit_s: float = VISIT_S) -> None:
    """Visit everyone once, in random order; who fails is out, with the reason."""
    for entry in rng.sample(list(entries), len(entries)):
        if entry.contender is None:
            continue
        try:
            entry.take_part(visit_s)
        except EdgertError as error:
            entry.contender, entry.outcome, entry.reason = None, "crashed", error.message


@dataclass(frozen=True, slots=True)
class Race:
    """What a race found."""

    rival: Entry | None
    finals: Mapping[str, Sequence[float]]
    """Round medians of the finalists, by name."""
    sessions: tuple[int, ...]
    """Rounds of each session, in order."""
    seconds: float


def paired_ratio(first_s: Sequence[float], second_s: Sequence[float], sessions: Sequence[int] = ()) -> Interval:
    """The ratio first / second, round by round: exp of the mean log ratio, with Student's 95% interval of that mean.

    Args:
        first_s: median of each round, in seconds.
        second_s: the same rounds of the other; as many, at least 3.
        sessions: numbers of consecutive rounds that the same two processes ran. Three or more, and the means of the
            sessions are what varies: rounds of one session share its luck.
    """
    logs = [math.log(first / second) for first, second in zip(first_s, second_s, strict=True)]
    rounds = len(logs)
    if len(sessions) >= 3:
        ends = list(itertools.accumulate(sessions))
        logs = [statistics.fmean(logs[end - count : end]) for end, count in zip(ends, sessions, strict=True)]
    mean = statistics.fmean(logs)
    half = student_975(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), rounds)


def inverse(interval: Interval) -> Interval:
    """The same comparison the other way round."""
    return Interval(1 / interval.ratio, 1 / interval.high, 1 / interval.low, interval.rounds)


def student_975(freedom: int) -> float:
    """The 0.975 quantile of Student's t: within 0.5% for 4 and more degrees of freedom, exact for 1 to 3.

    Expansion in 1 / freedom: Abramowitz & Stegun 26.7.5.
    """
    if freedom <= 3:
        return (12.7062, 4.3027, 3.1824)[freedom - 1]
    z, n = 1.959964, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n ** (power + 1) for power, term in enumerate(terms))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the ordered values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def geomean(numbers: Sequence[float]) -> float:
    """The geometric mean of positive numbers."""
    return math.exp(statistics.fmean(math.log(number) for number in numbers))
