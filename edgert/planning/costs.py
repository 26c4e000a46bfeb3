"""What blocks cost on targets, and what moving values between devices costs: measured, then made into a `Problem`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgert import store
from edgert.devices.links import measure
from edgert.devices.remote import Remote
from edgert.errors import CacheUnwritable
from edgert.machine import Link
from edgert.partitioner.cuts import flows_of, weights_of
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Problem, TargetSpec
from edgert.planning.capability import Capability
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
    return Costs(seconds, refused, complete)


def problem_of(workshop: Workshop, costs: Costs, factors: Mapping[Target, float], links: Sequence[Link]) -> Problem:
    """The placement problem of these costs.

    A segment pays the call overhead of its target once, and not for each of its blocks. `factors` corrects for what
    fusion saves: measured time of a whole segment over the sum of its blocks.
    """
    targets = [target for target, known in costs.seconds.items() if known]
    launch = {target: launch_s(workshop, costs, target) for target in targets}
    workshop.calls |= launch
    blocks = []
    for number, block in enumerate(workshop.blocks):
        cost = {
            str(target): factors.get(target, 1.0) * max(0.0, costs.seconds[target][number] - launch[target])
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
            TargetSpec(str(target), target.device, most[target.device] // lanes[target], launch_s=launch[target])
            for target in targets
        ),
        flows_of(workshop.file.graph, workshop.blocks, workshop.size),
        tuple(links),
        objective=workshop.objective,
    )


def launch_s(workshop: Workshop, costs: Costs, target: Target) -> float:
    """What calling a piece costs on a target, whatever is in it.

    n blocks take c_1 + ... + c_n one by one, and T as one piece, which saves n - 1 calls: (sum(c) - T) / (n - 1). What
    fusion saves is in it too, so it is no more than the shortest block; of several pieces the longest is asked.
    """
    known = costs.seconds[target]
    shortest_s = min(known.values())
    pieces = [
        (len(blocks), whole_s, [known[number] for number in blocks])
        for (where, blocks), whole_s in workshop.stretches.items()
        if where == target and len(blocks) > 1 and known.keys() >= set(blocks)
    ]
    if not pieces:
        return shortest_s
    count, whole_s, alone = max(pieces)
    return min(shortest_s, max(0.0, (sum(alone) - whole_s) / (count - 1)))


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
