"""Whether a model runs faster in pieces: tried where it can pay, kept only if it wins the race beyond the noise."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgert.errors import Cancelled, ChildTimeout, EdgertError
from edgert.execution.segments import Parts, tidied_parts
from edgert.formats import ModelFile
from edgert.measure import Contestant
from edgert.partitioner.blocks import blocks_of
from edgert.plan import Plan
from edgert.planning.candidates import LAST_RESORT
from edgert.planning.capability import Capability, capability, everything
from edgert.planning.cleanup import tidied
from edgert.planning.contest import contest
from edgert.planning.costs import measure_blocks, remembered_links
from edgert.planning.ledger import entries
from edgert.planning.predict import with_links
from edgert.planning.proposals import Proposal, by_capability, by_cost, measured, short
from edgert.planning.quarantine import Quarantine
from edgert.planning.rates import contest_rates
from edgert.planning.reference import LIMIT_S
from edgert.planning.setting import Setting
from edgert.planning.workshop import Workshop, reference_values
from edgert.profile import Target
from edgert.tensor import Data

_log = logging.getLogger(__name__)
_WORTH_S = 3e-4
"""A model that some target runs whole in less is not split: calling another device costs a third of that."""
_SHARE = 0.5
"""Of the budget: what asking and measuring pieces may take at least."""
_MOST_WHOLE, _MOST_PARTIAL, _MOST_RACED = 3, 4, 4
_MOST_BLOCKS = 3000
_MOST_NAMED = 5
"""Refused blocks of one target that the notes name."""


@dataclass(frozen=True, slots=True)
class Field:
    """Who takes part."""

    whole: tuple[Target, ...]
    """Ran the whole model right; fastest first."""
    partial: tuple[Target, ...]
    """Refused it, or got it wrong, and may take a part."""


def consider(plan: Plan, setting: Setting) -> Plan:
    """The plan, or a better one in pieces; its notes say what was tried and why it lost."""
    entrants = _field(setting)
    if entrants is None:
        return plan
    with _folder(setting.course.cache) as folder:
        file, note = tidied(setting, folder) if setting.course.cache is not None else (setting.work.file, "")
        workshop = _workshop(setting, folder, file)
        found = [everything(target, len(workshop.blocks)) for target in entrants.whole]
        if not 2 <= len(workshop.blocks) <= _MOST_BLOCKS:
            return plan
        try:
            workshop.values = _values(workshop, setting)
            proposals = _proposals(workshop, entrants, setting, found)
            judge = contest if workshop.objective == "latency" else contest_rates
            better = judge(plan, workshop, proposals, setting)
        except _Quiet as error:
            workshop.note(str(error))
            better = plan
        finally:
            workshop.save()
        workshop.parts.prune(better.segments if len(better.segments) > 1 else ())
    if len(better.segments) > 1 and file is not setting.work.file:
        better = replace(better, tidied=file.digest)
    return replace(
        better,
        blocks=entries(better, workshop, found) if workshop.answers else (),
        notes=(*better.notes, *([note] if note else []), *workshop.notes),
        complete=better.complete and not workshop.hurried,
    )


class _Quiet(EdgertError):
    """Splitting cannot even be tried; the message is a note."""


def _field(setting: Setting) -> Field | None:
    """Who takes part in a split; None where none can pay.

    It can where several devices run the model (software ones only take part when the user names them), or where a
    target refuses the whole model, or gets it wrong at the model's own precision, and may be fast on a part of it.
    """
    if not setting.reference.answers or setting.checker.random:
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


def _workshop(setting: Setting, folder: Path, file: ModelFile) -> Workshop:
    """Where pieces of `file`, which is the model or what it was tidied up to, are tried."""
    work, course = setting.work, setting.course
    memory = work.memory
    key = [memory.machine.fingerprint, memory.versions(), work.wish.samples, asdict(work.wish.tolerance)]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = memory.folder / "costs" / memory.model[:16] / f"{name}.json" if memory.folder else None
    parts = folder / "segments" if file is work.file else tidied_parts(folder)
    workshop = Workshop(
        file, blocks_of(file.graph), course, work.wish.tolerance, Parts(course.source, parts, lambda: file),
        Quarantine(memory.folder, memory.machine),
        setting.tried.remote, lambda target: [other for other in setting.targets if _way(other) == _way(target)],
        setting.say, memory=path, objective=work.wish.objective,
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
        limit_s = LIMIT_S if target.backend == LAST_RESORT else setting.course.prepare_limit_s
        try:
            return reference_values(workshop, target, min(limit_s, max(1.0, workshop.deadline_s - time.monotonic())))
        except EdgertError as error:
            if isinstance(error, Cancelled):
                raise
            workshop.hurried |= isinstance(error, ChildTimeout)
            reasons.append(f"{target}: {error.message}")
    raise _Quiet(f"no split was tried: the values inside the model are not to be had ({'; '.join(reasons)[:300]})")


def _proposals(workshop: Workshop, entrants: Field, setting: Setting, found: list[Capability]) -> list[Proposal]:
    """The best few ways to split, by what their segments took; what each target takes is added to `found`."""
    for target in entrants.partial:
        kin = next((each for each in found if each.refused and _library(each.target) == _library(target)), None)
        found.append(capability(workshop, target, kin))
    _explain(workshop, found)
    made: list[Proposal] = []
    for placement, cause in by_capability(workshop, found):
        made += measured(workshop, placement, cause)
    useful = [each for each in found if each.taken]
    whole = tuple(range(len(workshop.blocks)))
    workshop.stretches |= {(target, whole): setting.whole[target].call_s for target in entrants.whole}
    children = {each.target.device: workshop.remote_of(each.target) for each in useful}
    children.pop("cpu:0", None)
    links = remembered_links(workshop, children) if children else ()
    made = [with_links(workshop, each, links) for each in made]
    if workshop.in_time and len(useful) > 1:
        costs = measure_blocks(workshop, useful)
        if costs.complete:
            made += by_cost(workshop, costs, links)
        else:
            workshop.note("the time was over before every block was measured: splits are by what targets take alone")
    workshop.hurried = not workshop.in_time
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
