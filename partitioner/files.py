"""Problem files: the JSON format of the published placement problems, as a `Problem`.

The format is that of the cost graphs of Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
Operators" (NeurIPS 2020): `nodes` with `cpuLatency`, `fpgaLatency`, `size`, `supportedOnFpga` and `colorClass`,
`edges` with `cost`, and `maxFPGAs`, `maxSizePerFPGA`.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Set
from typing import Any

from edgert.errors import OptionError
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Flow, Objective, Problem, TargetSpec

__all__ = ["HOST", "problem_from_json"]

HOST = "cpu"
"""Target and device of the CPU; the accelerators are 'acc:0', 'acc:1', ..."""

_MOST_ACCELERATORS = 1_000
_OPTIONAL = {"the problem": ("maxSizePerFPGA",), "a node": ("size", "supportedOnFpga", "colorClass")}
"""What may be left out. Other fields are let be (published files carry names and more), but for what looks like one of
these, misspelt."""

_log = logging.getLogger(__name__)


def problem_from_json(data: Any, objective: Objective, contiguous: bool = False) -> Problem:
    """The problem that a placement file states.

    Its rules: the CPU's memory has no limit, its nodes overlap freely and pay no transfer; an accelerator is busy for
    each value that it reads from or makes for others. Latency is that of one piece an accelerator; throughput
    allows any split, or with `contiguous` those where no path leaves an accelerator and comes back.

    Raises:
        OptionError: the data has not that form; names the field.
    """
    if not isinstance(data, Mapping):
        raise OptionError("a problem file holds a JSON object.", "See docs/partitioning.md for its fields.")
    _check_spelling(data, "the problem", "the problem")
    count = _number(data, "maxFPGAs", "the problem")
    if not (0 <= count <= _MOST_ACCELERATORS and count == int(count)):
        raise OptionError(f"maxFPGAs is {count:g}.", f"Give a whole number from 0 to {_MOST_ACCELERATORS}.")
    names = [f"acc:{k}" for k in range(int(count))]
    memory = _number(data, "maxSizePerFPGA", "the problem", math.inf)
    devices = (DeviceSpec(HOST, lanes=None), *(DeviceSpec(name, memory) for name in names))
    blocks = [_block(node, names) for node in _rows(data, "nodes")]
    if not blocks:
        raise OptionError("nodes is empty: the problem has no block.", "Give at least one.")
    known = {block.id for block in blocks}
    return Problem(
        blocks=tuple(blocks),
        devices=devices,
        targets=tuple(TargetSpec(device.id, device.id) for device in devices),
        flows=_flows(data, known),
        objective=objective,
        transfers="device",
        pieces="one" if objective == "latency" else "convex" if contiguous else "many",
    )


def _block(node: Mapping[str, Any], accelerators: list[str]) -> BlockSpec:
    name = _id(node, "id", "a node")
    who = f"node {name}"
    _check_spelling(node, "a node", who)
    cost = {HOST: _number(node, "cpuLatency", who)}
    if _truth(node, "supportedOnFpga", who):
        cost |= dict.fromkeys(accelerators, _number(node, "fpgaLatency", who))
    colour = None if node.get("colorClass") is None else _id(node, "colorClass", who)
    return BlockSpec(
        id=name,
        cost_s=cost,
        memory_bytes=_number(node, "size", who, 0.0),
        group="" if colour is None else f"colour {colour}",
        refused=dict.fromkeys(accelerators, "supportedOnFpga is false") if len(cost) == 1 else {},
    )


def _flows(data: Mapping[str, Any], known: Set[str]) -> tuple[Flow, ...]:
    sinks: dict[str, dict[str, None]] = {}
    costs: dict[str, float] = {}
    for edge in _rows(data, "edges"):
        source, sink = _id(edge, "sourceId", "an edge"), _id(edge, "destId", "an edge")
        who = f"edge {source} -> {sink}"
        if not {source, sink} <= known:
            missing = source if source not in known else sink
            raise OptionError(f"{who}: there is no node {missing!r}.", "Add it, or leave the edge out.")
        cost = _number(edge, "cost", who)
        if source in costs and costs[source] != cost:
            _log.warning("node %s has edges of cost %g and %g: the last one counts", source, costs[source], cost)
        costs[source] = cost
        sinks.setdefault(source, {})[sink] = None
    return tuple(Flow(source, tuple(found), cost_s=costs[source]) for source, found in sinks.items())


def _rows(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    rows = _field(data, name, "the problem")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise OptionError(f"{name} is not a list of objects.", "See docs/partitioning.md for the fields.")
    return rows


def _field(row: Mapping[str, Any], name: str, who: str) -> Any:
    if name not in row:
        raise OptionError(f"{who} has no field {name!r}.", "See docs/partitioning.md for the fields.")
    return row[name]


def _number(row: Mapping[str, Any], name: str, who: str, default: float | None = None) -> float:
    value = row.get(name, default) if default is not None else _field(row, name, who)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(f"{name} of {who} is {value!r}.", "Give a number.")
    try:
        number = float(value)
    except OverflowError:
        raise OptionError(f"{name} of {who} has {len(str(value))} digits.", "Give it in a larger unit.") from None
    if math.isnan(number):
        raise OptionError(f"{name} of {who} is nan.", "Give a number.")
    return number


def _id(row: Mapping[str, Any], name: str, who: str) -> str:
    value = _field(row, name, who)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise OptionError(f"{name} of {who} is {value!r}.", "Give a whole number or a text.")
    return str(value)


def _truth(row: Mapping[str, Any], name: str, who: str) -> bool:
    value = row.get(name, True)
    if not isinstance(value, bool | int | float) or value not in {0, 1}:
        raise OptionError(f"{name} of {who} is {value!r}.", "Give true or false (or 1 or 0).")
    return bool(value)


def _check_spelling(row: Mapping[str, Any], kind: str, who: str) -> None:
    for field in _OPTIONAL[kind]:
        if field not in row:
            near = difflib.get_close_matches(field.lower(), [key.lower() for key in row], 1, 0.75)
            if near:
                key = next(key for key in row if key.lower() == near[0])
                raise OptionError(f"{who} has a field {key!r}, but no {field!r}.", f"Is {field!r} meant?")
