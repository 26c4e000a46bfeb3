"""What a solver gets and what it gives: `Problem`, with every rule spelled out, and `Solution`, with its certificate.

Two sets of rules are in use, and nothing but these fields tells them apart:

- Real plans: a transfer occupies its link (`transfers="link"`); a device runs one segment at a time, a CPU as many as
  its cores allow (`lanes`); a target runs any number of segments (`pieces="many"`), or one.
- The published placement problems: a transfer is part of both devices' load (`transfers="device"`); an accelerator runs
  one piece, while the blocks of the host overlap freely and pay for no transfer (`lanes=None`); for latency there is
  one piece an accelerator (`pieces="one"`), for throughput any number or one convex set (`pieces="convex"`).

All times are in one unit (seconds in real plans), all sizes in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from edgert.errors import OptionError
from edgert.machine import Link

__all__ = ["BlockSpec", "DeviceSpec", "Flow", "Objective", "Pieces", "Problem", "Solution", "TargetSpec", "Transfers"]

Objective: TypeAlias = Literal["latency", "throughput"]
"""latency: the end of one request that starts at 0. throughput: the largest load, which is the time between requests
when all devices are busy at once."""
Transfers: TypeAlias = Literal["free", "device", "link"]
"""Who is busy while a value moves: nobody (and it takes no time), both devices, or the link between them."""
Pieces: TypeAlias = Literal["many", "convex", "one"]
"""many: a target runs any number of segments. convex: no path leaves a target's blocks and comes back. one: each target
runs all of its blocks as one segment, so that the segments have an order in which they can run."""

_MOST = 1e100
"""Numbers beyond that would overflow in sums."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A block, as a solver sees it."""

    id: str
    """Unique in its problem."""
    cost_s: Mapping[str, float]
    """Target id -> time of the block there, >= 0; a target that is absent does not take it."""
    memory_bytes: float = 0.0
    """What it holds in the memory of the device that runs it (weights and buffers), >= 0."""
    group: str = ""
    """Blocks of the same group share a target (shared weights, state); '' for none."""
    refused: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    """Target id -> why it does not take the block (unsupported, out of tolerance, in quarantine): for messages."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A processor with its limits."""

    id: str
    memory_bytes: float = math.inf
    """Most that its blocks may hold."""
    lanes: int | None = 1
    """How many segments may run at once, if each takes one lane (a CPU: its cores). None: a host, whose blocks overlap
    without limit, each a segment of its own, and which pays for no transfer."""


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """One way to run blocks."""

    id: str
    device: str
    """Id of its device."""
    lanes: int = 0
    """Lanes of the device that a segment occupies; 0 for all of them."""
    launch_s: float = 0.0
    """Cost of starting one segment, added to each."""
    watts: float = 0.0
    """Power while a segment runs, from which a plan's energy follows."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A value that one block makes and others read; moved once to each device that reads it."""

    source: str
    """Id of the block that makes it."""
    sinks: tuple[str, ...]
    """Ids of the blocks that read it, at least one."""
    size_bytes: float = 0.0
    """At the planned shapes."""
    cost_s: float | None = None
    """Time to move it, where that is given; None: the link's latency + size / bandwidth."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Blocks, where they may run, what connects them, and the rules of the cost.

    Raises (when made):
        OptionError: an id is unknown or repeated, a number is negative or not finite, the flows form a cycle, or
            the rules contradict each other.
    """

    blocks: tuple[BlockSpec, ...]
    devices: tuple[DeviceSpec, ...]
    targets: tuple[TargetSpec, ...]
    flows: tuple[Flow, ...] = ()
    links: tuple[Link, ...] = ()
    """One per direction; devices without a link cannot hand values to each other (under `transfers="link"`)."""
    objective: Objective = "latency"
    transfers: Transfers = "link"
    pieces: Pieces = "many"
    most_segments: int | None = None
    """Limit on the number of segments; None for none."""
    most_energy_j: float | None = None
    """Limit on watts x time, summed over the segments; None for none."""

    def __post_init__(self) -> None:
        """Check what the class docstring promises."""
        _check(self)

    def target(self, name: str) -> TargetSpec:
        """The target with that id."""
        return next(target for target in self.targets if target.id == name)


@dataclass(frozen=True, slots=True)
class Solution:
    """A placement and its certificate."""

    placement: Mapping[str, str]
    """Block id -> target id, for every block."""
    cost: float
    """By `evaluate` on the placement, in the problem's unit of time."""
    bound: float
    """No placement costs less than this."""
    seconds: float
    """Wall time of the solver."""
    solver: str
    """Names of what made the placement and the bound, such as 'chain' or 'search + integer'."""

    @property
    def gap(self) -> float:
        """(cost - bound) / cost, between 0 and 1: by what fraction the cost could at most be lowered."""
        return max(0.0, (self.cost - self.bound) / self.cost) if self.cost > 0 else 0.0

    @property
    def proved(self) -> bool:
        """Whether the placement is optimal, but for rounding (1e-6 of its cost)."""
        return self.gap <= 1e-6


def _check(problem: Problem) -> None:
    blocks = _unique("block", [block.id for block in problem.blocks])
    devices = _unique("device", [device.id for device in problem.devices])
    targets = _unique("target", [target.id for target in problem.targets])
    if not blocks:
        raise OptionError("the problem has no block.", "Give at least one.")
    if problem.objective == "latency" and problem.transfers == "device" and problem.pieces != "one":
        raise OptionError(
            "latency with transfers on the device needs pieces='one': else nothing says which piece pays for a value.",
            "Use pieces='one', or transfers='link'.",
        )
    for device in problem.devices:
        _number(f"memory of device {device.id!r}", device.memory_bytes, infinite=True)
        if device.lanes is not None and device.lanes < 1:
            raise OptionError(f"device {device.id!r} has {device.lanes} lanes.", "Give at least 1, or None for a host.")
    lanes = {device.id: device.lanes for device in problem.devices}
    for target in problem.targets:
        _known("device", target.device, devices, f"target {target.id!r}")
        _number(f"launch cost of target {target.id!r}", target.launch_s)
        _number(f"power of target {target.id!r}", target.watts)
        most = lanes[target.device]
        if target.lanes < 0 or (most is not None and target.lanes > most):
            raise OptionError(f"target {target.id!r} asks for {target.lanes} of {most} lanes.", "Ask for fewer.")
    for block in problem.blocks:
        _number(f"memory of block {block.id!r}", block.memory_bytes)
        for name, cost in block.cost_s.items():
            _known("target", name, targets, f"block {block.id!r}")
            _number(f"cost of block {block.id!r} on {name!r}", cost)
    for flow in problem.flows:
        _check_flow(flow, blocks, problem.transfers)


def _check_flow(flow: Flow, blocks: frozenset[str], transfers: Transfers) -> None:
    if not flow.sinks:
        raise OptionError(f"a flow of block {flow.source!r} has no sink.", "Leave it out.")
    for name in (flow.source, *flow.sinks):
        _known("block", name, blocks, "a flow")
    _number(f"size of a flow of block {flow.source!r}", flow.size_bytes)
    if flow.cost_s is not None:
        _number(f"cost of a flow of block {flow.source!r}", flow.cost_s)
    elif transfers == "device":
        raise OptionError(
            f"a flow of block {flow.source!r} has no cost.", "Under transfers='device' each flow needs its cost_s."
        )


def _unique(what: str, names: list[str]) -> frozenset[str]:
    known: set[str] = set()
    for name in names:
        if name in known:
            raise OptionError(f"{what} {name!r} is there twice.", "Give each an id of its own.")
        known.add(name)
    return frozenset(known)


def _known(what: str, name: str, known: frozenset[str], by: str) -> None:
    if name not in known:
        raise OptionError(f"{by} names {what} {name!r}, which is not in the problem.", f"Add it, or correct {by}.")


def _number(what: str, number: float, infinite: bool = False) -> None:
    if math.isnan(number) or number < 0 or (math.isinf(number) and not infinite):
        raise OptionError(f"{what} is {number}.", "Give a finite number that is not negative.")
    if math.isfinite(number) and number > _MOST:
        raise OptionError(f"{what} is {number:g}, beyond {_MOST:g}.", "Give it in a larger unit.")
