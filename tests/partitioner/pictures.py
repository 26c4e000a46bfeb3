"""Graphs and plans made by hand, for what shows them."""

from __future__ import annotations

from edgert.graph import Constant, Graph, Node, Value
from edgert.plan import Instance, Plan, Segment, Transfer, Verification
from edgert.profile import Row, Target, Timing

CPU, GPU, NPU = (Target.parse(text) for text in ("onnxruntime@cpu:0/f32/2t", "openvino@gpu:0/f16", "openvino@npu:0/i8"))


def graph_of(reads, ops=None, shapes=None):
    """A graph whose node k reads the outputs of nodes `reads[k]`, and the input where it reads none."""
    ops = ops or ["Relu"] * len(reads)
    shapes = shapes or [(1, 8)] * len(reads)
    nodes = tuple(
        Node(f"n{k}", ops[k], tuple(f"v{j}" for j in before) or ("x",), (f"v{k}",)) for k, before in enumerate(reads)
    )
    values = {"x": Value("x", "float32", (1, 8))}
    values |= {f"v{k}": Value(f"v{k}", "float32", shapes[k]) for k in range(len(reads))}
    used = {j for before in reads for j in before}
    outputs = tuple(values[f"v{k}"] for k in range(len(reads)) if k not in used)
    return Graph("onnx", "made", nodes, (values["x"],), outputs, values, {})


def chain(count, ops=("Conv", "Relu")):
    return graph_of([[k - 1] if k else [] for k in range(count)], [ops[k % len(ops)] for k in range(count)])


def with_weight(graph, node, size_bytes):
    """The same graph where a node also reads a constant."""
    value = Value("w", "uint8", (size_bytes,))
    nodes = list(graph.nodes)
    old = nodes[node]
    nodes[node] = Node(old.name, old.op, (*old.inputs, "w"), old.outputs)
    constants = {"w": Constant(value, size_bytes, lambda: None)}
    return Graph("onnx", graph.name, tuple(nodes), graph.inputs, graph.outputs, {**graph.values, "w": value}, constants)


def plan_of(graph, cuts=(), targets=(CPU,), **fields):
    """A plan whose segments are cut before the nodes `cuts`."""
    bounds = [0, *cuts, len(graph.nodes)]
    segments, transfers = [], []
    for target, start, end in zip(targets, bounds, bounds[1:], strict=False):
        inputs, outputs = graph.boundary(frozenset(range(start, end)))
        names = tuple(node.name for node in graph.nodes[start:end]) if cuts else ()
        segments.append(Segment(target, names, inputs, outputs))
    for source, segment in enumerate(segments):
        for sink in range(source + 1, len(segments)):
            values = tuple(name for name in segment.outputs if name in segments[sink].inputs)
            if values:
                size = sum(graph.values[name].size_bytes() for name in values)
                transfers.append(Transfer(source, sink, values, size))
    given = {"measured_s": 0.004, "verification": Verification("onnx"), "candidates": (), "versions": {}, **fields}
    return Plan(
        model="0" * 64, machine="f" * 16, objective="latency", precision="own", format="onnx", own_precision="f32",
        inputs=graph.inputs, outputs=graph.outputs, segments=tuple(segments),
        instances=tuple(Instance(number) for number in range(len(segments))), transfers=tuple(transfers), **given,
    )  # fmt: skip


def row(target, outcome="ok", p50_s=0.0, reason="", errors=()):
    timing = Timing(p50_s, p50_s, p50_s, 10, 2) if p50_s else None
    return Row(Target.parse(target) if isinstance(target, str) else target, outcome, reason, timing, errors)
