"""What is never cut, and what may be."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.graph import Constant, Format, Graph, Node, Value
from edgert.partitioner.blocks import blocks_of, signature
from edgert.partitioner.cuts import cuts_of, flows_of, is_segment, nodes_of, size_at, weights_of

MODELS = os.environ.get("EDGERT_MODELS", "")


def graph_of(
    rows: Sequence[str],
    constants: dict[str, int] | None = None,
    form: Format = "onnx",
    kinds: dict[str, str] | None = None,
) -> Graph:
    """A graph from rows such as 'y = Conv x w'; values are float32 of 4 elements, outputs those that nothing reads."""
    nodes = []
    for number, row in enumerate(rows):
        left, right = row.split("=")
        op, *reads = right.split()
        nodes.append(Node(f"n{number}", op, tuple(reads), tuple(left.split())))
    weights = {
        name: Constant(Value(name, "float32", (size // 4,)), size, lambda: np.zeros(1, "f4"))
        for name, size in {"w": 16, **(constants or {})}.items()
    }
    made = [name for node in nodes for name in node.writes]
    read = {name for node in nodes for name in node.reads}
    names = dict.fromkeys([*made, *sorted(read)])
    values = {name: Value(name, "float32", (4,), (kinds or {}).get(name, "tensor")) for name in names}  # type: ignore[arg-type]
    return Graph(
        format=form,
        name="g",
        nodes=tuple(nodes),
        inputs=tuple(values[name] for name in values if name in read and name not in made and name not in weights),
        outputs=tuple(values[name] for name in made if name not in read),
        values=values,
        constants=weights,
    )


def ids(graph: Graph) -> list[set[int]]:
    return [set(block.nodes) for block in blocks_of(graph)]


PATTERNS: dict[str, tuple[str, Format]] = {  # rows parted by ';'
    "Conv, BN, activation": ("a = Conv x w; b = BatchNormalization a w w w w; c = Relu b", "onnx"),
    "Gemm, activation": ("a = Gemm x w w; b = Clip a w w", "onnx"),
    "MatMul, bias, activation": ("a = MatMul x w; b = Add a w; c = Gelu b", "onnx"),
    "Conv, SiLU": ("a = Conv x w; b = Sigmoid a; c = Mul a b", "onnx"),
    "fully connected": ("a = FULLY_CONNECTED x w; b = ADD a w; c = RELU b", "tflite"),
    "convolution, swish": ("a = CONV_2D x w; b = LOGISTIC a; c = MUL a b", "tflite"),
    "LayerNorm": (
        "m = ReduceMean x; d = Sub x m; p = Pow d w; v = ReduceMean p; e = Add v w; s = Sqrt e; n = Div d s; "
        "g = Mul n w; b = Add g w",
        "onnx",
    ),
    "normalisation in TFLite": (
        "m = MEAN x w; d = SQUARED_DIFFERENCE x m; v = MEAN d w; e = ADD v w; s = RSQRT e; n = MUL x s",
        "tflite",
    ),
    "GELU": ("d = Div x w; e = Erf d; a = Add e w; m = Mul x a; h = Mul m w", "onnx"),
    "GELU by tanh": (
        "p = Pow x w; c = Mul p w; s = Add x c; k = Mul s w; t = Tanh k; o = Add t w; m = Mul x o; h = Mul m w",
        "onnx",
    ),
    "attention": ("s = MatMul q k; d = Div s w; m = Add d mask; p = Softmax m; y = MatMul p v", "onnx"),
    "attention in TFLite": ("s = BATCH_MATMUL q k; d = MUL s w; p = SOFTMAX d; y = BATCH_MATMUL p v", "tflite"),
    "quantised group": (
        "a = DequantizeLinear x w; b = DequantizeLinear w w; c = Conv a b; d = Relu c; e = QuantizeLinear d w",
        "onnx",
    ),
    "sequence": ("s = SequenceConstruct x x; y = SequenceAt s w", "onnx"),
    "state": ("h = VAR_HANDLE; r = READ_VARIABLE h; t = TANH r; a = ADD x t; z = ASSIGN_VARIABLE h a", "tflite"),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_fused_pattern_is_one_block(pattern: str) -> None:
    text, form = PATTERNS[pattern]
    rows = text.split(";")
    graph = graph_of(rows, form=form, kinds={"s": "sequence"} if pattern == "sequence" else None)
    assert ids(graph) == [set(range(len(rows)))]


def test_a_value_that_the_caller_gets_ends_a_block() -> None:
    graph = graph_of(["a = Conv x w", "b = Relu a", "c = Softmax a"])
    assert ids(graph) == [{0}, {1}, {2}]


def test_a_residual_sum_is_a_block_of_its_own() -> None:
    graph = graph_of(["a = Conv x w", "b = Relu a", "c = Conv b w", "d = Add c b", "e = Relu d"])
    assert {0, 1} in ids(graph)
    assert all(not {2, 3} <= block for block in ids(graph))


def test_what_leads_to_no_output_stays_with_a_neighbour() -> None:
    graph = graph_of(["a = Sin x", "dead = Exp a", "lost = Cos x", "y = Asin a"])
    graph = dataclasses.replace(graph, outputs=tuple(value for value in graph.outputs if value.name == "y"))
    assert ids(graph) == [{0, 1, 2}, {3}]


def test_what_lies_between_two_parts_of_a_block_belongs_to_it() -> None:
    graph = graph_of(
        ["s = SequenceConstruct x", "y = Softmax x", "z = SequenceInsert s y", "u = Neg z"], kinds={"s": "sequence"}
    )
    assert {0, 2} <= ids(graph)[1] or {0, 2} <= ids(graph)[0]
    rows = ["s t = SplitToSequence x", "y = Softmax t", "z = SequenceInsert s y"]
    assert ids(graph_of(rows, kinds={"s": "sequence"})) == [{0, 1, 2}]


def test_between_two_quantised_ops_the_cut_carries_the_integers() -> None:
    rows = []
    for i in range(2):
        rows += [f"a{i} = DequantizeLinear q{i} w", f"c{i} = Conv a{i} w", f"q{i + 1} = QuantizeLinear c{i} w"]
    graph = graph_of(rows)
    assert [cut.values for cut in cuts_of(graph, blocks_of(graph))] == [("q1",)]


def test_a_long_skip_does_not_make_one_block_of_all_below_it() -> None:
    rows = ["a = DequantizeLinear q w", "b0 = Softmax a"]
    rows += [f"b{i} = Softmax b{i - 1}" for i in range(1, 60)]
    graph = graph_of([*rows, "y = Concat b59 a"])
    assert max(map(len, ids(graph))) == 2


def test_blocks_that_share_a_large_constant_share_a_group() -> None:
    rows = ["a = Gather e x", "b = Softmax a", "c = MatMul b e", "d = MatMul c w"]
    large = blocks_of(graph_of(rows, {"e": 1 << 20}))
    small = blocks_of(graph_of(rows, {"e": 16}))
    assert [block.group for block in large] == ["e", "", "e", ""]
    assert {block.group for block in small} == {""}


def test_equal_work_has_one_signature() -> None:
    graph = graph_of(["a = Conv x w", "b = Relu a", "c = Conv b w", "d = Relu c", "e = Conv d w", "f = Tanh e"])
    first, second, third = (signature(graph, block.nodes) for block in blocks_of(graph))
    assert first == second != third


def test_cuts_count_each_value_once_and_flows_name_its_readers() -> None:
    graph = graph_of(["a = Softmax x", "b = Neg a", "c = Concat a b", "d = Concat a c"])
    blocks = blocks_of(graph)
    assert [(cut.values, cut.size_bytes) for cut in cuts_of(graph, blocks)] == [
        (("a",), 16),
        (("a", "b"), 32),
        (("a", "c"), 32),
    ]
    assert [(flow.source, flow.sinks, flow.size_bytes) for flow in flows_of(graph, blocks)] == [
        ("n0", ("n1", "n2", "n3"), 16),
        ("n1", ("n2",), 16),
        ("n2", ("n3",), 16),
    ]


def test_free_dimensions_count_at_the_planned_size() -> None:
    assert size_at(8)(Value("x", "float32", ("N", 3))) == 96


def test_weights_of_a_block_are_counted_once() -> None:
    graph = graph_of(["a = MatMul x e", "b = Add a e"], {"e": 64})
    (block,) = blocks_of(graph)
    assert weights_of(graph, block) == 64


OPS = (
    *("Conv", "Relu", "Add", "Mul", "Softmax", "MatMul", "QuantizeLinear", "DequantizeLinear", "ReduceMean", "Sub"),
    *("Shape", "Sigmoid", "Concat"),
)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    names = ["x"]
    rows = []
    for number in range(draw(st.integers(1, 24))):
        reads = draw(st.lists(st.sampled_from([*names[-6:], "w"]), min_size=1, max_size=2))
        rows.append(f"v{number} = {draw(st.sampled_from(OPS))} {' '.join(reads)}")
        names.append(f"v{number}")
    return graph_of(rows, {"w": draw(st.sampled_from([16, 1 << 20]))})


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_blocks_cover_the_graph_are_convex_and_run_in_order(graph: Graph) -> None:
    blocks = blocks_of(graph)
    assert sorted(node for block in blocks for node in block.nodes) == list(range(len(graph.nodes)))
    assert all(is_segment(graph, blocks, [block.id]) for block in blocks)
    made: set[str] = set()
    for block in blocks:
        made.update(name for node in block.nodes for name in graph.nodes[node].writes)
        assert all(name in made for node in block.nodes for name in graph.nodes[node].reads if name in graph.producers)


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_each_cut_parts_the_graph_into_two_convex_halves_with_those_values(graph: Graph) -> None:
    blocks = blocks_of(graph)
    for cut in cuts_of(graph, blocks):
        first = [block.id for block in blocks[: cut.after]]
        rest = [block.id for block in blocks[cut.after :]]
        assert is_segment(graph, blocks, first)
        assert is_segment(graph, blocks, rest)
        crossing = set(graph.boundary(nodes_of(blocks, rest))[0]) & graph.producers.keys()
        assert set(cut.values) == crossing
        assert cut.size_bytes == 16 * len(crossing)


@pytest.mark.skipif(not MODELS, reason="EDGERT_MODELS names no folder of real models")
def test_real_models_are_parted_into_convex_blocks() -> None:
    from edgert.formats import open_model

    paths = [path for pattern in ("*.onnx", "*.tflite") for path in Path(MODELS).glob(pattern)]
    assert paths
    for path in paths:
        graph = open_model(path).graph
        blocks = blocks_of(graph)
        assert 3 <= len(blocks) <= len(graph.nodes), path
        assert all(is_segment(graph, blocks, [block.id]) for block in blocks), path
