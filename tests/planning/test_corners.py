"""What a library gets wrong only where casts saturate, numbers tie or masks hide everything does not run there."""

from __future__ import annotations

import numpy as np
import pytest

import edgert
from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.formats import open_model
from edgert.planning.trials import Course, Trials

pytest.importorskip("openvino", reason="it is the one that these corners set apart")
onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")


def saved(folder, nodes, inputs, outputs):
    graph = onnx.helper.make_graph(
        nodes, "corner", [onnx.helper.make_tensor_value_info(*each) for each in inputs],
        [onnx.helper.make_tensor_value_info(*each) for each in outputs],
    )  # fmt: skip
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10), path)
    return path


def test_a_cast_saturates_though_the_fastest_library_overflows(tmp_path):
    types = onnx.TensorProto
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=types.FLOAT8E4M3FN)
    path = saved(tmp_path, [cast], [("x", types.FLOAT, [4])], [("y", types.FLOAT8E4M3FN, [4])])
    with edgert.load(path, machine=glance(), budget_s=0.5, cache_dir=tmp_path / "cache") as model:
        result = model.run(np.float32([1e6, -1e6, 470, 3]))
    assert result.receipt.verified
    assert result["y"].astype(np.float32).tolist() == [448, -448, 448, 3]


def test_a_row_that_a_mask_hides_is_zeros_though_one_library_makes_it_nan(tmp_path):
    types = onnx.TensorProto
    node = onnx.helper.make_node
    nodes = [
        node("Constant", [], ["hidden"], value_float=-np.inf),
        node("Constant", [], ["zero"], value_float=0.0),
        node("Constant", [], ["last"], value_ints=[-1]),
        node("Where", ["mask", "zero", "hidden"], ["bias"]),
        node("Add", ["x", "bias"], ["scores"]),
        node("Softmax", ["scores"], ["shares"]),
        node("ReduceMax", ["bias", "last"], ["most"]),
        node("Equal", ["most", "hidden"], ["lost"]),
        node("Where", ["lost", "zero", "shares"], ["y"]),
    ]
    inputs = [("x", types.FLOAT, [2, 4]), ("mask", types.BOOL, [2, 4])]
    path = saved(tmp_path, nodes, inputs, [("y", types.FLOAT, [2, 4])])
    feed = {"x": np.zeros((2, 4), np.float32), "mask": np.array([[False] * 4, [True] * 4])}
    targets = ["openvino@*", "reference@*"]
    with edgert.load(path, machine=glance(), targets=targets, budget_s=0.5, cache_dir=tmp_path / "cache") as model:
        result = model.run(feed)
    assert result.receipt.verified
    assert result["y"].tolist() == [[0] * 4, [0.25] * 4]


@pytest.mark.parametrize("last", [True, False])
def test_who_refuses_the_corners_alone_is_not_out(last, tmp_path):
    types = onnx.TensorProto
    gather = onnx.helper.make_node("Gather", ["table", "i"], ["y"])
    path = saved(tmp_path, [gather], [("table", types.FLOAT, [2]), ("i", types.INT64, [1])], [("y", types.FLOAT, [1])])
    file = open_model(path)
    good, bad = ({"table": np.zeros(2, np.float32), "i": np.array([index])} for index in (0, 7))
    samples = [good, good, bad] if last else [good, bad, good]
    source = Source(path, "onnx", file.graph.inputs, file.graph.outputs, "f32")
    with Trials(Course(source, glance(), samples, None, 0.0, 1.0, corners=True)) as work:
        (trial,) = work.run([edgert.Target.parse("onnxruntime@cpu:0/f32/1t")])
    assert trial.row.outcome == ("ok" if last else "refused")
    assert len(trial.answers) == (2 if last else 0)
