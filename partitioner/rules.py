"""The rules that join nodes into blocks: what a backend fuses, and what must not be torn apart.

Each rule is a function from a graph to sets of nodes; `RULES` names them. A rule that asks too much costs a possible
cut, one that asks too little a pass over memory: neither costs a right answer, but for state and what is no tensor.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping

from edgert.graph import Graph, Node

__all__ = ["RULES"]


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
_MOST_IN_DIAMOND = 16
_MOST_IN_CHAIN = 6
_NEAR = 32
"""Nodes between a DequantizeLinear and a reader that stays with it: enough for a residual branch."""


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


def _leading_nowhere(graph: Graph) -> Iterator[list[int]]:
    """A node whose values nobody wants stays with a neighbour: a segment of its own would have no output."""
    outputs = {value.name for value in graph.outputs}
    for index, node in enumerate(graph.nodes):
        if any(name in outputs or graph.consumers.get(name) for name in node.writes):
            continue
        makers = [graph.producers[name] for name in node.reads if name in graph.producers]
        readers = [reader for name in node.reads for reader in graph.consumers[name] if reader != index]
        if makers or readers:
            yield [(makers or readers)[0], index]


RULES: Mapping[str, Callable[[Graph], Iterator[list[int]]]] = {  # name -> sets of nodes to join
    "fused chain": _chains,
    "element-wise region": _diamonds,
    "attention": _attention,
    "quantised group": _quantised,
    "not a tensor": _not_tensors,
    "state": _state,
    "shape": _shape_arithmetic,
    "leads nowhere": _leading_nowhere,
}
"""A control-flow node is one node, its bodies within it: it needs no rule."""
