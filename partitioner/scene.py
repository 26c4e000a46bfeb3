"""What a drawing of a plan shows, before it has places and colours: items, lines, bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgert.graph import Graph
from edgert.partitioner.outline import BOXES, Box, fold, home_of, running_order, segment_of
from edgert.plan import Plan
from edgert.tensor import shape_text
from edgert.units import size_text

__all__ = ["Item", "Line", "Scene", "inside", "overview", "weight_bytes"]

_STUBS = 12
"""Most inputs, and most outputs, that are drawn one by one; more become one."""


@dataclass(frozen=True, slots=True)
class Item:
    """One box, or an input or output of the drawing."""

    title: str
    line: str
    """Smaller, below the title."""
    segment: int
    """Index into `Plan.segments`; -1 for inputs and outputs."""
    band: int
    """Items of a lower band are drawn above; a segment has one or more, a repeated stretch its own."""
    box: Box | None = None
    """None for inputs and outputs."""
    name: str = ""
    """Of its node (and of the copies), or of its first and last."""


@dataclass(frozen=True, slots=True)
class Line:
    """Values that one item hands to another."""

    values: tuple[str, ...]
    size_bytes: int
    """Free dimensions as 1; 0 where nothing is known."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawing."""

    items: tuple[Item, ...]
    """In a topological order; bands never fall."""
    lines: Mapping[tuple[int, int], Line]
    """(source, sink) as indices of items."""


def overview(graph: Graph, plan: Plan, limit: int = BOXES) -> Scene:
    """The whole model, its segments one below the other.

    Raises:
        OptionError: the plan is not one of this graph.
    """
    boxes: list[Box] = []
    owners: list[int] = []
    runs = running_order(segment_of(graph, plan))
    for number, run in enumerate(runs):
        # Each segment has its share of the boxes, and enough to be recognised.
        share = limit if len(graph.nodes) <= limit else max(4, limit // len(runs), limit * len(run) // len(graph.nodes))
        found = fold(graph, run, share)
        if len(found) == 1 and found[0].parts:
            found = found[0].parts
        boxes += found
        owners += [number] * len(found)
    return _Builder(graph, boxes).scene(owners)


def inside(graph: Graph, box: Box, segment: int) -> Scene:
    """What is in a box: its parts, and the values that come and go."""
    return _Builder(graph, box.parts).scene([segment] * len(box.parts))


def weight_bytes(graph: Graph, nodes: Collection[int]) -> int:
    """Bytes of the constants that the nodes read, each once, and of those in their subgraphs."""
    names = {name for node in nodes for name in graph.nodes[node].reads if name in graph.constants}
    inner = sum(body.weight_bytes for node in nodes for body in graph.nodes[node].subgraphs)
    return sum(graph.constants[name].size_bytes for name in names) + inner


class _Builder:
    """The boxes of one drawing, and what flows between their nodes."""

    def __init__(self, graph: Graph, boxes: Sequence[Box]) -> None:
        self.graph, self.boxes = graph, boxes
        self.home = home_of(boxes)
        self.maker: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        for node in self.home:
            for name in graph.nodes[node].writes:
                self.maker[name] = node
            for name in dict.fromkeys(graph.nodes[node].reads):
                if name not in graph.constants and name not in graph.variables:
                    self.readers.setdefault(name, []).append(node)

    def scene(self, owners: Sequence[int]) -> Scene:
        """Inputs, boxes, outputs, and the lines between them."""
        wanted = {value.name for value in self.graph.outputs}
        sources = _bundles([name for name in self.readers if name not in self.maker])
        sinks = _bundles([name for name in self.maker if name in wanted or self._read_elsewhere(name)])
        items = [self._stub(names, "input", 0) for names in sources]
        first, band, last = len(items), 0, (-1, -1)
        for box, owner in zip(self.boxes, owners, strict=True):
            band += (owner, box.frame) != last
            last = (owner, box.frame)
            singles = [copy[0] for copy in (box.nodes, *box.copies)] if len(box.nodes) == 1 else []
            ends = dict.fromkeys(self.graph.nodes[n].name for n in singles or (box.nodes[0], box.nodes[-1]))
            items.append(
                Item(self._title(box), self._line(box), owner, band, box, (", " if singles else " ... ").join(ends))
            )
        lines = self._inner(first)
        for number, names in enumerate(sources):
            for name in names:
                for reader in self.readers[name]:
                    lines.setdefault((number, first + self.home[reader][0]), {})[name] = None
        for names in sinks:
            for name in names:
                lines.setdefault((first + self.home[self.maker[name]][0], len(items)), {})[name] = None
            items.append(self._stub(names, "output", band + 1))
        return Scene(tuple(items), {ends: self._carry(tuple(names)) for ends, names in lines.items()})

    def _inner(self, first: int) -> dict[tuple[int, int], dict[str, None]]:
        lines: dict[tuple[int, int], dict[str, None]] = {}
        for name, readers in self.readers.items():
            if name not in self.maker:
                continue
            source, turn = self.home[self.maker[name]]
            for reader in readers:
                sink, other = self.home[reader]
                framed = self.boxes[source].frame and self.boxes[source].frame == self.boxes[sink].frame
                # From one repetition to the next goes what the frame stands for; it would be drawn upwards.
                if source != sink and not (framed and turn != other):
                    lines.setdefault((first + source, first + sink), {})[name] = None
        return lines

    def _read_elsewhere(self, name: str) -> bool:
        return any(reader not in self.home for reader in self.graph.consumers.get(name, ()))

    def _carry(self, names: tuple[str, ...]) -> Line:
        return Line(names, sum(self.graph.values[name].size_bytes() or 0 for name in names))

    def _stub(self, names: Sequence[str], what: str, band: int) -> Item:
        if len(names) > 1:
            return Item(f"{len(names)} {what}s", size_text(self._carry(tuple(names)).size_bytes), -1, band)
        return Item(names[0], self._shape(names[0]), -1, band)

    def _shape(self, name: str) -> str:
        value = self.graph.values[name]
        shape = "" if value.shape is None else shape_text(value.shape)
        dtype = "" if value.dtype in (None, "float32") else f" {value.dtype}"
        kind = "" if value.kind == "tensor" else f"{value.kind} of "
        return f"{kind}{shape}{dtype}"

    def _title(self, box: Box) -> str:
        nodes = [self.graph.nodes[node] for node in box.nodes]
        if len(nodes) == 1:
            return _op(nodes[0].op) + _kernel(nodes[0].attributes.get("kernel_shape"))
        counts = Counter(_op(node.op) for node in nodes)
        # The rare ones tell what it is (Softmax among twenty Reshapes), the order of the first is easier to follow.
        shown = list(counts)[:3] if len(counts) <= 4 else sorted(counts, key=lambda op: -counts[op])[:3]
        texts = [f"{counts[op]} {op}" if counts[op] > 1 else op for op in shown]
        return ", ".join(texts) + (", …" if len(counts) > len(shown) else "")

    def _line(self, box: Box) -> str:
        """Its output's shape, its weights, how many nodes it is."""
        ends = [name for node in box.nodes for name in self.graph.nodes[node].writes
                if any(reader not in box.nodes for reader in self.graph.consumers.get(name, (-1,)))]  # fmt: skip
        weights = weight_bytes(self.graph, box.nodes)
        texts = [f"{len(box.nodes)} nodes" if len(box.nodes) > 1 else "", self._shape(ends[-1]) if ends else "",
                 size_text(weights) if weights else ""]  # fmt: skip
        return " · ".join(text for text in texts if text)


def _bundles(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [(name,) for name in names] if len(names) <= _STUBS else [tuple(names)]


def _op(name: str) -> str:
    return name.rpartition("::")[2]


def _kernel(shape: object) -> str:
    return " " + "x".join(map(str, shape)) if isinstance(shape, tuple) and shape else ""
