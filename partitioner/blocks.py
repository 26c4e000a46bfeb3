"""Blocks: the smallest groups of nodes that are never cut.

A cut inside what a backend would fuse costs a pass over memory and gains nothing; a cut inside a control-flow body,
a quantised group or a state is wrong. Nodes are joined by the rules in `rules.RULES`, one after the other; then
whatever lies on a path that leaves a block and comes back is joined to it, so that blocks are convex and ordered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgert.graph import Graph
from edgert.partitioner.order import topological
from edgert.partitioner.rules import RULES

__all__ = ["Block", "blocks_of", "signature"]


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes that always run as one piece."""

    id: str
    """Name of its first node."""
    nodes: tuple[int, ...]
    """Indices into `Graph.nodes`, rising."""
    cause: str
    """Names of the rules that joined them, such as 'attention + quantised group'; '' for a single node."""
    group: str = ""
    """Name of the large constant that it shares with others of the same group, which should share its target."""


SHARED_BYTES = 1 << 16
"""A constant of fewer bytes is copied into each segment that reads it; a larger one keeps its readers on one target."""


def blocks_of(graph: Graph) -> tuple[Block, ...]:
    """Every node of the graph in one block each; blocks in an order in which they can run."""
    joined = _Joined(len(graph.nodes))
    for name, rule in RULES.items():
        for nodes in rule(graph):
            joined.join(nodes, name)
    _close(graph, joined)
    groups = _groups(graph, joined)
    blocks = [
        Block(
            graph.nodes[nodes[0]].name,
            nodes,
            " + ".join(joined.causes(nodes[0])),
            groups.get(joined.find(nodes[0]), ""),
        )
        for nodes in joined.sets()
    ]
    return tuple(_ordered(graph, blocks))


def signature(graph: Graph, nodes: Sequence[int]) -> str:
    """16 hex digits, equal for equal work: the same ops, attributes, types, shapes and wiring, whatever the names.

    Two pieces with one signature cost the same on any target (weights differ at most in their values), so one is
    measured for both.
    """
    number: dict[str, int] = {}
    rows = []
    inside = {name for index in nodes for name in graph.nodes[index].writes}
    for index in nodes:
        node = graph.nodes[index]
        row: list[object] = [node.op, sorted((key, repr(value)) for key, value in node.attributes.items())]
        row.append([_value_signature(graph, name, number, inside) for name in (*node.inputs, *node.captured)])
        row.append([_value_signature(graph, name, number, inside) for name in node.outputs])
        row.append([signature(body, range(len(body.nodes))) for body in node.subgraphs])
        rows.append(row)
    outputs = [number[name] for name in graph.boundary(frozenset(nodes))[1]]
    text = json.dumps([graph.format, sorted(graph.opsets.items()), rows, outputs], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _value_signature(graph: Graph, name: str, number: dict[str, int], inside: set[str]) -> list[object]:
    if not name:
        return []
    kind = "weight" if name in graph.constants else "made" if name in inside else "read"
    value = graph.values.get(name)
    facts: list[object] = [number.setdefault(name, len(number)), kind]
    return facts if value is None else [*facts, value.dtype, value.shape, value.kind, repr(value.quantization)]


class _Joined:
    """Disjoint sets of nodes that grow together, and why (Tarjan, Journal of the ACM 22, 1975)."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))
        self.why: dict[int, dict[str, None]] = {}

    def find(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, nodes: Sequence[int], cause: str) -> None:
        if len(nodes) < 2:
            return
        roots = sorted({self.find(node) for node in nodes})
        causes: dict[str, None] = {}
        for root in roots:
            causes |= self.why.pop(root, {})
            self.parent[root] = roots[0]
        self.why[roots[0]] = causes | {cause: None}

    def causes(self, node: int) -> tuple[str, ...]:
        return tuple(self.why.get(self.find(node), ()))

    def sets(self) -> list[tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        for node in range(len(self.parent)):
            found.setdefault(self.find(node), []).append(node)
        return [tuple(nodes) for nodes in found.values()]


def _close(graph: Graph, joined: _Joined) -> None:
    """Join what lies on a path that leaves a set and comes back: strongly connected sets of sets (Tarjan, 1972)."""
    roots = sorted({joined.find(node) for node in range(len(graph.nodes))})
    after: dict[int, set[int]] = {root: set() for root in roots}
    for index, node in enumerate(graph.nodes):
        for name in node.reads:
            if name in graph.producers:
                source, sink = joined.find(graph.producers[name]), joined.find(index)
                if source != sink:
                    after[source].add(sink)
    for component in _components(roots, after):
        joined.join(component, "on a path back")


def _components(roots: Sequence[int], after: Mapping[int, set[int]]) -> Iterator[list[int]]:
    """Strongly connected components of two or more, without recursion."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    for root in roots:
        if root in number:
            continue
        work = [(root, iter(sorted(after[root])))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            for sink in rest:
                if sink not in number:
                    number[sink] = low[sink] = len(number)
                    stack.append(sink)
                    on_stack.add(sink)
                    work.append((sink, iter(sorted(after[sink]))))
                    break
                if sink in on_stack:
                    low[node] = min(low[node], number[sink])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    if len(component) > 1:
                        yield component


def _groups(graph: Graph, joined: _Joined) -> dict[int, str]:
    """Root of a set of nodes -> name of the constant that it shares with others (sets that share in turn are one)."""
    sets = _Joined(len(graph.nodes))
    names: dict[int, set[str]] = {}
    for name, constant in graph.constants.items():
        roots = sorted({joined.find(reader) for reader in graph.consumers.get(name, ())})
        if constant.size_bytes >= SHARED_BYTES and len(roots) > 1:
            sets.join(roots, "shared")
            for root in roots:
                names.setdefault(root, set()).add(name)
    found: dict[int, set[str]] = {}
    for root, own in names.items():
        found.setdefault(sets.find(root), set()).update(own)
    return {root: min(found[sets.find(root)]) for root in names}


def _ordered(graph: Graph, blocks: Sequence[Block]) -> list[Block]:
    """The blocks in topological order, close to that of the nodes."""
    owner = {node: number for number, block in enumerate(blocks) for node in block.nodes}
    after: dict[int, set[int]] = {number: set() for number in range(len(blocks))}
    for index, node in enumerate(graph.nodes):
        for name in node.reads:
            if name in graph.producers:
                source, sink = owner[graph.producers[name]], owner[index]
                if source != sink:
                    after[source].add(sink)
    order = topological(after, {number: block.nodes[0] for number, block in enumerate(blocks)})
    assert order is not None  # blocks are convex
    return [blocks[number] for number in order]
