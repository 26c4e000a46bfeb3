"""Blocks: the smallest groups of nodes that are never cut.

A cut inside what a backend would fuse costs a pass over memory and gains nothing; a cut inside a control-flow body,
a quantised group or a state is wrong. Nodes are joined by the rules in `RULES`, one after the other; then whatever
lies on a path that leaves a block and comes back is joined to it, so that blocks are convex and have an order.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgert.graph import Graph, Node

__all__ = ["RULES", "Block", "blocks_of", "signature"]


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


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators of the ONNX standard, then of TFLite.
HEAVY = _names("""
    Conv ConvTranspose ConvInteger QLinearConv Gemm MatMul MatMulInteger QLinearMatMul
    CONV_2D DEPTHWISE_CONV_2D TRANSPOSE_CONV CONV_3D FULLY_CONNECTED BATCH_MATMUL
""")
"""What others are fused into."""
UNARY = _names("""
    BatchNormalization Relu LeakyRelu Elu Selu Celu ThresholdedRelu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign
    Mish Gelu Erf Clip Abs Neg Exp Log Sqrt Reciprocal Identity Dropout Cast Round Floor
    RELU RELU6 RELU_N1_TO_1 LEAKY_RELU ELU LOGISTIC HARD_SWISH TANH GELU ABS NEG EXP LOG SQRT RSQRT SQUARE CAST
""")
"""Element by element, with one input that is computed."""
BINARY = _names("""
    Add Sub Mul Div Pow Max Min PRelu ADD SUB MUL DIV POW MAXIMUM MINIMUM PRELU SQUARED_DIFFERENCE
""")
"""Element by element, with several inputs."""
REDUCE = _names("ReduceMean ReduceSum ReduceMax ReduceSumSquare MEAN SUM REDUCE_MAX")
LIGHT = UNARY | BINARY | REDUCE
SCORES = _names("MatMul BATCH_MATMUL")
BETWEEN_SCORES = _names("""
    Add Mul Div Where Cast Reshape Dropout Identity ADD MUL DIV SELECT SELECT_V2 CAST RESHAPE
""")
"""From the scores to the softmax, or from there to the product with the values."""
STATEFUL = _names("CALL_ONCE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE")
SHARED_BYTES = 1 << 16
"""A constant of fewer bytes is copied into each segment that reads it; a larger one keeps its readers on one target."""
_MOST_IN_DIAMOND = 16
_MOST_IN_CHAIN = 6
_NEAR = 32
"""Nodes between a DequantizeLinear and a reader that stays with it: enough for a residual branch."""


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


def _only_reader(graph: Graph, name: str) -> int | None:
    """The one node that reads a value, unless the caller of the model gets it too."""
    readers = graph.consumers.get(name, ())
    is_output = any(value.name == name for value in graph.outputs)
    return readers[0] if len(readers) == 1 and not is_output else None


def _computed(graph: Graph, node: Node) -> list[str]:
    """What a node reads, constants left out."""
    return [name for name in dict.fromkeys(node.reads) if name not in graph.constants]


def _chains(graph: Graph) -> Iterator[list[int]]:
    """Conv, Gemm, MatMul and their kin with the normalisation, bias and activation that follow."""
    for index, node in enumerate(graph.nodes):
        if node.op in HEAVY:
            chain = [index]
            while len(chain) < _MOST_IN_CHAIN and len(graph.nodes[chain[-1]].writes) == 1:
                reader = _only_reader(graph, graph.nodes[chain[-1]].writes[0])
                if reader is None or graph.nodes[reader].op not in UNARY | BINARY:
                    break
                if len(_computed(graph, graph.nodes[reader])) > 1:
                    break  # a residual: it waits for another branch
                chain.append(reader)
            yield chain


def _diamonds(graph: Graph) -> Iterator[list[int]]:
    """Element-wise regions that split one value and join it again: LayerNorm, GELU, SiLU, Mish, hard-swish.

    All that a region computes follows from the one value; it ends in one value.
    """
    taken: set[int] = set()
    for name in (*(value.name for value in graph.inputs), *graph.producers):
        if len(graph.consumers.get(name, ())) >= 2:
            region = _diamond(graph, name)
            if region and taken.isdisjoint(region):
                taken.update(region)
                producer = graph.producers.get(name)
                heavy = producer is not None and graph.nodes[producer].op in HEAVY
                whole = heavy and set(graph.consumers[name]) <= set(region)
                yield [producer, *region] if whole and producer is not None else region


def _diamond(graph: Graph, name: str) -> list[int]:
    made, region, best = {name}, list[int](), list[int]()
    waiting = list(graph.consumers[name])
    seen = set(waiting)
    heapq.heapify(waiting)
    while waiting and len(region) < _MOST_IN_DIAMOND:
        index = heapq.heappop(waiting)
        node = graph.nodes[index]
        if node.op not in LIGHT or not made.issuperset(_computed(graph, node)):
            continue
        region.append(index)
        made.update(node.writes)
        for output in node.writes:
            for reader in graph.consumers.get(output, ()):
                if reader not in seen:
                    seen.add(reader)
                    heapq.heappush(waiting, reader)
        direct = sum(name in graph.nodes[member].reads for member in region)
        if direct >= 2 and len(graph.boundary(frozenset(region))[1]) == 1:
            best = list(region)
    return best


def _attention(graph: Graph) -> Iterator[list[int]]:
    """Scores, scale, mask, softmax and the product with the values."""
    for index, node in enumerate(graph.nodes):
        if node.op in ("Softmax", "SOFTMAX"):
            before = _back_to_scores(graph, index)
            after = _on_to_product(graph, index)
            if before and after:
                yield [*before, index, *after]


def _back_to_scores(graph: Graph, index: int) -> list[int]:
    found: list[int] = []
    while len(found) < _MOST_IN_CHAIN:
        reads = _computed(graph, graph.nodes[index])
        makers = [graph.producers[name] for name in reads if name in graph.producers]
        makers = [m for m in makers if _only_reader(graph, graph.nodes[m].writes[0]) is not None]
        scores = next((m for m in makers if graph.nodes[m].op in SCORES), None)
        if scores is not None:
            return [scores, *found]
        step = next((m for m in makers if graph.nodes[m].op in BETWEEN_SCORES), None)
        if step is None:
            return []
        found.insert(0, step)
        index = step
    return []


def _on_to_product(graph: Graph, index: int) -> list[int]:
    found: list[int] = []
    while len(found) < _MOST_IN_CHAIN and graph.nodes[index].writes:
        reader = _only_reader(graph, graph.nodes[index].writes[0])
        if reader is None or graph.nodes[reader].op not in SCORES | BETWEEN_SCORES:
            return []
        found.append(reader)
        if graph.nodes[reader].op in SCORES:
            return found
        index = reader
    return []


def _quantised(graph: Graph) -> Iterator[list[int]]:
    """A DequantizeLinear with all that reads it, and a QuantizeLinear with what makes its input: an op and its QDQ.

    What crosses a cut is then the integer between the two, a quarter of the float's size. In TFLite, ops are
    quantised themselves: only the unpacking of a constant belongs to its readers. A reader far down a skip connection
    is let go, for else all between would be one block: it reads the float, which costs bytes, not exactness.
    """
    for index, node in enumerate(graph.nodes):
        if node.op == "DequantizeLinear" or (node.op == "DEQUANTIZE" and not _computed(graph, node)):
            readers = [r for name in node.writes for r in graph.consumers.get(name, ())]
            maker = graph.producers.get(node.inputs[0])
            near = [r for r in readers if r - index <= _NEAR] or readers[:1]
            yield [index, *near] if near or maker is None else [maker, index]
        elif node.op == "QuantizeLinear":
            maker = graph.producers.get(node.inputs[0])
            if maker is not None and _only_reader(graph, node.inputs[0]) is not None:
                yield [maker, index]


def _not_tensors(graph: Graph) -> Iterator[list[int]]:
    """Sequences, optionals and maps cannot cross to another target: their makers and readers stay together."""
    for name, maker in graph.producers.items():
        value = graph.values.get(name)
        if value is not None and value.kind != "tensor":
            yield [maker, *graph.consumers.get(name, ())]


def _state(graph: Graph) -> Iterator[list[int]]:
    """All that touches one variable, and all resource ops: state lives in one place."""
    for name in graph.variables:
        touching = set(graph.consumers.get(name, ())) | ({graph.producers[name]} if name in graph.producers else set())
        yield sorted(touching)
    yield [index for index, node in enumerate(graph.nodes) if node.op in STATEFUL]


def _shape_arithmetic(graph: Graph) -> Iterator[list[int]]:
    """Shape and Size read a value only for its form: they stay with its maker, so that nothing is moved for them."""
    for index, node in enumerate(graph.nodes):
        if node.op in ("Shape", "Size", "SHAPE", "RANK") and node.inputs and node.inputs[0] in graph.producers:
            yield [graph.producers[node.inputs[0]], index]


RULES: Mapping[str, Callable[[Graph], Iterator[list[int]]]] = {  # name -> sets of nodes to join
    "fused chain": _chains,
    "element-wise region": _diamonds,
    "attention": _attention,
    "quantised group": _quantised,
    "not a tensor": _not_tensors,
    "state": _state,
    "shape": _shape_arithmetic,
}
"""A control-flow node is one node, its bodies within it: it needs no rule."""


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
    after: list[set[int]] = [set() for _ in blocks]
    waits = [0] * len(blocks)
    for index, node in enumerate(graph.nodes):
        for name in node.reads:
            if name in graph.producers:
                source, sink = owner[graph.producers[name]], owner[index]
                if source != sink and sink not in after[source]:
                    after[source].add(sink)
                    waits[sink] += 1
    ready = [(block.nodes[0], number) for number, block in enumerate(blocks) if not waits[number]]
    heapq.heapify(ready)
    order = []
    while ready:
        _, number = heapq.heappop(ready)
        order.append(blocks[number])
        for sink in after[number]:
            waits[sink] -= 1
            if not waits[sink]:
                heapq.heappush(ready, (blocks[sink].nodes[0], sink))
    return order
