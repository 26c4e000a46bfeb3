"""Splits for throughput: with as many requests in flight as there are instances, against the best of whole models.

While one device runs a later segment of a request, another runs an earlier one of the next: what counts is the most
loaded device. The rival is what ships without a split: as many instances of the whole model as its device has cores
for.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edgert.devices.remote import Remote
from edgert.errors import EdgertError
from edgert.execution.hosted import SERVICE
from edgert.measure import sample_name
from edgert.partitioner.race import paired_ratio
from edgert.plan import Instance, Plan
from edgert.planning.choose import Crowd
from edgert.planning.contest import Finalist, finalist_of, split_plan, text_of_ratio
from edgert.planning.proposals import Proposal
from edgert.planning.setting import Setting
from edgert.planning.workshop import Workshop, instances_of

__all__ = ["contest_rates"]

_ROUNDS = 8
_SHORTEST_S = 0.25
"""How long requests are kept in flight in one measurement."""
_PERIODS = 8
"""At least so many requests are finished in it."""
_HOPELESS = 1.5
"""A split whose most loaded device is predicted to need that many times as long as the whole model is not tried."""


@dataclass
class _Entry:
    """A split with requests in flight."""

    finalist: Finalist
    flight: int
    """How many requests."""
    period_s: float
    """About the time between their ends."""
    rates: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Another rate; raises EdgertError."""
        contestant = self.finalist.contestant
        seconds = max(_SHORTEST_S, _PERIODS * self.period_s)
        self.rates.append(
            contestant.remote.throughput(
                [contestant.runnable] * self.flight, [()] * self.flight, sample_name(0), seconds
            )
        )


def contest_rates(plan: Plan, workshop: Workshop, proposals: Sequence[Proposal], setting: Setting) -> Plan:
    """The plan, or that of the split that finishes more items a second beyond the noise."""
    whole = setting.whole.get(plan.segments[0].target)
    if whole is None or not plan.items_per_s:
        return plan
    chances = []
    for proposal in proposals:
        if proposal.predicted_s * plan.items_per_s > _HOPELESS:
            ratio = proposal.predicted_s * plan.items_per_s
            workshop.note(
                f"don't split: {proposal} is predicted at {ratio:.2f}x the whole model's time between requests"
            )
        else:
            chances.append(proposal)
    remotes: list[Remote] = []
    try:
        entries = _entries(chances, workshop, setting, remotes)
        crowd = Crowd.of(whole)
        _run(entries, crowd, workshop, setting.say)
        return _winner(plan, workshop, [entry for entry in entries if len(entry.rates) == _ROUNDS], crowd)
    finally:
        for remote in remotes:
            remote.close()


def _entries(chances: Sequence[Proposal], workshop: Workshop, setting: Setting, remotes: list[Remote]) -> list[_Entry]:
    """The splits that are right, each in a child of its own, so that a fault costs one of them."""
    entries = []
    for proposal in chances:
        setting.say(f"preparing {proposal}")
        remote = Remote("splits", service=SERVICE)
        remotes.append(remote)
        devices = {piece.target: setting.course.machine.device(piece.target.device) for piece in proposal.pieces}
        instances = {target: instances_of(device, target) for target, device in devices.items()}
        finalist = finalist_of(workshop, proposal, remote, setting, instances)
        if finalist is not None:
            flight = sum(len(instances[piece.target]) for piece in proposal.pieces)
            entries.append(_Entry(finalist, flight, proposal.predicted_s))
    return entries


def _run(entries: list[_Entry], crowd: Crowd, workshop: Workshop, say: Callable[[str], None]) -> None:
    """Rounds in which each has its turn; who fails is out, with a note."""
    for number in range(_ROUNDS if entries else 0):
        say(f"throughput of {len(entries)} splits against {crowd.contestant.target}, round {number + 1} of {_ROUNDS}")
        crowd.measure()
        for entry in list(entries):
            try:
                entry.measure()
            except EdgertError as error:
                split = f"the split {entry.finalist.proposal}"
                workshop.note(f"{split} failed with {entry.flight} requests in flight: {error.message[:200]}")
                entries.remove(entry)


def _winner(plan: Plan, workshop: Workshop, entries: Sequence[_Entry], crowd: Crowd) -> Plan:
    rates = crowd.rates
    if crowd.failure is not None:  # there is nothing that a split could be held to
        workshop.note(
            f"don't split: {crowd.contestant.target} failed while splits were held to it: {crowd.failure.message[:200]}"
        )
        return plan
    if entries and len(rates) < _ROUNDS:
        workshop.note(
            f"don't split: several instances of {crowd.contestant.target} failed while splits were held to them"
        )
    if not entries or len(rates) < _ROUNDS:
        return plan
    best, *others = sorted(entries, key=lambda entry: -statistics.median(entry.rates))
    ratio = paired_ratio(best.rates, rates)
    for entry in others:
        behind = paired_ratio(entry.rates, best.rates)
        workshop.note(f"the split {entry.finalist.proposal} finishes {text_of_ratio(behind)} the best split's items")
    proposal = best.finalist.proposal
    if not ratio.low > 1.0:
        workshop.note(
            f"don't split: {proposal} does not win beyond the noise; it finishes {text_of_ratio(ratio)} the items of "
            f"{len(crowd.cores)} instance(s) of {crowd.contestant.target}"
        )
        return plan
    whole = crowd.contestant.target
    reasons = {whole: f"the split finishes {text_of_ratio(ratio)} its items"}
    split = split_plan(plan, workshop, best.finalist, best.finalist.contestant.call_s, reasons)
    machine = workshop.course.machine
    instances = tuple(
        Instance(number, cores)
        for number, segment in enumerate(split.segments)
        for cores in instances_of(machine.device(segment.target.device), segment.target)
    )
    return replace(split, instances=instances, items_per_s=statistics.median(best.rates))
