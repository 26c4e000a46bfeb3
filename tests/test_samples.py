"""Synthesised inputs fit what the graph does with them."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.errors import OptionError
from edgert.graph import Constant, Graph, Node, Value
from edgert.samples import digest_of, synthesise
from edgert.tensor import Array


def constant(name: str, array: Array) -> Constant:
    return Constant(Value(name, array.dtype.name, array.shape), array.nbytes, lambda: array)


def graph_of(
    nodes: list[Node], inputs: list[Value], constants: list[Constant] | None = None, known: list[Value] | None = None
) -> Graph:
    constants = constants or []
    values = {value.name: value for value in (*inputs, *(c.value for c in constants), *(known or []))}
    outputs = tuple(values.get(name, Value(name, None, None)) for name in nodes[-1].outputs)
    by_name = {c.value.name: c for c in constants}
    return Graph("onnx", "test", tuple(nodes), tuple(inputs), outputs, values, by_name)


def test_indices_stay_inside_the_table_that_they_address_through_casts_and_reshapes() -> None:
    table = constant("table", np.zeros((7, 4), np.float32))
    nodes = [Node("a", "Cast", ("ids",), ("cast",)), Node("b", "Unsqueeze", ("cast",), ("wide",)),
             Node("c", "Gather", ("table", "wide"), ("out",))]  # fmt: skip
    ids = synthesise(graph_of(nodes, [Value("ids", "int64", (1, 500))], [table]))[0]["ids"]
    assert isinstance(ids, np.ndarray)
    assert ids.min() == 0
    assert ids.max() == 6


def test_an_offset_before_the_table_is_taken_into_account() -> None:
    table, five = constant("table", np.zeros((7, 4), np.float32)), constant("five", np.asarray(5))
    nodes = [Node("a", "Add", ("ids", "five"), ("moved",)), Node("b", "Gather", ("table", "moved"), ("out",))]
    ids = synthesise(graph_of(nodes, [Value("ids", "int64", (500,))], [table, five]))[0]["ids"]
    assert isinstance(ids, np.ndarray)
    assert (ids.min(), ids.max()) == (-5, 1)


def test_the_same_seed_gives_the_same_inputs_and_another_seed_others() -> None:
    graph = graph_of([Node("a", "Relu", ("x",), ("y",))], [Value("x", "float32", (3, 4))])
    assert digest_of(synthesise(graph, seed=1)) == digest_of(synthesise(graph, seed=1))
    assert digest_of(synthesise(graph, seed=1)) != digest_of(synthesise(graph, seed=2))


def test_an_input_of_unknown_rank_is_named() -> None:
    graph = graph_of([Node("a", "Relu", ("mystery",), ("y",))], [Value("mystery", "float32", None)])
    with pytest.raises(OptionError, match="mystery"):
        synthesise(graph)
