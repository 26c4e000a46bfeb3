"""Why a problem has no placement: which block, which limit, and by how much."""

from __future__ import annotations

import itertools
import math

from edgert.errors import Infeasible
from edgert.partitioner.indexed import Indexed

__all__ = ["find_fault", "nothing_found"]

_MOST_DEVICES = 10
"""Subsets of more devices than that are not gone through."""


def find_fault(indexed: Indexed) -> Infeasible | None:
    """A limit that no placement can keep, or None when none is seen (which does not prove that one exists)."""
    return _untaken(indexed) or _too_large(indexed) or _too_many(indexed) or _too_hungry(indexed)


def _untaken(indexed: Indexed) -> Infeasible | None:
    specs = {block.id: block for block in indexed.problem.blocks}
    for item, members in enumerate(indexed.items):
        if indexed.allowed(item):
            continue
        names = [indexed.names[block] for block in members]
        for name in names:
            if not specs[name].cost_s:
                return _error(f"no target takes block {name!r}{_reasons(specs[name].refused)}.", name, "target", None)
        text = f"no target takes all {len(names)} blocks of group {specs[names[0]].group!r}, such as {names[0]!r}"
        return _error(f"{text} and {names[-1]!r}.", names[0], "group", None)
    return None


def _reasons(refused: object) -> str:
    if not isinstance(refused, dict) or not refused:
        return ""
    return " (" + "; ".join(f"{target}: {why}" for target, why in refused.items()) + ")"


def _too_large(indexed: Indexed) -> Infeasible | None:
    for item, members in enumerate(indexed.items):
        rooms = {indexed.device_of[t]: indexed.capacity[indexed.device_of[t]] for t in indexed.allowed(item)}
        device, room = max(rooms.items(), key=lambda pair: pair[1])
        need = indexed.item_memory[item]
        if need > room:
            name = indexed.names[members[0]]
            what = f"block {name!r}" if len(members) == 1 else f"the group of block {name!r}"
            text = f"{what} needs {need:.6g} bytes; the largest device that takes it, "
            text += f"{indexed.problem.devices[device].id!r}, has {room:.6g}: {need - room:.6g} too few."
            return _error(text, name, "memory", need - room)
    return None


def _too_many(indexed: Indexed) -> Infeasible | None:
    """Some set of devices must hold more than it can (Hall's condition, with sizes)."""
    devices = range(len(indexed.capacity))
    homes = [frozenset(indexed.device_of[t] for t in indexed.allowed(item)) for item in range(len(indexed.items))]
    if len(devices) <= _MOST_DEVICES:
        sets = [frozenset(s) for size in range(1, len(devices) + 1) for s in itertools.combinations(devices, size)]
    else:
        sets = sorted(set(homes), key=len)
    for group in sets:
        room = sum(indexed.capacity[d] for d in group)
        if math.isinf(room):
            continue
        bound = [item for item, home in enumerate(homes) if home <= group]
        need = math.fsum(indexed.item_memory[item] for item in bound)
        if need > room:
            largest = indexed.names[indexed.items[max(bound, key=lambda i: indexed.item_memory[i])][0]]
            names = ", ".join(indexed.problem.devices[d].id for d in sorted(group))
            text = f"{len(bound)} blocks that only {names} can take, the largest {largest!r}, need {need:.6g} bytes; "
            return _error(text + f"there are {room:.6g}: {need - room:.6g} too few.", largest, "memory", need - room)
    return None


def _too_hungry(indexed: Indexed) -> Infeasible | None:
    most = indexed.problem.most_energy_j
    if most is None:
        return None
    least = [
        min(indexed.watts[t] * indexed.item_costs[item][t] for t in indexed.allowed(item))
        for item in range(len(indexed.items))
    ]
    need = math.fsum(least)
    if need <= most * (1 + 1e-9):
        return None
    name = indexed.names[indexed.items[max(range(len(least)), key=lambda item: least[item])][0]]
    text = f"a request takes at least {need:.6g} J, most of it in block {name!r}; {most:.6g} J are allowed: "
    return _error(text + f"{need - most:.6g} too few.", name, "energy", need - most)


def nothing_found(indexed: Indexed, proved: bool, seconds: float) -> Infeasible:
    """The error for a problem where the search ended with nothing, though no single limit explains it."""
    problem = indexed.problem
    limits = []
    if any(math.isfinite(room) for room in indexed.capacity):
        limits.append(f"memory ({math.fsum(indexed.item_memory):.6g} bytes to place)")
    if problem.most_segments is not None:
        limits.append(f"segments (at most {problem.most_segments})")
    if problem.most_energy_j is not None:
        limits.append(f"energy (at most {problem.most_energy_j:.6g} J)")
    if problem.transfers == "link":
        limits.append("links")
    block = indexed.names[indexed.items[max(range(len(indexed.items)), key=lambda i: indexed.item_memory[i])][0]]
    what = "no placement keeps" if proved else f"in {seconds:.1f} s no placement was found that keeps"
    which = "segments" if problem.most_segments is not None else "memory"
    return _error(f"{what} all limits at once: {', '.join(limits) or 'the form of the pieces'}.", block, which, None)


def _error(text: str, block: str | None, limit: str, excess: float | None) -> Infeasible:
    remedy = {
        "target": "Add a target that takes it: the reference backend takes every standard operation.",
        "group": "Add a target that takes them all, or part the group.",
        "memory": "Allow more memory, add a device, or use a smaller model.",
        "energy": "Allow more energy, or add a target with less power.",
    }.get(limit, "Loosen one of them.")
    return Infeasible(text, remedy, block=block, limit=limit, excess=excess)
