"""A graph of any size as a few boxes: nodes that are drawn as one, repeated layers as one of them, detail inside.

A large model is a chain of stages, and that is how people think of it. So the nodes of a segment, in running order,
are cut where little passes (`_narrow`), stretches that repeat become one with a count (`_repeats`), light operations
join the heavy one before them (`_joined`), and what is still too much is grouped evenly (`_even`). Every group is a run
of the order, so boxes never depend on each other in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgert.errors import OptionError
from edgert.graph import Graph
from edgert.plan import Plan

__all__ = ["BOXES", "Box", "fold", "home_of", "running_order", "segment_of"]

BOXES = 40
"""Most boxes in one drawing, but for repeated stretches, of which one is drawn in full: two pages."""
_LONGEST_PERIOD = 64
_WORTH = 6
"""Fewest nodes that a repeated stretch must save: two equal activations are no layers."""
_HEAVY = ("conv", "gemm", "matmul", "fully_connected", "lstm", "gru", "rnn", "attention", "einsum", "pool")
"""Parts of the names of operations that begin a stage."""
_STAGE = 12
"""Most nodes of a stage that light ones still join."""


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
    if plan.tidied:
        _follow(graph, found)
    if -1 in found:
        raise OptionError(
            f"plan {plan.id} has no segment for node {graph.nodes[found.index(-1)].name!r}.",
            "Give the plan the model file that it was made for.",
        )
    return tuple(found)


def _follow(graph: Graph, found: list[int]) -> None:
    """Nodes that tidying up took out go with the maker of what they read, those of constants with their reader."""
    for index, node in enumerate(graph.nodes):
        makers = [found[graph.producers[name]] for name in node.reads if name in graph.producers]
        if found[index] < 0 and max(makers, default=-1) >= 0:
            found[index] = max(makers)
    for index in reversed(range(len(found))):
        readers = [found[reader] for name in graph.nodes[index].writes for reader in graph.consumers.get(name, ())]
        if found[index] < 0:
            found[index] = min(readers, default=0)  # what leads nowhere is nobody's: it is shown with the first


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
    runs = [part for run in _narrow(graph, nodes) for part in _pieces(run, len(nodes), limit)]
    boxes = _joined(graph, _repeats(graph, [Box(tuple(run)) for run in runs]))
    return _even([replace(box, parts=_parts(graph, box.nodes)) for box in boxes], limit)


def _pieces(run: Sequence[int], whole: int, limit: int) -> list[Sequence[int]]:
    """The run, evenly cut where it is most of the whole: what opens must have less in it than what was opened."""
    step = len(run) if len(run) <= max(limit, whole // 2) else -(-len(run) // limit)
    return [run[start : start + step] for start in range(0, len(run), step)]


def _parts(graph: Graph, nodes: Sequence[int]) -> tuple[Box, ...]:
    """What a box of these nodes holds. Never again one box of them all, which would have no end."""
    return fold(graph, nodes) if len(nodes) > 1 else ()


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


def _joined(graph: Graph, boxes: Sequence[Box]) -> list[Box]:
    """Light single nodes (activations, reshapes, casts) joined to the stage before them."""
    made: list[Box] = []
    for box in boxes:
        light = len(box.nodes) == 1 and not _heavy(graph, box.nodes[0])
        if light and made and made[-1].frame == box.frame and len(made[-1].nodes) < _STAGE:
            first = made[-1]
            copies = tuple((*a, *b) for a, b in zip(first.copies, box.copies, strict=True))
            made[-1] = replace(first, nodes=(*first.nodes, *box.nodes), copies=copies)
        else:
            made.append(box)
    return made


def _heavy(graph: Graph, node: int) -> bool:
    op = graph.nodes[node].op.lower()
    return any(part in op for part in _HEAVY)


def _repeats(graph: Graph, boxes: Sequence[Box]) -> list[Box]:
    """Stretches of boxes that follow each other with the same operations and shapes, as one stretch with copies."""
    kinds: dict[object, int] = {}
    word = [kinds.setdefault(_kind(graph, box), len(kinds)) for box in boxes]
    sizes = [len(box.nodes) for box in boxes]
    made: list[Box] = []
    position = frame = 0
    while position < len(boxes):
        period, times = _best_repeat(word, sizes, position)
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


def _kind(graph: Graph, box: Box) -> object:
    nodes = [graph.nodes[node] for node in box.nodes]
    return tuple((node.op, *(graph.values[name].shape for name in node.writes)) for node in nodes)


def _best_repeat(word: Sequence[int], sizes: Sequence[int], start: int) -> tuple[int, int]:
    """(period, times) of the repetition at `start` that saves most nodes, the shortest of equals; or (1, 1)."""
    best, saved = (1, 1), _WORTH - 1
    for period in range(1, min(_LONGEST_PERIOD, (len(word) - start) // 2) + 1):
        pattern = word[start : start + period]
        times = 1
        while word[start + times * period : start + (times + 1) * period] == pattern:
            times += 1
        saves = (times - 1) * sum(sizes[start : start + period])
        if saves > saved:
            best, saved = (period, times), saves
    return best


def _even(boxes: Sequence[Box], limit: int) -> tuple[Box, ...]:
    """At most `limit` boxes or repeated stretches: neighbours grouped.

    A stretch is never torn: of its first copy's two halves, each would come before the other.
    """
    if len(boxes) <= limit:
        return tuple(boxes)
    units = _units(boxes)
    step = -(-len(units) // limit)
    made: list[Box] = []
    for start in range(0, len(units), step):
        parts = tuple(box for unit in units[start : start + step] for box in unit)
        if step == 1 or len(parts) == 1:
            made += parts
        else:
            nodes = sorted(node for box in parts for copy in (box.nodes, *box.copies) for node in copy)
            made.append(Box(tuple(nodes), _even(parts, limit)))
    return tuple(made)


def _units(boxes: Sequence[Box]) -> list[list[Box]]:
    units: list[list[Box]] = []
    for box in boxes:
        if units and box.frame and units[-1][0].frame == box.frame:
            units[-1].append(box)
        else:
            units.append([box])
    return units


def home_of(boxes: Sequence[Box]) -> Mapping[int, tuple[int, int]]:
    """Node -> (index of its box, which copy of it)."""
    return {
        node: (index, turn)
        for index, box in enumerate(boxes)
        for turn, copy in enumerate((box.nodes, *box.copies))
        for node in copy
    }
