"""The referee: edgert's choice against every single target, measured afresh and apart from the planner.

    load      the plan, as any application gets it
    prepare   a fresh copy of each target, each in a process of its own (for throughput: as many instances as fit)
    heats     all of them, interleaved: who is fastest but the chosen one? That one is the rival
    final     chosen, rival, `Model.run` and plain ONNX Runtime, interleaved; the heats do not count here,
              so that a target which was lucky once is not compared by its luck

How rounds are played and compared is in `edgert.race`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgert.contenders import CALL_LIMIT_S, SAMPLE, Busy, Copy, OneByOne, Plain, Together
from edgert.devices import probe as probing
from edgert.devices.backend import Source
from edgert.devices.remote import Remote
from edgert.errors import EdgertError
from edgert.formats import ModelFile, open_model
from edgert.loading import load as load_model
from edgert.machine import Device, Machine
from edgert.model import Model
from edgert.plan import Plan, Tolerance
from edgert.planning.candidates import candidates
from edgert.profile import Outcome, Row, Target
from edgert.race import Entry, Interval, Progress, Race, Role, geomean, inverse, paired_ratio, quantile, race, silent
from edgert.samples import synthesise
from edgert.tensor import Data
from edgert.transport.child import Child
from edgert.verify import compare, judge, output_steps

ENOUGH = 1.02
"""A choice that may be this near to the best other target holds."""
PREPARE_LIMIT_S = 120.0
_PREPARING = 0.2
"""Part of the progress that preparing takes."""
_OUT: frozenset[Outcome] = frozenset({"wrong", "refused", "crashed", "timeout", "out of memory"})
"""What the planner found no answer, or a wrong one, from: not timed."""


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
    """Calls per second of timed running: one after another, or for throughput of all instances together."""
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
    tell = progress or silent
    with ExitStack() as stack:
        model = stack.enter_context(load_model(path, progress=lambda text, _part: tell(text, 0.0), **load))
        machine = load.get("machine") or probing.probe()
        setting = _Setting(open_model(path), machine, model.plan, _wanted_tolerance(load), stack)
        setting.request.update(inputs if inputs is not None else synthesise(setting.file.graph, seed=seed)[0])
        entries = _entries(model, setting, load.get("targets"), tell)
        outcome = race(
            entries, seconds, random.Random(seed), lambda text, part: tell(text, _PREPARING + (1 - _PREPARING) * part)
        )
        return _report(Path(path), setting.plan, entries, outcome)


def _wanted_tolerance(load: Mapping[str, Any]) -> Tolerance:
    asked = load.get("tolerance")
    if asked is None or isinstance(asked, Tolerance):
        return asked or Tolerance()
    return Tolerance(range_fraction=float(asked), sqnr_db=float("inf"))


@dataclass(slots=True)
class _Setting:
    """What every contender runs, where, and by what it is judged."""

    file: ModelFile
    machine: Machine
    plan: Plan
    tolerance: Tolerance
    stack: ExitStack
    """Ends the processes."""
    request: dict[str, Data] = field(default_factory=dict)
    answer: dict[str, Data] = field(default_factory=dict)
    """Of the plan, which was checked when it was made."""

    @property
    def source(self) -> Source:
        graph = self.file.graph
        return Source(self.file.path, self.file.format, graph.inputs, graph.outputs, self.file.precision)

    def judge(self, target: Target, answer: Mapping[str, Data]) -> str:
        """Why an answer is too far from the plan's; '' when it is not."""
        errors = compare(self.answer, answer, output_steps(self.file.graph))
        dtypes = {value.name: value.dtype for value in self.file.graph.outputs}
        return judge(errors, self.tolerance, self.file.precision, target.precision, dtypes)


def _entries(model: Model, setting: _Setting, targets: Sequence[str] | None, tell: Progress) -> list[Entry]:
    """Everything that takes part, prepared; what does not prepare is in, with the reason."""
    plan, request = setting.plan, setting.request
    setting.answer = dict(model.run(request))
    edgert = Busy(model, request) if plan.objective == "throughput" else OneByOne(model, request)
    entries = [Entry("edgert", "edgert", edgert)]
    chosen = plan.targets[0] if len(plan.segments) == 1 else None
    allowed = candidates(setting.source, setting.machine, plan.precision, targets).targets
    known = {row.target: row for row in plan.candidates}
    for index, target in enumerate(dict.fromkeys([*plan.targets, *allowed])):
        tell(f"preparing {target}", _PREPARING * index / (1 + len(allowed)))
        row = known.get(target, Row(target, "untried"))
        entry = Entry(str(target), "chosen" if target == chosen else "candidate", None, row.outcome, row.reason)
        if row.outcome not in _OUT:
            _prepare(entry, row, setting)
        entries.append(entry)
    if setting.file.format == "onnx":
        entries.append(_baseline(setting))
    return entries


def _prepare(entry: Entry, row: Row, setting: _Setting) -> None:
    remote = Remote(f"bench of {row.target}")
    setting.stack.callback(remote.close)
    try:
        device = setting.machine.device(row.target.device)
        cores = _instances(setting.plan, row.target, device)
        runnables = [remote.prepare(setting.source, row.target, device, timeout_s=PREPARE_LIMIT_S) for _ in cores]
        runnable = runnables[0]
        remote.hold(SAMPLE, setting.request)
        answer, _ = runnable.run_held(SAMPLE, timeout_s=CALL_LIMIT_S)
        wrong = setting.judge(row.target, answer) if row.outcome == "untried" else ""
    except EdgertError as error:
        remote.close()
        entry.outcome, entry.reason = "refused", error.message
        return
    if wrong:
        remote.close()
        entry.outcome, entry.reason = "wrong", wrong
        return
    entry.contender = Copy(runnable) if len(cores) == 1 else Together(remote, runnables, cores)
    entry.outcome, entry.reason = "ok", ""
    entry.renew = partial(_renew, remote.close, lambda again: _prepare(again, row, setting))
    entry.prepare_s, entry.memory_bytes = runnable.prepare_s, resident_bytes(remote.pid)


def _renew(end: Callable[[], None], prepare: Callable[[Entry], None], entry: Entry) -> None:
    end()
    entry.contender = None
    prepare(entry)


def _instances(plan: Plan, target: Target, device: Device) -> list[tuple[int, ...]]:
    """Cores of each instance: the plan's for its own target; for others as many as the device has room for."""
    if plan.objective == "latency":
        return [()]
    if target in plan.targets:
        return [instance.cores for instance in plan.instances]
    room = max(1, len(device.cores) // target.threads) if target.threads else 1
    if room == 1:
        return [()]
    return [device.cores[index * target.threads : (index + 1) * target.threads] for index in range(room)]


def _baseline(setting: _Setting) -> Entry:
    entry = Entry("onnxruntime, plain", "baseline")
    _open_plain(entry, setting)
    return entry


def _open_plain(entry: Entry, setting: _Setting) -> None:
    child = setting.stack.enter_context(Child("edgert.devices.plain:Plain", name="plain onnxruntime"))
    try:
        body, _ = child.call("open", {"path": str(setting.file.path)}, timeout_s=PREPARE_LIMIT_S)
        entry.contender, entry.prepare_s = Plain(child, setting.request), body["prepare_s"]
        entry.contender.visit(1, CALL_LIMIT_S)
        entry.memory_bytes = resident_bytes(child.pid)
        entry.renew = partial(_renew, child.close, lambda again: _open_plain(again, setting))
    except EdgertError as error:
        entry.contender, entry.outcome, entry.reason = None, "refused", error.message


def _report(path: Path, plan: Plan, entries: Sequence[Entry], outcome: Race) -> Report:
    rival, finals = outcome.rival, outcome.finals
    # A plan of several segments has no single target: then edgert itself is the chosen one.
    chosen = next((entry for entry in entries if entry.role == "chosen"), entries[0])
    baseline = next((entry for entry in entries if entry.role == "baseline"), None)
    own_s = finals.get(chosen.name, ())
    ratios = {  # who failed half-way has no pairs for all rounds
        name: paired_ratio(medians_s, own_s, outcome.sessions)
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


def overall(reports: Sequence[Report]) -> dict[str, Any]:
    """What several models say together: how many choices hold, and the geometric means over plain ONNX Runtime of the
    choices and of the best targets, chosen or not (a rival that was only lucky counts: the share is on the low side).
    """
    compared = [report.over_rival for report in reports if report.over_rival is not None]
    faster = [report for report in reports if report.speedup is not None]
    speedups = [report.speedup.ratio for report in faster if report.speedup is not None]
    beyond = [max(1.0, report.over_rival.ratio) if report.over_rival is not None else 1.0 for report in faster]
    return {
        "compared": len(compared),
        "holds": sum(1 for interval in compared if interval.low <= ENOUGH),
        "speedup": geomean(speedups) if speedups else None,
        "best_speedup": geomean(speedups) * geomean(beyond) if speedups else None,
    }


def resident_bytes(pid: int | None) -> int:
    """Resident memory of a process; 0 where the kernel does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)
