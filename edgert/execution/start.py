"""From a plan to what runs it: in this process where all its targets are CPUs, else through executors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from edgert.devices.backend import Source
from edgert.execution.pipeline import Pipeline
from edgert.execution.rungs import Isolation
from edgert.execution.segments import Parts
from edgert.machine import Machine
from edgert.plan import Plan
from edgert.profile import Target

if TYPE_CHECKING:  # what a plan for CPUs alone never needs, sockets among it, is imported by the first that does
    from edgert.execution.fleet import Fleet
    from edgert.execution.limits import Limits
    from edgert.execution.shadow import Drift
    from edgert.execution.staged import StagedPipeline

Running: TypeAlias = Union[Pipeline, "StagedPipeline"]


def start(
    plan: Plan, source: Source, machine: Machine, cache: Path | None = None, isolation: Isolation = "auto",
    *, parts: Parts | None = None, limits: Limits | None = None, fleet: Fleet | None = None,
    drifted: Callable[[Drift], None] = lambda _drift: None,
) -> Running:  # fmt: skip
    """A plan made ready.

    Args:
        plan: what to run.
        source: the whole model.
        machine: where.
        cache: folder for what backends compile and for the segments' files.
        isolation: as for `edgert.load`.
        parts: the segments' files, where they are there already; else they are cut from the model.
        limits: for executors; else the defaults.
        fleet: whose executors to use; else those of this process. It is given back by `close`.
        drifted: told of numbers that are wrong while serving, in a thread that may take its time.

    Raises:
        DeviceLost: neither the plan's targets nor any fallback prepares; with each one's reason.
    """
    if not wants_executors(plan, isolation):
        return Pipeline(plan, source, machine, cache, isolation, parts=parts)
    from edgert.execution.staging import stage

    return stage(plan, source, machine, cache, parts=parts, limits=limits, fleet=fleet, drifted=drifted)


def wants_executors(plan: Plan, isolation: Isolation = "auto") -> bool:
    """Whether a plan runs through executors: a target is no CPU, or its CPU segments have cores of their own."""
    if isolation == "none" or sys.platform != "linux":
        return False
    if plan.residency is not None or plan.controls is not None:
        return False  # segments that take turns in memory, and inputs that are watched, have their own ways to run
    if any(not is_cpu(target) for target in plan.targets):
        return True
    return len(plan.segments) > 1 and all(instance.cores for instance in plan.instances)


def is_cpu(target: Target) -> bool:
    """Whether a target may run in the caller's process."""
    return target.device.startswith("cpu")
