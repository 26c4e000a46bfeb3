"""What blocks cost on targets, and what moving values between devices costs: measured, then made into a `Problem`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgert import store
from edgert.devices.links import measure
from edgert.devices.remote import Remote
from edgert.errors import CacheUnwritable
from edgert.machine import Link
from edgert.partitioner.cuts import flows_of, weights_of
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Problem, TargetSpec
from edgert.planning.capability import Capability
from edgert.planning.overheads import Overhead, flow_bytes, probe_pairs
from edgert.planning.workshop import Workshop, instances_of
from edgert.planning.workshop import seconds as row_seconds
from edgert.profile import Row, Target

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured of each block, alone."""

    seconds: Mapping[Target, Mapping[int, float]]
    """Target -> number of a block -> fastest run of it alone, call overhead included."""
    refused: Mapping[Target, Mapping[int, Row]]
    complete: bool
    """Whether every block that a target takes was measured there."""


def measure_blocks(workshop: Workshop, found: Sequence[Capability]) -> Costs:
    """Time every block on every target that takes it, equal ones once, while there is time."""
    seconds: dict[Target, dict[int, float]] = {each.target: {} for each in found}
    refused = {each.target: dict(each.refused) for each in found}
    complete = True
    for number, block in enumerate(workshop.blocks):
        workshop.say(f"timing block {number + 1} of {len(workshop.blocks)} ({block.id})")
        for each in found:
            if number not in each.taken:
                continue
            if not workshop.in_time:
                complete = False
                continue
            row = workshop.ask([number], each.target)
            if row.outcome == "ok":
                seconds[each.target][number] = row_seconds(row)
            else:
                refused[each.target][number] = row  # taken within a stretch, and not alone
                workshop.convict(number, row)
    for target, alone in seconds.items():
        workshop.say(f"timing neighbours together on {target}")
        probe_pairs(workshop, target, alone)
    return Costs(seconds, refused, complete)


def problem_of(
    workshop: Workshop, costs: Costs, overheads: Mapping[Target, Overhead], factors: Mapping[Target, float],
    links: Sequence[Link],
) -> Problem:  # fmt: skip
    """The placement problem of these costs.

    A segment pays the call overhead of its target once, and not for each of its blocks; what a value costs that enters
    or leaves it is paid on the way to another device, and not between blocks of one segment. `factors` corrects for
    what fusion saves: measured time of a whole segment over the sum of its blocks.
    """
    targets = [target for target, known in costs.seconds.items() if known]
    workshop.calls |= {target: overheads[target].call_s for target in targets}
    blocks = []
    for number, block in enumerate(workshop.blocks):
        cost = {
            str(target): factors.get(target, 1.0) * net_s(workshop, costs, target, overheads[target], number)
            for target in targets
            if number in costs.seconds[target]
        }
        why = {str(t): rows[number].reason for t, rows in costs.refused.items() if number in rows and t in targets}
        blocks.append(BlockSpec(block.id, cost, weights_of(workshop.file.graph, block), block.group, why))
    devices = {target.device: workshop.course.machine.device(target.device) for target in targets}
    # For throughput as many requests are in flight as leave each instance cores of its own.
    lanes = {target: len(instances_of(devices[target.device], target)) for target in targets}
    most = {id_: math.lcm(*(count for target, count in lanes.items() if target.device == id_)) for id_ in devices}
    if workshop.objective == "latency":
        lanes, most = dict.fromkeys(lanes, 1), dict.fromkeys(most, 1)
    return Problem(
        tuple(blocks),
        tuple(DeviceSpec(device.id, device.memory_bytes or math.inf, most[device.id]) for device in devices.values()),
        tuple(
            TargetSpec(
                str(target), target.device, most[target.device] // lanes[target], launch_s=overheads[target].call_s
            )
            for target in targets
        ),
        flows_of(workshop.file.graph, workshop.blocks, workshop.size),
        tuple(_with_borders(link, {target: overheads[target] for target in targets}) for link in links),
        objective=workshop.objective,
    )


def net_s(workshop: Workshop, costs: Costs, target: Target, overhead: Overhead, number: int) -> float:
    """What a block adds to a segment that holds its neighbours too."""
    return max(0.0, costs.seconds[target][number] - overhead.of(flow_bytes(workshop, [number])))


def _with_borders(link: Link, overheads: Mapping[Target, Overhead]) -> Link:
    """The link with what its ends' targets need for each byte that leaves a segment or enters one."""
    byte_s = 1.0 / link.bandwidth_bytes_per_s
    for end in (link.source, link.sink):
        byte_s += min((each.byte_s for target, each in overheads.items() if target.device == end), default=0.0)
    return replace(link, bandwidth_bytes_per_s=1.0 / byte_s)


def remembered_links(workshop: Workshop, devices: Mapping[str, Remote]) -> tuple[Link, ...]:
    """Links to the devices: those that `probe` measured, else measured once for a machine and kept in the cache."""
    probed = workshop.course.machine.links
    if {link.sink for link in probed} >= devices.keys():
        return probed
    folder = workshop.memory.parent.parent.parent / "links" if workshop.memory else None
    path = folder / f"{workshop.course.machine.fingerprint}.json" if folder else None
    content = store.read_or_drop(path) if path else None
    try:
        known = tuple(Link(**item) for item in (content or {"links": []})["links"])
    except (KeyError, TypeError) as error:
        _log.warning("links in %s are of another form (%s): measuring again", path, error)
        known = ()
    if known and {link.sink for link in known} - {"cpu:0"} >= devices.keys():
        return known
    links = measure(devices, workshop.course.machine)
    if path is not None and links:
        try:
            fields = ("source", "sink", "latency_s", "bandwidth_bytes_per_s")
            store.write_json(path, {"links": [{name: getattr(link, name) for name in fields} for link in links]})
        except CacheUnwritable as error:
            _log.warning("%s The links are measured again next time.", error.message)
    return links
