"""What the tests of splits share: small models of layers, and a `load` with one cache for the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgert

WIDTH = 16
BUDGET_S = 40
"""More than asking for everything takes on a busy machine; what is certain sooner ends sooner."""


@pytest.fixture
def layers():
    """Writes a model of layers (MatMul, then an activation, weights fixed), and returns its path.

    `before` are nodes and constants that make 'w0', the first weight, in place of a constant; `batch` is the size of
    the first axis, or the name of a free one.
    """
    onnx = pytest.importorskip("onnx", reason="the models are written with onnx")

    def write(path: Path, *activations: str, before=None, batch: int | str = 2) -> Path:
        rng = np.random.default_rng(7)
        nodes, constants = before or ([], [])
        nodes, constants, name = list(nodes), list(constants), "x"
        for number, op in enumerate(activations):
            weight = (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32)
            if number or before is None:
                constants.append(onnx.numpy_helper.from_array(weight, f"w{number}"))
            nodes.append(onnx.helper.make_node("MatMul", [name, f"w{number}"], [f"m{number}"], f"matmul{number}"))
            nodes.append(onnx.helper.make_node(op, [f"m{number}"], [f"a{number}"], f"act{number}"))
            name = f"a{number}"
        nodes[-1].output[0] = "y"
        sides = [
            [onnx.helper.make_tensor_value_info(side, onnx.TensorProto.FLOAT, (batch, WIDTH))] for side in ("x", "y")
        ]
        graph = onnx.helper.make_graph(nodes, "layers", *sides, constants)
        model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path

    return write


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache that tests of one file share: what one of them had planned, the next one loads."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def load(machine_of, tmp_path):
    """Loads a model on some backends, with one cache for the test, and `BUDGET_S`."""
    made = []

    def begin(path, *names, **settings):
        settings = {"machine": machine_of(*names), "budget_s": BUDGET_S, "cache_dir": tmp_path / "cache", **settings}
        made.append(edgert.load(path, **settings))
        return made[-1]

    yield begin
    for model in made:
        model.close()


@pytest.fixture
def feed():
    return {"x": np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)}
