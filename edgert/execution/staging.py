"""How a plan runs through executors: its own segments, the model on each fallback, the reserve in this process."""

from __future__ import annotations

import itertools
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgert.devices.backend import Source
from edgert.errors import EdgertError
from edgert.execution import fleet as fleets
from edgert.execution.fleet import Fleet
from edgert.execution.limits import Limits
from edgert.execution.member import Order, Place
from edgert.execution.pipeline import Pipeline, verified_targets
from edgert.execution.reserve import Reserve
from edgert.execution.routes import Stage, stages
from edgert.execution.segments import Parts, parts_of
from edgert.execution.shadow import Drift
from edgert.execution.staged import StagedPipeline
from edgert.execution.start import is_cpu
from edgert.execution.trial import Witness
from edgert.execution.ways import Wanted, Way
from edgert.machine import Device, Machine
from edgert.plan import Instance, Plan, Segment, Tolerance
from edgert.profile import Target

_SLACK = 4.0
"""A trial forgives so many times the distance from the reference that was seen when the plan was made."""


def stage(
    plan: Plan, source: Source, machine: Machine, cache: Path | None, *, parts: Parts | None, limits: Limits | None,
    fleet: Fleet | None, drifted: Callable[[Drift], None],
) -> StagedPipeline:  # fmt: skip
    """A plan made ready in executors; arguments and errors as of `start.start`."""
    build = _Build(plan, source, machine, cache, parts=parts)
    users = fleet or (fleets.shared() if limits is None else Fleet(limits))
    try:
        return build.start(users, drifted)
    except BaseException:
        build.release()
        raise


class _Build:
    """What `stage` gathers for a `StagedPipeline`."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        machine: Machine,
        cache: Path | None,
        parts: Parts | None,
    ) -> None:
        self.plan, self.source, self.machine, self.cache, self.parts = plan, source, machine, cache, parts
        # Executors that others started hold segments of processes on several hosts, where process numbers come twice.
        self.name = f"{source.path.name}.{secrets.token_hex(8)}"
        self._temporary: TemporaryDirectory[str] | None = None

    def start(self, fleet: Fleet, drifted: Callable[[Drift], None]) -> StagedPipeline:
        plan, ways, refusals = self.plan, list[Way](), list[str]()
        others = list(itertools.takewhile(lambda target: not is_cpu(target), plan.fallbacks))
        for number, target in enumerate((None, *others)):
            try:
                ways.append(self._own_way() if target is None else self._whole_way(target, number))
            except EdgertError as error:
                name = target or " and ".join(map(str, plan.targets))
                refusals.append(f"{name}: {error.message}")
        return StagedPipeline(
            plan, fleet, ways, self._reserve(), name=self.source.path.name, witness=self._witness(fleet.limits),
            verified=verified_targets(plan), refusals=refusals, release=self.release, drifted=drifted,
        )  # fmt: skip

    def release(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def _own_way(self) -> Way:
        """The plan's segments, each at the places of its instances."""
        plan, wanted = self.plan, []
        if len(plan.segments) == 1 and not plan.segments[0].nodes:
            sources = [self.source]
        else:
            parts = self.parts or parts_of(plan, self.source, self._folder())
            values = {value.name: value for value in (*plan.inputs, *plan.values, *plan.outputs)}
            sources = [parts.source(segment, values) for segment in plan.segments]
        for index, (segment, source) in enumerate(zip(plan.segments, sources, strict=True)):
            own = [each for each in plan.instances if each.segment == index] or [Instance(index)]
            places = dict(self._place(segment.target, instance.cores) for instance in own)
            measured_s = segment.measured_s or (plan.measured_s if len(plan.segments) == 1 else 0.0)
            order = self._order(f"0.{index}", source, segment.target, measured_s)
            inputs = tuple(value.name for value in source.inputs)
            wanted.append(Wanted(order, inputs, tuple(places.items())))
        return Way(tuple(wanted), stages(plan), tuple(value.name for value in plan.outputs), own=True)

    def _whole_way(self, target: Target, number: int) -> Way:
        """The whole model on one of the plan's fallbacks."""
        names = [tuple(value.name for value in values) for values in (self.plan.inputs, self.plan.outputs)]
        measured_s = next(
            (row.timing.p50_s for row in self.plan.candidates if row.target == target and row.timing), 0.0
        )
        order = self._order(f"{number}.0", self.source, target, measured_s)
        wanted = Wanted(order, names[0], (self._place(target, ()),))
        return Way((wanted,), (Stage(names[0], 1, (), names[1]),), names[1])

    def _place(self, target: Target, cores: tuple[int, ...]) -> tuple[Place, Device]:
        device = self.machine.device(target.device)
        if not is_cpu(target):
            cores = ()
        elif cores:
            device = replace(device, cores=cores)
        return Place(
            device.id,
            cores,
            device.attributes.get("executor", ""),
            device.attributes.get("executor_key", ""),
        ), device

    def _order(self, number: str, source: Source, target: Target, measured_s: float) -> Order:
        known_s = max((row.prepare_s for row in self.plan.candidates if row.target == target), default=0.0)
        return Order(
            f"{self.name}.{number}", source.on(target), target, self.machine.device(target.device), self.plan.id,
            str(self.cache or ""), measured_s, known_s,
        )  # fmt: skip

    def _reserve(self) -> Reserve:
        plan, name = self.plan, self.source.path.name
        targets = [target for target in plan.fallbacks if is_cpu(target)]
        if not targets:
            return Reserve(None, name, 1)
        first, *rest = targets
        last_resort = replace(
            plan, segments=(Segment(first),), instances=(Instance(0),), transfers=(), fallbacks=tuple(rest), values=(),
        )  # fmt: skip
        width = max(1, len(os.sched_getaffinity(0)) // max(1, first.threads))
        return Reserve(lambda: Pipeline(last_resort, self.source, self.machine, self.cache), name, width)

    def _witness(self, limits: Limits) -> Witness:
        plan = self.plan
        seen = max((each.range_fraction for each in plan.verification.errors), default=0.0)
        noise_db = min((each.sqnr_db for each in plan.verification.errors), default=math.inf)
        usual = Tolerance()
        tolerance = replace(
            usual, range_fraction=max(usual.range_fraction, _SLACK * seen), sqnr_db=min(usual.sqnr_db, noise_db - 6.0),
        )  # fmt: skip
        repeats = bool(plan.verification.reference)
        return Witness(plan.outputs, plan.own_precision, tolerance, limits.witness_bytes, repeats=repeats)

    def _folder(self) -> Path:
        if self.cache is not None:
            return self.cache
        if self._temporary is None:
            self._temporary = TemporaryDirectory(prefix="edgert-")
        return Path(self._temporary.name)
