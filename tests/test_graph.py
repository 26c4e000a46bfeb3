"""Graphs: convexity against every path, boundaries, sizes."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.graph import Constant, Graph, Node, Value


def value(name, shape=(1,)):
    return Value(name, "float32", shape)


def graph_of(edges, count, constants=()):
    """Node i writes 'v<i>'; reads the values of its predecessors, and 'in' where it has none."""
    nodes = []
    for index in range(count):
        reads = [f"v{source}" for source, sink in edges if sink == index] or ["in"]
        nodes.append(Node(f"n{index}", "Op", tuple(reads), (f"v{index}",)))
    last = f"v{count - 1}"
    values = {name: value(name) for name in ["in", *(f"v{index}" for index in range(count))]}
    held = {item.value.name: item for item in constants}
    return Graph("onnx", "g", tuple(nodes), (values["in"],), (values[last],), values, held)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 7))
    pairs = list(itertools.combinations(range(count), 2))
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return count, edges


def leaves_and_comes_back(edges, count, chosen):
    """Whether some path from the set runs through the outside back into it: tried by walking all paths."""

    def walk(node, outside):
        for source, sink in edges:
            if source != node:
                continue
            if sink in chosen:
                if outside:
                    return True
            elif walk(sink, True):
                return True
        return False

    return any(walk(node, False) for node in chosen)


@given(graphs(), st.data())
@settings(deadline=None)
def test_convex_is_what_no_path_leaves_and_reenters(drawn, data):
    count, edges = drawn
    chosen = data.draw(st.frozensets(st.integers(0, count - 1)))
    assert graph_of(edges, count).is_convex(chosen) == (not leaves_and_comes_back(edges, count, chosen))


@given(graphs(), st.data())
@settings(deadline=None)
def test_a_boundary_holds_exactly_the_values_that_cross(drawn, data):
    count, edges = drawn
    chosen = data.draw(st.frozensets(st.integers(0, count - 1), min_size=1))
    graph = graph_of(edges, count)
    inputs, outputs = graph.boundary(chosen)
    assert set(inputs) == {
        name for index in chosen for name in graph.nodes[index].reads if name not in {f"v{i}" for i in chosen}
    }
    crossing = {f"v{source}" for source, sink in edges if source in chosen and sink not in chosen}
    assert set(outputs) == crossing | ({f"v{count - 1}"} if count - 1 in chosen else set())
    assert len(set(inputs)) == len(inputs)


def test_constants_are_no_inputs_of_a_part():
    weight = Constant(value("w", (3,)), 12, lambda: np.zeros(3, np.float32))
    node = Node("n0", "Add", ("in", "w"), ("v0",))
    graph = Graph("onnx", "g", (node,), (value("in"),), (value("v0"),), {}, {"w": weight})
    assert graph.boundary(frozenset({0})) == (("in",), ("v0",))


def test_what_a_body_captures_counts_as_read():
    inner = Graph("onnx", "body", (Node("b", "Relu", ("v0",), ("r",)),), (), (value("r"),), {}, {})
    nodes = (
        Node("n0", "Op", ("in",), ("v0",)),
        Node("n1", "Op", ("v0",), ("v1",)),
        Node("n2", "If", ("v1",), ("v2",), subgraphs=(inner,), captured=("v0",)),
    )
    graph = Graph("onnx", "g", nodes, (value("in"),), (value("v2"),), {}, {})
    assert graph.consumers["v0"] == (1, 2)
    assert not graph.is_convex(frozenset({0, 2}))


def test_weights_of_bodies_count():
    weight = Constant(value("w", (3,)), 12, lambda: np.zeros(3, np.float32))
    body = Graph("onnx", "body", (), (), (), {}, {"w": weight})
    node = Node("n0", "If", ("in",), ("v0",), subgraphs=(body, body))
    graph = Graph("onnx", "g", (node,), (value("in"),), (value("v0"),), {}, {"w2": weight})
    assert graph.weight_bytes == 36


def test_absent_optional_inputs_and_outputs_are_no_values():
    node = Node("n", "Op", ("a", "", "b"), ("", "y"), captured=("c",))
    assert (node.reads, node.writes) == (("a", "b", "c"), ("y",))


def test_a_value_is_written_for_people():
    assert str(Value("x", "float32", ("N", 3))) == "x: float32 Nx3"
    assert str(Value("x", None, None, "sequence")) == "x: sequence of ? ?"
    assert Value("x", None, (1,)).size_bytes() is None
    assert value("x", ("N", 2)).size_bytes(free=3) == 24
