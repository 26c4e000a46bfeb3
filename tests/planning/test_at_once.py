"""A plan at once, for models that no made-up input fits: they load all the same; the first real input is checked."""

from __future__ import annotations

import numpy as np
import pytest

import edgert
from edgert.errors import InputError

onnx = pytest.importorskip("onnx")
F32, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
helper = onnx.helper


def saved(path, nodes, shape, constants=()):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", F32, shape)], [helper.make_tensor_value_info("y", F32, None)],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 16)])
    path.write_bytes(model.SerializeToString())
    return path


def traced(path):
    """Takes 14 numbers alone, and does not say so: 14 is worked out in the graph, as exporters leave it that traced."""
    parts = [onnx.numpy_helper.from_array(np.array([value]), name) for name, value in (("a", 2), ("b", 7))]
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["size"]),
        helper.make_node("Reshape", ["x", "size"], ["flat"]),
        helper.make_node("Relu", ["flat"], ["y"]),
    ]
    return saved(path, nodes, ("N",), parts)


def test_a_model_of_unknown_rank_loads_without_a_budget(tmp_path):
    path = saved(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], None)
    with edgert.load(path, budget_s=0, cache_dir=tmp_path / "cache") as model:
        assert model.plan.fallbacks
        result = model.run(np.array([[-1, 2]], np.float32))
    assert model.wait_improved(60)
    assert result["y"].tolist() == [[0, 2]]


def test_a_model_that_refuses_made_up_inputs_loads_without_a_budget(tmp_path):
    with edgert.load(traced(tmp_path / "m.onnx"), budget_s=0, cache_dir=tmp_path / "cache") as model:
        assert "pass samples= to check and time on" in model.plan.notes[0]
        result = model.run(np.arange(-7, 7, dtype=np.float32))
    assert model.wait_improved(60)
    assert result["y"].tolist() == [0.0] * 8 + [1, 2, 3, 4, 5, 6]
    assert result.receipt.verified


def test_samples_of_the_users_that_every_target_refuses_are_an_error_without_a_budget_too(tmp_path):
    samples = [{"x": np.zeros(13, np.float32)}]
    with pytest.raises(InputError, match="every target refused the samples"):
        edgert.load(traced(tmp_path / "m.onnx"), samples=samples, budget_s=0, cache_dir=tmp_path / "cache")
