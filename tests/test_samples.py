"""Synthesised inputs fit what the graph does with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx.reference import ReferenceEvaluator

from bench import zoo
from edgert.data import path as path_of
from edgert.errors import OptionError
from edgert.formats import open_model
from edgert.graph import Constant, Graph, Node, Value
from edgert.samples import digest_of, synthesise
from edgert.tensor import Array, Data


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


def run_onnx(path: Path, feeds: dict[str, Data]) -> list[Any]:
    """The answer of ONNX Runtime, or where it refuses the model of onnx's own evaluator."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - its exception types have no common root but this
        return list(ReferenceEvaluator(str(path)).run(None, feeds))
    return list(session.run(None, feeds))


def run_tflite(path: Path, feeds: dict[str, Data]) -> list[Any]:
    interpreter = Interpreter(model_path=str(path))
    for given in interpreter.get_input_details():
        interpreter.resize_tensor_input(given["index"], np.shape(feeds[given["name"]]))
    interpreter.allocate_tensors()
    for given in interpreter.get_input_details():
        interpreter.set_tensor(given["index"], feeds[given["name"]])
    interpreter.invoke()
    return [interpreter.get_tensor(made["index"]) for made in interpreter.get_output_details()]


def run(path: Path, feeds: dict[str, Data]) -> list[Any]:
    return (run_tflite if path.suffix == ".tflite" else run_onnx)(path, feeds)


def varies(outputs: list[Any]) -> bool:
    """Whether the answer is numbers, finite and not all the same."""
    return all(np.isfinite(out).all() for out in outputs) and any(
        out.size == 1 or out.min() < out.max() for out in outputs
    )


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in ("resnet50", "bert_12x768")])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_zoo_models_run_on_their_samples(name: str, batch: int | str, tmp_path: Path) -> None:
    path = zoo.build(name, "f32", tmp_path, batch=batch)
    feeds = synthesise(open_model(path).graph)[0]
    assert varies(run(path, feeds))


def test_masks_and_token_types_of_a_bert_are_what_they_must_be(tmp_path: Path) -> None:
    feeds = synthesise(open_model(zoo.build("bert_4x256", "f32", tmp_path)).graph)[0]
    ids, mask, types = (np.asarray(feeds[name]) for name in ("input_ids", "attention_mask", "token_type_ids"))
    assert ids.max() > 1000
    assert set(mask.ravel()) == {0, 1}
    assert mask[0, 0] == 1
    assert set(types.ravel()) == {0, 1}


@pytest.mark.parametrize("name", ["digits_f32.onnx", "digits_i8.onnx", "digits_f32.tflite", "digits_i8.tflite"])
def test_bundled_models_run_on_their_samples(name: str) -> None:
    assert varies(run(path_of(name), synthesise(open_model(path_of(name)).graph)[0]))


MODELS = os.environ.get("EDGERT_MODELS", "")


@pytest.mark.skipif(not MODELS, reason="EDGERT_MODELS is not set: there are no real models to try")
@pytest.mark.parametrize("path", sorted(p for p in Path(MODELS or ".").glob("*.*") if p.suffix in (".onnx", ".tflite")))
def test_real_models_run_on_their_samples(path: Path) -> None:
    assert varies(run(path, synthesise(open_model(path).graph)[0]))
