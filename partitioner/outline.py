"""A graph of any size as a few boxes: nodes that are drawn as one, repeated layers as one of them, detail inside.

A large model is a chain of stages, and that is how people think of it. So the nodes of a segment, in running order, are cut
where little passes (`_narrow`), what follows a heavy operation joins it (`_joined`), stretches that repeat become one with a
count (`_repeats`), and what is still too much is grouped evenly (`_even`). Every group is a run of the order, so boxes
never depend on each other in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgert.errors import OptionError
from edgert.graph import Graph
from edgert.plan import Plan

__all__ = ["BOXES", "Box", "fold", "running_order", "segment_of"]

BOXES = 40
"""Most boxes in one drawing, but for repeated stretches, of which one is drawn in full: two pages."""
_LONGEST_PERIOD = 64
_HEAVY = ("conv", "gemm", "matmul", "fully_connected", "lstm", "gru", "rnn", "attention", "einsum", "pool")
"""Parts of the names of operations that begin a stage."""


@dataclass(frozen=True, slots=True)
class Box:
    """Nodes that are drawn as one."""

    nodes: tuple[int, ...]
    """Indices into `Graph.nodes`, in running order; of the first copy where it repeats."""
    parts: tuple[Box, ...] = ()
    """What is drawn when it is opened; empty for one node."""
    copies: tuple[tuple[int, ...], ...] = ()
    """The same box of every later repetition."""
    frame: int = 0
    """Boxes of one repeated stretch share a number; 0 for none."""


def segment_of(graph: Graph, plan: Plan) -> tuple[int, ...]:
    """For each node, the index of its segment in the plan.

    Raises:
        OptionError: the plan is not one of this graph.
    """
    names = {node.name: index for index, node in enumerate(graph.nodes)}
    found = [-1] * len(graph.nodes)
    for number, segment in enumerate(plan.segments):
        for name in segment.nodes or names:
            if name not in names:
                raise OptionError(
                    f"plan {plan.id} has a node {name!r}, which graph {graph.name!r} has not.",
                    "Give the plan the model file that it was made for.",
                )
            found[names[name]] = number
    if -1 in found:
        raise OptionError(
            f"plan {plan.id} has no segment for node {graph.nodes[found.index(-1)].name!r}.",
            "Give the plan the model file that it was made for.",
        )
    return tuple(found)


def running_order(segments: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Nodes of each segment in topological order; the segments' own order is one, too (`Transfer.sink` > `source`)."""
    runs: list[list[int]] = [[] for _ in range(max(segments, default=-1) + 1)]
    for node, segment in enumerate(segments):
        runs[segment].append(node)
    return tuple(map(tuple, runs))


def fold(graph: Graph, nodes: Sequence[int], limit: int = BOXES) -> tuple[Box, ...]:
    """The nodes, a run of a topological order, as boxes: each its own where there are at most `limit`."""
    if len(nodes) <= limit:
        return tuple(Box((node,)) for node in nodes)
    groups = _joined(graph, _narrow(graph, nodes))
    if len(groups) == 1:
        step = -(-len(nodes) // limit)
        groups = [nodes[start : start + step] for start in range(0, len(nodes), step)]
    boxes = [_box(graph, group) for group in groups]
    boxes = _repeats(graph, boxes)
    return _even(boxes, limit)


def _box(graph: Graph, nodes: Sequence[int]) -> Box:
    return Box(tuple(nodes), fold(graph, nodes) if len(nodes) > 1 else ())


def _narrow(graph: Graph, nodes: Sequence[int]) -> list[Sequence[int]]:
    """The run cut wherever at most one value passes, not counting those that live long (masks, skips to a decoder,
    outputs of early heads): they pass by many stages and belong to none.
    """
    place = {node: position for position, node in enumerate(nodes)}
    long = max(24, len(nodes) // 5)
    change = [0] * (len(nodes) + 1)
    for position, node in enumerate(nodes):
        for name in graph.nodes[node].writes:
            last = max((place.get(reader, -1) for reader in graph.consumers.get(name, ())), default=-1)
            if position < last <= position + long:
                change[position + 1] += 1
                change[last + 1] -= 1
    runs: list[Sequence[int]] = []
    start = passing = 0
    for position in range(1, len(nodes)):
        passing += change[position]
        if passing <= 1:
            runs.append(nodes[start:position])
            start = position
    return [*runs, nodes[start:]]


def _joined(graph: Graph, runs: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Light single nodes (activations, reshapes, casts) joined to the stage before them."""
    groups: list[Sequence[int]] = []
    for run in runs:
        light = len(run) == 1 and not _heavy(graph, run[0])
        if light and groups and len(groups[-1]) < 12:
            groups[-1] = (*groups[-1], *run)
        else:
            groups.append(tuple(run))
    return groups


def _heavy(graph: Graph, node: int) -> bool:
    op = graph.nodes[node].op.lower()
    return any(part in op for part in _HEAVY)


def _repeats(graph: Graph, boxes: Sequence[Box]) -> list[Box]:
    """Stretches of boxes that follow each other with the same operations, as one stretch with copies."""
    kinds: dict[tuple[str, ...], int] = {}
    word = [kinds.setdefault(tuple(graph.nodes[n].op for n in box.nodes), len(kinds)) for box in boxes]
    made: list[Box] = []
    position = frame = 0
    while position < len(boxes):
        period, times = _best_repeat(word, position)
        if times < 2:
            made.append(boxes[position])
            position += 1
            continue
        frame += 1
        for offset in range(period):
            alike = [boxes[position + offset + turn * period] for turn in range(times)]
            made.append(replace(alike[0], copies=tuple(box.nodes for box in alike[1:]), frame=frame))
        position += period * times
    return made


def _best_repeat(word: Sequence[int], start: int) -> tuple[int, int]:
    """(period, times) of the repetition at `start` that saves most boxes; two boxes at least, or (1, 1)."""
    best, saved = (1, 1), 1
    for period in range(1, min(_LONGEST_PERIOD, (len(word) - start) // 2) + 1):
        pattern = word[start : start + period]
        times = 1
        while word[start + times * period : start + (times + 1) * period] == pattern:
            times += 1
        if (times - 1) * period > saved:
            best, saved = (period, times), (times - 1) * period
    return best


def _even(boxes: Sequence[Box], limit: int) -> tuple[Box, ...]:
    """At most `limit` boxes: neighbours grouped, a repeated stretch kept whole if it is drawn at all."""
    if len(boxes) <= limit:
        return tuple(boxes)
    step = -(-len(boxes) // limit)
    made = []
    for start in range(0, len(boxes), step):
        parts = tuple(boxes[start : start + step])
        nodes = tuple(node for node in _all_nodes(parts))
        made.append(Box(nodes, _even(parts, BOXES)) if len(parts) > 1 else parts[0])
    return tuple(made)


def _all_nodes(boxes: Sequence[Box]) -> list[int]:
    found = [node for box in boxes for copy in (box.nodes, *box.copies) for node in copy]
    return sorted(set(found))


def home_of(boxes: Sequence[Box]) -> Mapping[int, tuple[int, int]]:
    """Node -> (index of its box, which copy of it)."""
    return {
        node: (index, turn)
        for index, box in enumerate(boxes)
        for turn, copy in enumerate((box.nodes, *box.copies))
        for node in copy
    }
