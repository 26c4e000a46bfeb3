"""Where a value is seen: its shape, its contents if constant, and the nodes that read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from edgert.graph import Attribute, Graph, Node, Value
from edgert.tensor import Array

KnownShape = tuple[int | None, ...]
"""A resolved shape; None where a size stays unknown before the model runs."""

_LARGE_BYTES = 1 << 20
"""Constants above this are weights: no rule needs their contents."""
_AS_IS = frozenset({"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "CAST", "RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
"""Operations whose output holds the elements of input 0 in the same order."""


@dataclass(frozen=True)
class Scope:
    """A graph, or the body of a control-flow node inside its enclosing scopes."""

    graph: Graph
    shapes: Mapping[str, KnownShape]
    """Value name -> shape, by `sizes.resolve`; of this graph only."""
    outer: Scope | None = None
    """The enclosing scope: a name that this graph does not have is looked up there."""
    given: Mapping[str, KnownShape] = field(default_factory=dict)
    """Shapes of this body's inputs as the control-flow node feeds them."""

    def value(self, name: str) -> Value | None:
        found = self.graph.values.get(name)
        return found if found is not None or self.outer is None else self.outer.value(name)

    def shape(self, name: str) -> KnownShape | None:
        """Shape of a value; None when even its rank is unknown (or `name` is '')."""
        if name in self.given:
            return self.given[name]
        if name in self.shapes:
            return self.shapes[name]
        return self.outer.shape(name) if self.outer is not None and name not in self.graph.values else None

    def constant(self, name: str) -> Array | None:
        """Contents of a small constant, also through operations that keep its elements; None otherwise."""
        for _ in range(8):  # chains are short; a bound keeps a strange graph harmless
            constant = self.graph.constants.get(name)
            if constant is not None:
                return constant.read() if constant.size_bytes <= _LARGE_BYTES else None
            if name not in self.graph.producers:
                return self.outer.constant(name) if self.outer is not None else None
            node = self.graph.nodes[self.graph.producers[name]]
            if node.op == "Constant":
                return _attribute_constant(node)
            if node.op not in _AS_IS or not node.inputs:
                return None
            name = node.inputs[0]
        return None

    def inner(self, body: Graph, given: Mapping[str, KnownShape]) -> Scope:
        """The scope of a body of one of this graph's nodes."""
        shapes = {
            value.name: tuple(size if isinstance(size, int) else None for size in value.shape)
            for value in body.values.values()
            if value.shape is not None
        }
        return Scope(body, shapes, self, given)


def _attribute_constant(node: Node) -> Array | None:
    for key in ("value_int", "value_ints", "value_float", "value_floats"):
        if key in node.attributes:
            return np.asarray(node.attributes[key], np.int64 if "int" in key else np.float32)
    return None


@dataclass(frozen=True, slots=True)
class Site:
    """One place where a value is read: input `position` of `node`, in `scope`."""

    scope: Scope
    node: Node
    position: int

    def shape(self, position: int) -> KnownShape | None:
        """Shape of the node's input at `position`; None when absent or unknown."""
        return self.scope.shape(self.node.inputs[position]) if position < len(self.node.inputs) else None

    def made(self, position: int = 0) -> KnownShape | None:
        """Shape of the node's output at `position`."""
        return self.scope.shape(self.node.outputs[position]) if position < len(self.node.outputs) else None

    def constant(self, position: int) -> Array | None:
        """Contents of the node's input at `position`, if it is a small constant."""
        return self.scope.constant(self.node.inputs[position]) if position < len(self.node.inputs) else None

    def value(self, position: int) -> Value | None:
        return self.scope.value(self.node.inputs[position]) if position < len(self.node.inputs) else None

    def attribute(self, name: str, default: Attribute = None) -> Attribute:
        found = self.node.attributes.get(name)
        return default if found is None else found

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self.node.attributes.get(name)
        return found if isinstance(found, int) else default


@dataclass(frozen=True, slots=True)
class Seen:
    """A site that an input reaches, and how it is changed on the way: seen = scale * input + shift."""

    site: Site
    scale: float = 1.0
    shift: float = 0.0
    column: tuple[int, int] | None = None
    """Which index of the last axis arrives, of how many, where only one does (a table of its own for each column)."""


Way: TypeAlias = tuple[float, float, tuple[int, int] | None]
"""Scale, shift and column of `Seen`."""


_SAME_VALUES = frozenset(
    {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Slice", "Expand", "Tile", "Split",
     "Gather", "CastLike", "OptionalGetElement", "Optional", "DepthToSpace", "SpaceToDepth",
     "CAST", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "TILE", "BROADCAST_TO",
     "GATHER"}
)  # fmt: skip
"""Operations whose outputs hold elements of input 0, unchanged, in some order."""
_MANY = frozenset(
    {"Concat", "Max", "Min", "Clip", "CONCATENATION", "PACK", "UNPACK", "SPLIT", "SPLIT_V", "MAXIMUM", "MINIMUM"}
)
"""The same for every input; limits are among them: what fits after clipping also fits before."""
_CHOICES = frozenset({"Where", "SELECT", "SELECT_V2"})
"""Outputs hold elements of inputs 1 and 2."""
_STEPS = 400
"""How many readers to look at before giving up on one input."""


def seen_by(scope: Scope, name: str) -> Iterator[Seen]:
    """Every place where the elements of a value arrive, nearest first, through operations that only move, cast,
    shift or scale them, and into the bodies of control flow.
    """
    pending: list[tuple[Scope, str, Way]] = [(scope, name, (1.0, 0.0, None))]
    visited: set[tuple[int, str]] = set()
    for step in range(_STEPS):
        if step >= len(pending):
            return
        here, current, path = pending[step]
        if (id(here.graph), current) in visited:
            continue
        visited.add((id(here.graph), current))
        for index in here.graph.consumers.get(current, ()):
            node = here.graph.nodes[index]
            pending += [(body, inner, path) for body, inner in _bodies(here, node, current)]
            for position, read in enumerate(node.inputs):
                if read != current:
                    continue
                site = Site(here, node, position)
                yield Seen(site, *path)
                pending += [(here, out, longer) for out, longer in _passed_on(site, path)]


def _passed_on(site: Site, path: Way) -> list[tuple[str, Way]]:
    """Outputs that still hold the elements, with the way to them."""
    node, (scale, shift, column) = site.node, path
    if (
        (node.op in _SAME_VALUES and site.position == 0)
        or node.op in _MANY
        or (node.op in _CHOICES and site.position > 0)
    ):
        return [(out, (scale, shift, column or _column(site))) for out in node.writes]
    line = _affine(site, scale, shift)
    return [] if line is None else [(out, (*line, column)) for out in node.writes]


def _column(site: Site) -> tuple[int, int] | None:
    """The one index of the last axis that a Gather takes."""
    shape, index = site.shape(0), site.constant(1)
    if site.node.op not in ("Gather", "GATHER") or not shape or index is None or index.size != 1:
        return None
    if site.integer("axis", 0) not in (-1, len(shape) - 1) or shape[-1] is None:
        return None
    return int(index.reshape(-1)[0]) % shape[-1], shape[-1]


def _affine(site: Site, scale: float, shift: float) -> tuple[float, float] | None:
    """The line after adding, subtracting, multiplying or dividing by one constant number."""
    op = site.node.op.capitalize()
    if op not in ("Add", "Sub", "Mul", "Div") or len(site.node.inputs) != 2:
        return None
    other = site.constant(1 - site.position)
    if other is None or other.size != 1 or other.dtype.kind not in "iuf":
        return None
    number = float(other.reshape(-1)[0])
    if op == "Add":
        return scale, shift + number
    if op == "Mul":
        return scale * number, shift * number
    if op == "Sub":
        return (scale, shift - number) if site.position == 0 else (-scale, number - shift)
    return (scale / number, shift / number) if site.position == 0 and number else None


def _bodies(scope: Scope, node: Node, name: str) -> Iterator[tuple[Scope, str]]:
    """The bodies that see a value, and under which name."""
    for body in node.subgraphs:
        for position, read in enumerate(node.inputs):
            if read == name:
                yield from _as_argument(scope, node, body, position)
        if name in node.captured:
            yield scope.inner(body, {}), name


_FIRST_ARGUMENT = {"If": None, "Loop": 0, "Scan": 0, "WHILE": 0, "IF": 1}
"""Operation -> which of the node's inputs is the body's first, None where bodies only capture."""


def _as_argument(scope: Scope, node: Node, body: Graph, position: int) -> Iterator[tuple[Scope, str]]:
    first = _FIRST_ARGUMENT.get(node.op)
    if first is None or not 0 <= position - first < len(body.inputs):
        return
    if node.op == "Loop" and position < 2:  # trip count and first condition are not handed on
        return
    given: dict[str, KnownShape] = {}
    scanned = node.attributes.get("num_scan_inputs")
    for index, inner in enumerate(body.inputs):
        if index + first >= len(node.inputs) or (node.op == "Loop" and index < 2):
            continue
        shape = scope.shape(node.inputs[index + first])
        if shape is not None:
            is_scanned = isinstance(scanned, int) and index >= len(node.inputs) - scanned
            given[inner.name] = shape[1:] if is_scanned else shape
    yield scope.inner(body, given), body.inputs[position - first].name
