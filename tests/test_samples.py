"""Synthesised inputs fit what the graph does with them."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx.backend.test.case import node as node_suite
from onnx.reference import ReferenceEvaluator

from bench import zoo
from edgert.data import path as path_of
from edgert.errors import OptionError
from edgert.formats import open_model
from edgert.graph import Constant, Graph, Node, Value
from edgert.samples import digest_of, synthesise
from edgert.tensor import BITS, Array, Data, dtype_of


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


def test_each_column_has_the_rows_of_the_table_that_it_addresses() -> None:
    tables = [constant(f"t{rows}", np.zeros((rows, 4), np.float32)) for rows in (5, 900)]
    columns = [constant(f"c{index}", np.asarray(index)) for index in (0, 1)]
    nodes = [Node("a", "Gather", ("ids", "c0"), ("left",), {"axis": 1}), Node("b", "Gather", ("t5", "left"), ("y",)),
             Node("c", "Gather", ("ids", "c1"), ("right",), {"axis": 1}),
             Node("d", "Gather", ("t900", "right"), ("z",))]  # fmt: skip
    graph = graph_of(nodes, [Value("ids", "int64", (300, 2))], [*tables, *columns], [Value("left", "int64", (300,))])
    ids = np.asarray(synthesise(graph)[0]["ids"])
    assert ids.min() == 0
    assert ids[:, 0].max() == 4
    assert 700 < ids[:, 1].max() < 900


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


def graph_with_free(*shapes: tuple[int | str, ...], nodes: list[Node], constants: list[Constant]) -> Graph:
    inputs = [Value(f"x{index}", "float32", shape) for index, shape in enumerate(shapes)]
    return graph_of(nodes, inputs, constants)


def shape_of(data: Data) -> tuple[int, ...]:
    assert isinstance(data, np.ndarray)
    return data.shape


def test_a_free_image_gets_the_size_that_the_dense_layer_behind_it_needs() -> None:
    weight = constant("w", np.zeros((4, 3, 3, 3), np.float32))
    dense = constant("d", np.zeros((4 * 56 * 56, 10), np.float32))
    nodes = [Node("a", "Conv", ("x0", "w"), ("c",), {"strides": (4, 4)}), Node("b", "Flatten", ("c",), ("f",)),
             Node("e", "MatMul", ("f", "d"), ("y",))]  # fmt: skip
    graph = graph_with_free(("batch", 3, "h", "h"), nodes=nodes, constants=[weight, dense])
    assert shape_of(synthesise(graph)[0]["x0"]) == (1, 3, 224, 224)


def test_tokens_come_sixteen_at_a_time_whatever_the_exporter_calls_their_axes() -> None:
    table = constant("table", np.zeros((7, 4), np.float32))
    nodes = [Node("a", "Gather", ("table", "ids"), ("out",))]
    sample = synthesise(graph_of(nodes, [Value("ids", "int64", ("s77", "s27"))], [table]))[0]
    assert sample["ids"].shape == (1, 16)  # type: ignore[union-attr]  # an array


def test_one_name_has_one_size_and_the_caller_decides() -> None:
    nodes = [Node("a", "Add", ("x0", "x1"), ("y",))]
    graph = graph_with_free(("batch", "length"), ("batch", "length"), nodes=nodes, constants=[])
    sample = synthesise(graph, sizes={"length": 37})[0]
    assert shape_of(sample["x0"]) == shape_of(sample["x1"]) == (1, 37)
    assert shape_of(synthesise(graph)[0]["x0"]) == (1, 16)


def test_a_sum_of_names_follows_from_its_parts() -> None:
    nodes = [Node("a", "Identity", ("x0",), ("y",)), Node("b", "Identity", ("x1",), ("z",))]
    graph = graph_with_free(("past", "seq"), ("past + seq",), nodes=nodes, constants=[])
    sample = synthesise(graph, sizes={"past": 3, "seq": 5})[0]
    assert shape_of(sample["x1"]) == (8,)


def test_free_features_become_those_of_the_weight() -> None:
    weight = constant("w", np.zeros((77, 5), np.float32))
    graph = graph_with_free(("", ""), nodes=[Node("a", "MatMul", ("x0", "w"), ("y",))], constants=[weight])
    assert shape_of(synthesise(graph)[0]["x0"]) == (1, 77)


def test_a_mask_is_found_by_what_is_done_with_it() -> None:
    one, blocked = constant("one", np.float32(1).reshape(())), constant("blocked", np.float32(-1e4).reshape(()))
    nodes = [Node("a", "Cast", ("m",), ("f",)), Node("b", "Sub", ("one", "f"), ("i",)),
             Node("c", "Mul", ("i", "blocked"), ("y",))]  # fmt: skip
    m = synthesise(graph_of(nodes, [Value("m", "int64", (2, 8))], [one, blocked]))[0]["m"]
    assert np.array_equal(m, [[1, 1, 1, 1, 1, 1, 0, 0]] * 2)


def test_what_is_quantised_stays_inside_the_range() -> None:
    scale, zero = constant("s", np.float32(0.5).reshape(())), constant("z", np.uint8(100).reshape(()))
    nodes = [Node("a", "QuantizeLinear", ("x", "s", "z"), ("y",))]
    x = np.asarray(synthesise(graph_of(nodes, [Value("x", "float32", (1000,))], [scale, zero]))[0]["x"])
    assert -50 <= x.min() < -45
    assert 72 < x.max() <= 77.5


def test_a_captured_value_is_followed_into_the_body_that_reads_it() -> None:
    table = constant("table", np.zeros((3, 2), np.float32))
    row = Value("row", "float32", None)
    body = Graph("onnx", "then", (Node("g", "Gather", ("table", "ids"), ("row",)),), (), (row,), {"row": row}, {})
    nodes = [Node("if", "If", ("cond",), ("y",), subgraphs=(body, body), captured=("table", "ids"))]
    graph = graph_of(nodes, [Value("cond", "bool", ()), Value("ids", "int32", (200,))], [table])
    ids = np.asarray(synthesise(graph)[0]["ids"])
    assert (ids.min(), ids.max()) == (0, 2)


def test_attributes_that_make_no_sense_stop_nothing() -> None:
    weight = constant("w", np.zeros((4, 3, 3, 3), np.float32))
    for attributes in ({"strides": (0, 0)}, {"pads": (1,)}, {"kernel_shape": (9,)}, {"group": 0}):
        nodes = [Node("a", "Conv", ("x0", "w"), ("c",), attributes),
                 Node("b", "Transpose", ("c",), ("y",), {"perm": (7,) * 4}),
                 Node("d", "Split", ("y",), ("z",), {"num_outputs": 0})]  # fmt: skip
        graph = graph_with_free(("", 3, "", ""), nodes=nodes, constants=[weight])
        assert len(shape_of(synthesise(graph)[0]["x0"])) == 4


def test_an_absurd_size_is_refused_by_name() -> None:
    graph = graph_of([Node("a", "Relu", ("huge",), ("y",))], [Value("huge", "float32", (1 << 40, 1 << 20))])
    with pytest.raises(OptionError, match="huge"):
        synthesise(graph)


def test_every_element_type_of_the_standard_can_be_drawn() -> None:
    inputs = [Value(dtype, dtype, (2, 3)) for dtype in BITS]
    sample = synthesise(graph_of([Node("a", "Identity", ("int8",), ("y",))], inputs))[0]
    for dtype in BITS:
        data = sample[dtype]
        assert isinstance(data, np.ndarray)
        assert dtype_of(data) == dtype
        assert data.shape == (2, 3)


def test_the_digest_knows_names_types_shapes_and_contents() -> None:
    x = np.arange(6, dtype=np.float32)
    variants: list[dict[str, Data]] = [
        {"a": x}, {"b": x}, {"a": x.reshape(2, 3)}, {"a": x.view(np.int32)}, {"a": x + 1}, {"a": [x]}, {"a": None},
        {"a": {"k": 1.0}}, {"a": np.asarray(["p", "q"], object)}, {"a": np.asarray(["pq", ""], object)},
    ]  # fmt: skip
    assert len({digest_of([variant]) for variant in variants}) == len(variants)
    assert digest_of([{"a": x, "b": x}]) == digest_of([{"b": x, "a": x}])


SUITE = (
    "cast", "clip", "col2im", "compress", "conv", "cumsum", "depthtospace", "div", "einsum", "expand", "gather",
    "gatherelements", "gathernd", "gemm", "gridsample", "if_", "log", "loop", "lstm", "matmul", "maxunpool",
    "nonmaxsuppression", "onehot", "optionalgetelement", "pad", "pow", "qlinearconv", "quantizelinear", "rangeop",
    "reduce_log_sum", "reducesum", "reshape", "resize", "reversesequence", "roialign", "scan", "scatterelements",
    "scatternd", "sequenceinsert", "slice", "split", "sqrt", "squeeze", "string_concat", "tile", "topk", "transpose",
    "trilu", "unsqueeze", "where",
)  # fmt: skip
"""Modules of the suite whose inputs have to mean something, and some plain ones: importing all of them takes 40 s."""
SUITE_SEED, SUITE_CASES, SUITE_SHARE = 2024, 200, 0.95


def test_node_models_of_the_onnx_suite_run_on_their_samples(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite's own reference code divides by zero on purpose
        for name in SUITE:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    cases = node_suite._NodeTestCases  # filled by the imports; its public collector imports everything
    chosen = np.random.default_rng(SUITE_SEED).permutation(len(cases))[:SUITE_CASES]
    tried, failed = 0, []
    for case in (cases[index] for index in chosen):
        path = tmp_path / f"{case.name}.onnx"
        onnx.save(case.model, path)
        own = dict(zip([value.name for value in case.model.graph.input], case.data_sets[0][0], strict=False))
        if not runs(path, own):
            continue
        tried += 1
        if not runs(path, synthesise(open_model(path).graph)[0]):
            failed.append(case.name)
    assert tried > SUITE_CASES // 2
    assert len(failed) <= tried * (1 - SUITE_SHARE), failed


def runs(path: Path, feeds: dict[str, Any]) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        session.run(None, {name: np.asarray(x) if np.isscalar(x) else x for name, x in feeds.items()})
    except Exception:  # noqa: BLE001 - its exception types have no common root but this
        return False
    return True


def corners_of(graph: Graph) -> dict[str, Any]:
    return synthesise(graph, count=3, corners=True)[-1]


def test_the_set_of_corners_has_ties_zeros_and_halves() -> None:
    x = corners_of(graph_of([Node("a", "Round", ("x",), ("y",))], [Value("x", "float32", (6,))]))["x"]
    assert {0.0, 0.5, -2.5} <= set(x.tolist())
    again = corners_of(graph_of([Node("a", "Round", ("x",), ("y",))], [Value("x", "float32", (40, 5))]))["x"]
    assert len(set(again.ravel().tolist())) < 20


def test_what_a_narrow_float_cannot_hold_is_among_the_corners() -> None:
    nodes = [Node("a", "Cast", ("x",), ("y",), {"to": onnx.TensorProto.FLOAT8E4M3FN})]
    x = corners_of(graph_of(nodes, [Value("x", "float16", (3, 6))]))["x"]
    assert x.dtype == np.float16
    assert np.isnan(x).any()
    assert np.isinf(x).any()
    assert np.nanmax(np.where(np.isfinite(x), x, 0)) > 448
    assert np.isfinite(synthesise(graph_of(nodes, [Value("x", "float16", (3, 6))]))[0]["x"]).all()


def test_corners_keep_to_what_the_readers_ask() -> None:
    unit = corners_of(graph_of([Node("a", "Asin", ("x",), ("y",))], [Value("x", "float32", (50,))]))["x"]
    assert (unit.min(), unit.max()) == (0, 1)
    assert corners_of(graph_of([Node("a", "Log", ("x",), ("y",))], [Value("x", "float32", (50,))]))["x"].min() > 0
    divisor = corners_of(graph_of([Node("a", "Div", ("x", "d"), ("y",))],
                                  [Value("x", "float32", (50,)), Value("d", "float32", (50,))]))["d"]  # fmt: skip
    assert (divisor != 0).all()


def test_a_mask_of_truth_values_hides_a_whole_row_in_a_corner() -> None:
    nodes = [Node("a", "Where", ("m", "x", "x"), ("y",))]
    m = corners_of(graph_of(nodes, [Value("m", "bool", (2, 3, 4)), Value("x", "float32", (2, 3, 4))]))["m"]
    assert not m[:, 0].any()
    assert m[:, 1:].any()
    none = Value("m", "bool", (2, 0, 4))
    assert corners_of(graph_of([Node("a", "Not", ("m",), ("y",))], [none]))["m"].shape == (2, 0, 4)
