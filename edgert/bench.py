"""The referee: edgert's choice against every single target, measured afresh and apart from the planner.

    load      the plan, as any application gets it
    prepare   a fresh copy of each target, each in a process of its own
    heats     all of them, interleaved: who is fastest but the chosen one? That one is the rival
    final     chosen, rival, `Model.run` and plain ONNX Runtime, interleaved; the heats do not count here,
              so that a target which was lucky once is not compared by its luck

A round visits every contender once, in random order; a visit is one discarded stretch of calls (the caches belong to
whoever ran before) and then the timed calls, of which the median counts. Two contenders are compared by the ratio
of their medians round by round: what slows the machine for a while slows both.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from edgert.devices.backend import Source
from edgert.devices.remote import Remote, RemoteRunnable
from edgert.errors import EdgertError
from edgert.machine import Machine
from edgert.plan import Plan
from edgert.profile import Outcome, Row, Target
from edgert.tensor import Data
from edgert.transport.child import Child

if TYPE_CHECKING:
    import os

    from edgert.model import Model

Role: TypeAlias = Literal["edgert", "chosen", "candidate", "baseline"]
"""edgert: `Model.run`, receipt included; chosen: a fresh copy of the plan's target; baseline: life without edgert."""
Progress: TypeAlias = Callable[[str, float], None]

VISIT_S = 0.02
"""Timed calls of one visit last at least this long, as far as the call's own length allows."""
HEATS = 0.4
"""Part of the time that goes to the heats."""
LEAST_HEATS, LEAST_FINALS = 3, 12
"""Rounds that are run even when the time is over."""
TOO_SLOW = 4.0
"""A contender that needs so many times the fastest's time leaves the heats after the first."""
ENOUGH = 1.02
"""A choice that may be this near to the best other target holds."""
PREPARE_LIMIT_S = 120.0
CALL_LIMIT_S = 60.0
_WANTED: frozenset[Outcome] = frozenset({"ok", "slow", "untried"})


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio of times and the range that holds it in 95 of 100 repetitions."""

    ratio: float
    low: float
    high: float
    rounds: int
    """Pairs that it comes from."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender."""

    name: str
    """The target as text, 'edgert' or 'onnxruntime, plain'."""
    role: Role
    outcome: Outcome
    """As in `Row`; 'ok' when it was timed here."""
    reason: str = ""
    """Why it was not timed."""
    p50_s: float = 0.0
    """Over all timed calls; 0 when there are none. So are the next three."""
    p95_s: float = 0.0
    p99_s: float = 0.0
    best_s: float = 0.0
    items_per_s: float = 0.0
    """Calls per second of timed running, one after another."""
    calls: int = 0
    memory_bytes: int = 0
    """Resident memory of the process that holds it alone, after its first run; 0 when unknown or shared."""
    prepare_s: float = 0.0
    over_chosen: Interval | None = None
    """Its time / the chosen one's; for the finalists only."""


@dataclass(frozen=True, slots=True)
class Report:
    """One model."""

    model: str
    """File name."""
    plan: str
    """`Plan.id`."""
    objective: str
    precision: str
    """What the planner was allowed."""
    chosen: str
    """Targets of the plan."""
    verified: bool
    rival: str
    """The fastest candidate but the chosen one; '' when there was none."""
    over_rival: Interval | None
    """The chosen one's time / the rival's: below 1 the choice was right, up to 1.02 it does not matter."""
    speedup: Interval | None
    """Plain ONNX Runtime's time / the chosen one's; None for models that it cannot read."""
    rows: tuple[Measured, ...]
    """Fastest first, then those that were not timed."""
    seconds: float
    """How long the measuring took."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    path: str | os.PathLike[str],
    *,
    seconds: float = 10.0,
    seed: int = 0,
    inputs: Mapping[str, Data] | None = None,
    progress: Progress | None = None,
    **load: Any,
) -> Report:
    """Measure how good edgert's choice for a model is.

    Args:
        path: the model file.
        seconds: for measuring, planning and preparing aside; the least number of rounds may need more.
        seed: of the order of the visits, and of the inputs when none are given.
        inputs: one request; synthesised when None.
        progress: called with what is being done and the part that is done, 0 to 1.
        load: for `edgert.load`.

    Raises:
        EdgertError: whatever `edgert.load` raises.
    """
    import edgert
    from edgert.formats import open_model
    from edgert.samples import synthesise

    tell = progress or _silent
    tell("planning", 0.0)
    with ExitStack() as stack:
        model = stack.enter_context(edgert.load(path, **load))
        file = open_model(path)
        request = dict(inputs) if inputs is not None else synthesise(file.graph, seed=seed)[0]
        source = Source(Path(path).resolve(), file.format, file.graph.inputs, file.graph.outputs, file.precision)
        entries = _entries(model, _Setting(source, edgert.probe(), request, stack), tell)
        outcome = race(entries, seconds, random.Random(seed), tell)
        return _report(Path(path), model.plan, entries, outcome)


def _silent(_text: str, _part: float) -> None:
    """Nobody watches."""


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


class _Copy:
    """A target in a process of its own, timed there."""

    def __init__(self, runnable: RemoteRunnable) -> None:
        self._runnable = runnable

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        return self._runnable.time("bench", calls, at_most_s=at_most_s, timeout_s=CALL_LIMIT_S + at_most_s)


class _Plain:
    """ONNX Runtime as one gets it without edgert, in a process of its own."""

    def __init__(self, child: Child, request: Mapping[str, Data]) -> None:
        self._child = child
        child.call("hold", {}, request)

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        body = {"calls": calls, "at_most_s": at_most_s}
        answer, _ = self._child.call("time", body, timeout_s=CALL_LIMIT_S + at_most_s)
        return [float(each) for each in answer["seconds"]]


class _OneByOne:
    """`Model.run`, as an application calls it."""

    def __init__(self, model: Model, request: Mapping[str, Data]) -> None:
        self._model, self._request = model, request

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        times_s: list[float] = []
        stop_s = time.perf_counter() + at_most_s
        while len(times_s) < calls and (not times_s or time.perf_counter() < stop_s):
            started_s = time.perf_counter()
            self._model.run(self._request)
            times_s.append(time.perf_counter() - started_s)
        return times_s


class _Busy:
    """`Model.submit` with two requests per instance under way: seconds per request with every instance busy."""

    def __init__(self, model: Model, request: Mapping[str, Data]) -> None:
        self._model, self._request = model, request
        self._depth = 2 * max(1, len(model.plan.instances))

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        pending: list[Future[Any]] = []
        started_s, done = time.perf_counter(), 0
        calls = max(calls, 2 * self._depth)
        while done < calls and (done == 0 or time.perf_counter() - started_s < at_most_s):
            while len(pending) < self._depth:
                pending.append(self._model.submit(self._request))
            pending.pop(0).result()
            done += 1
        each_s = (time.perf_counter() - started_s) / done
        for future in pending:
            future.result()
        return [each_s]


@dataclass(frozen=True, slots=True)
class _Setting:
    """What every contender runs, and where."""

    source: Source
    machine: Machine
    request: Mapping[str, Data]
    stack: ExitStack
    """Ends the processes."""


def _entries(model: Model, setting: _Setting, tell: Progress) -> list[Entry]:
    """Everything that takes part, prepared; what does not prepare is in, with the reason."""
    plan, request = model.plan, setting.request
    chosen = plan.targets[0] if len(plan.segments) == 1 and plan.objective == "latency" else None
    entries = [Entry("edgert", "edgert", _OneByOne(model, request))]
    if plan.objective == "throughput":
        entries[0].contender = _Busy(model, request)
    rows = [*plan.candidates]
    if chosen is not None and all(row.target != chosen for row in rows):
        rows.insert(0, Row(chosen, "ok"))  # a plan may come without its candidates
    for index, row in enumerate(rows):
        tell(f"preparing {row.target}", 0.1 * index / len(rows))
        role: Role = "chosen" if row.target == chosen else "candidate"
        entry = Entry(str(row.target), role, None, row.outcome, row.reason)
        if row.outcome in _WANTED:
            _prepare(entry, row.target, setting)
        entries.append(entry)
    if setting.source.format == "onnx":
        entries.append(_baseline(setting))
    return entries


def _prepare(entry: Entry, target: Target, setting: _Setting) -> None:
    remote = Remote(f"bench of {target}")
    setting.stack.callback(remote.close)
    try:
        device = setting.machine.device(target.device)
        runnable = remote.prepare(setting.source, target, device, timeout_s=PREPARE_LIMIT_S)
        remote.hold("bench", setting.request)
        entry.contender = _Copy(runnable)
        entry.contender.visit(1, CALL_LIMIT_S)
        entry.prepare_s, entry.memory_bytes, entry.outcome = runnable.prepare_s, resident_bytes(remote.pid), "ok"
    except EdgertError as error:
        remote.close()
        entry.contender, entry.outcome, entry.reason = None, "refused", error.message


def _baseline(setting: _Setting) -> Entry:
    entry = Entry("onnxruntime, plain", "baseline")
    child = setting.stack.enter_context(Child("edgert.devices.plain:Plain", name="plain onnxruntime"))
    try:
        body, _ = child.call("open", {"path": str(setting.source.path)}, timeout_s=PREPARE_LIMIT_S)
        entry.contender, entry.prepare_s = _Plain(child, setting.request), body["prepare_s"]
        entry.contender.visit(1, CALL_LIMIT_S)
        entry.memory_bytes = resident_bytes(child.pid)
    except EdgertError as error:
        entry.contender, entry.outcome, entry.reason = None, "refused", error.message
    return entry


def race(entries: Sequence[Entry], seconds: float, rng: random.Random, tell: Progress = _silent) -> Race:
    """Heats, which find the rival, and the final."""
    ready = [entry for entry in entries if entry.contender is not None]
    start_s = time.perf_counter()
    heats, running = 0, ready
    while heats < LEAST_HEATS or time.perf_counter() - start_s < HEATS * seconds:
        tell(f"heat {heats + 1}", HEATS * min(1.0, heats / LEAST_HEATS))
        play_round(running, rng)
        heats += 1
        fastest_s = min(statistics.median(entry.medians_s) for entry in running if entry.medians_s)
        running = [entry for entry in running if entry.role != "candidate" or _keeps_up(entry, fastest_s)]
    rivals = [entry for entry in running if entry.role == "candidate" and entry.contender is not None]
    rival = min(rivals, key=lambda entry: statistics.median(entry.medians_s), default=None)
    finalists = [entry for entry in running if entry.role != "candidate" or entry is rival]
    before = {entry.name: len(entry.medians_s) for entry in finalists}
    rounds = 0
    while rounds < LEAST_FINALS or time.perf_counter() - start_s < seconds:
        spent = (time.perf_counter() - start_s) / seconds if seconds else 1.0
        tell(f"final round {rounds + 1}", min(spent, rounds / LEAST_FINALS, 1.0))
        play_round(finalists, rng)
        rounds += 1
    finals = {entry.name: entry.medians_s[before[entry.name] :] for entry in finalists}
    return Race(rival, finals, time.perf_counter() - start_s)


def _keeps_up(entry: Entry, fastest_s: float) -> bool:
    return entry.contender is not None and statistics.median(entry.medians_s) <= TOO_SLOW * fastest_s


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
    seconds: float


def _report(path: Path, plan: Plan, entries: Sequence[Entry], outcome: Race) -> Report:
    rival, finals = outcome.rival, outcome.finals
    # A plan of several segments, or one for throughput, has no single target: then edgert itself is the chosen one.
    chosen = next((entry for entry in entries if entry.role == "chosen"), entries[0])
    baseline = next((entry for entry in entries if entry.role == "baseline"), None)
    own_s = finals.get(chosen.name, ())
    ratios = {  # who failed half-way has no pairs for all rounds
        name: paired_ratio(medians_s, own_s)
        for name, medians_s in finals.items()
        if name != chosen.name and len(medians_s) == len(own_s)
    }
    against = ratios.get(rival.name) if rival is not None else None
    rows = [_measured(entry, ratios.get(entry.name)) for entry in entries]
    return Report(
        model=path.name,
        plan=plan.id,
        objective=plan.objective,
        precision=plan.precision,
        chosen=" → ".join(str(target) for target in plan.targets),
        verified=plan.verification.verified,
        rival="" if rival is None else rival.name,
        over_rival=None if against is None else inverse(against),
        speedup=ratios.get(baseline.name) if baseline is not None else None,
        rows=tuple(sorted(rows, key=lambda row: (not row.calls, row.p50_s))),
        seconds=outcome.seconds,
    )


def _measured(entry: Entry, over_chosen: Interval | None) -> Measured:
    if not entry.times_s:
        return Measured(entry.name, entry.role, entry.outcome, entry.reason)
    ordered = sorted(entry.times_s)
    return Measured(
        entry.name,
        entry.role,
        entry.outcome,
        entry.reason,
        p50_s=quantile(ordered, 0.5),
        p95_s=quantile(ordered, 0.95),
        p99_s=quantile(ordered, 0.99),
        best_s=ordered[0],
        items_per_s=len(ordered) / sum(ordered),
        calls=len(ordered),
        memory_bytes=entry.memory_bytes,
        prepare_s=entry.prepare_s,
        over_chosen=over_chosen,
    )


def paired_ratio(first_s: Sequence[float], second_s: Sequence[float]) -> Interval:
    """The ratio first / second, round by round: exp of the mean log ratio, with Student's 95% interval of that mean.

    Args:
        first_s: median of each round, in seconds.
        second_s: the same rounds of the other; as many, at least 3.
    """
    logs = [math.log(first / second) for first, second in zip(first_s, second_s, strict=True)]
    mean = statistics.fmean(logs)
    half = student_975(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


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


def overall(reports: Sequence[Report]) -> dict[str, Any]:
    """What several models say together: how many choices hold, and the geometric mean over plain ONNX Runtime."""
    compared = [report.over_rival for report in reports if report.over_rival is not None]
    speedups = [report.speedup.ratio for report in reports if report.speedup is not None]
    return {
        "compared": len(compared),
        "holds": sum(1 for interval in compared if interval.low <= ENOUGH),
        "speedup": geomean(speedups) if speedups else None,
    }


def resident_bytes(pid: int | None) -> int:
    """Resident memory of a process; 0 where the kernel does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)
