"""What a drawing of a plan shows, before it has places and colours: items, lines, bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from edgert.graph import Graph, Node
from edgert.partitioner.outline import BOXES, Box, fold, home_of, running_order, segment_of
from edgert.plan import Plan
from edgert.tensor import shape_text
from edgert.units import size_text

__all__ = ["Item", "Line", "Scene", "inside", "overview", "weight_bytes"]

_NO_SEGMENT = -1
_STUBS = 24
"""Most inputs, and most outputs, that are drawn one by one."""


@dataclass(frozen=True, slots=True)
class Item:
    """One box, or one input or output of the drawing."""

    title: str
    lines: tuple[str, ...]
    """Smaller, below the title."""
    segment: int
    """Index into `Plan.segments`; -1 for inputs and outputs."""
    band: int
    """Items of a lower band are drawn above."""
    box: Box | None = None
    """None for inputs and outputs."""


@dataclass(frozen=True, slots=True)
class Line:
    """Values that one item hands to another."""

    values: tuple[str, ...]
    size_bytes: int
    """Free dimensions as 1; 0 where nothing is known."""


@dataclass(frozen=True)
class Scene:
    """One drawing."""

    items: tuple[Item, ...]
    """In a topological order, bands never falling."""
    lines: dict[tuple[int, int], Line] = field(default_factory=dict)
    """(source, sink) as indices of items."""


def overview(graph: Graph, plan: Plan, limit: int = BOXES) -> Scene:
    """The whole model, its segments one below the other.

    Raises:
        OptionError: the plan is not one of this graph.
    """
    segments = segment_of(graph, plan)
    runs = running_order(segments)
    boxes: list[Box] = []
    owners: list[int] = []
    for number, run in enumerate(runs):
        # Each segment has its share of the boxes, and enough to be recognised.
        share = limit if len(graph.nodes) <= limit else max(4, limit * len(run) // len(graph.nodes))
        found = fold(graph, run, share)
        while len(found) == 1 and found[0].parts and not found[0].copies:
            found = found[0].parts
        boxes += found
        owners += [number] * len(found)
    return _scene(graph, boxes, owners)


def inside(graph: Graph, box: Box, segment: int) -> Scene:
    """What is in a box: its parts, and the values that come and go."""
    return _scene(graph, box.parts, [segment] * len(box.parts))


def _scene(graph: Graph, boxes: Sequence[Box], owners: Sequence[int]) -> Scene:
    home = home_of(boxes)
    flows = _flows(graph, boxes)
    made = {value.name for value in graph.inputs}
    sources = list(dict.fromkeys(name for name in flows.read if name not in flows.made))
    sinks = [name for name in flows.made if flows.made[name] in home and _leaves(graph, name, home)]
    items = [*_stubs(graph, sources, "in" if not made else "", 0)]
    count = len(items)
    band, last = 0, None
    for box, owner in zip(boxes, owners, strict=True):
        band += (owner, box.frame) != last
        last = (owner, box.frame)
        items.append(Item(*_words(graph, box), owner, band, box))
    ends = _stubs(graph, sinks, "", band + 1)
    items += ends
    lines: dict[tuple[int, int], list[str]] = {}

    def join(source: int, sink: int, name: str) -> None:
        names = lines.setdefault((source, sink), [])
        if name not in names:
            names.append(name)

    for name, readers in flows.read.items():
        at = home.get(flows.made.get(name, -1))
        for reader in readers:
            to, turn = home[reader]
            if at is None:
                join(_stub(sources, name, count), count + to, name)
            elif at[0] < to and not (boxes[at[0]].frame and boxes[at[0]].frame == boxes[to].frame and at[1] != turn):
                # From one repetition to the next is drawn once, as what the frame says.
                join(count + at[0], count + to, name)
    for name in sinks:
        start = count + len(boxes)
        join(count + home[flows.made[name]][0], start + _stub(sinks, name, len(ends)), name)
    return Scene(tuple(items), {ends: _line(graph, names) for ends, names in lines.items()})


@dataclass(frozen=True, slots=True)
class _Flows:
    read: dict[str, list[int]]
    """Value that some node of the boxes reads, no constant -> the nodes."""
    made: dict[str, int]
    """Value -> node of the boxes that makes it."""


def _flows(graph: Graph, boxes: Sequence[Box]) -> _Flows:
    read: dict[str, list[int]] = {}
    made: dict[str, int] = {}
    for node in (node for box in boxes for copy in (box.nodes, *box.copies) for node in copy):
        for name in graph.nodes[node].writes:
            made[name] = node
        for name in dict.fromkeys(graph.nodes[node].reads):
            if name not in graph.constants and name not in graph.variables:
                read.setdefault(name, []).append(node)
    return _Flows(read, made)


def _leaves(graph: Graph, name: str, home: object) -> bool:
    wanted = any(value.name == name for value in graph.outputs)
    return wanted or any(reader not in home for reader in graph.consumers.get(name, ()))  # type: ignore[operator]
