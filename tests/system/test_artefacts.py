"""A context that ONNX Runtime's QNN provider really compiled, beside the model that it was made from."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import edgert
from edgert.devices import npu
from edgert.devices.probe import glance
from edgert.errors import NoLastResort
from edgert.machine import Reach

onnx = pytest.importorskip("onnx", reason="the model is written with onnx")
pytestmark = pytest.mark.skipif(
    os.environ.get("EDGERT_SOFTWARE_DEVICES") != "1" or importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="`make software-devices` sets up the NPU library that compiles it",
)
COMPILE = """
import sys

import onnxruntime as ort
import onnxruntime_qnn

ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
(device,) = (each for each in ort.get_ep_devices() if each.ep_name == "QNNExecutionProvider")
options = ort.SessionOptions()
options.add_session_config_entry("ep.context_enable", "1")
options.add_session_config_entry("ep.context_embed_mode", "0")
options.add_session_config_entry("ep.context_file_path", sys.argv[2])
options.add_provider_for_devices([device], {"backend_type": "htp", "enable_htp_fp16_precision": "0"})
ort.InferenceSession(sys.argv[1], options)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A convolution, and what the provider compiled of it; its binary lies beside that."""
    folder = tmp_path_factory.mktemp("qnn")
    make, info = onnx.helper, onnx.helper.make_tensor_value_info
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32) / 5
    nodes = [make.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), make.make_node("Relu", ["c"], ["y"])]
    graph = make.make_graph(
        nodes, "g", [info("x", 1, (1, 3, 8, 8))], [info("y", 1, (1, 4, 8, 8))],
        [onnx.numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    source, compiled = folder / "m.onnx", folder / "m_ctx.onnx"
    onnx.save(make.make_model(graph, ir_version=9, opset_imports=[make.make_opsetid("", 17)]), str(source))
    subprocess.run([sys.executable, "-c", COMPILE, str(source), str(compiled)], check=True, capture_output=True)
    assert [path.name for path in folder.glob("*.bin")]
    return compiled, source


@pytest.fixture(scope="module")
def machine():
    seen = glance()
    ways = (("onnxruntime", "cpu:0", ""), ("reference", "cpu:0", ""), ("onnxruntime", "npu:0", "qnn"))
    return dataclasses.replace(
        seen, devices=(*seen.devices, *npu.discover()), reaches=tuple(Reach(*way) for way in ways)
    )


def test_alone_it_is_refused(pair, machine, tmp_path):
    with pytest.raises(NoLastResort, match="EPContext"):
        edgert.load(pair[0], machine=machine, budget_s=1, cache_dir=tmp_path)


def test_the_npu_runs_it_and_the_source_says_that_it_is_right(pair, machine, tmp_path):
    compiled, source = pair
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    with edgert.load(source, machine=machine, budget_s=0.5, cache_dir=tmp_path, targets=["onnxruntime@*/1t"]) as model:
        expected = model.run([x])["y"]
    with edgert.load(
        compiled, source=source, machine=machine, budget_s=1, cache_dir=tmp_path, targets=["onnxruntime+qnn@npu:0/f32"]
    ) as model:
        result = model.run([x])
    assert result.receipt.verified
    assert [str(target) for target in result.receipt.targets] == ["onnxruntime+qnn@npu:0/f32"]
    np.testing.assert_allclose(result["y"], expected, atol=1e-4)


def test_a_context_whose_binary_is_gone_leaves_the_answer_to_the_source(pair, machine, tmp_path):
    compiled, source = pair
    broken = tmp_path / compiled.name
    broken.write_bytes(compiled.read_bytes())
    for binary in compiled.parent.glob("*.bin"):
        (tmp_path / binary.name).write_bytes(b"no context")
    x = np.zeros((1, 3, 8, 8), np.float32)
    with edgert.load(
        broken, source=source, machine=machine, budget_s=1, cache_dir=tmp_path / "cache",
        targets=["onnxruntime+qnn@npu:0/f32", "onnxruntime@*/1t"],
    ) as model:  # fmt: skip
        result, rows = model.run([x]), {str(row.target): row.outcome for row in model.plan.candidates}
    assert [target.backend for target in result.receipt.targets] == ["onnxruntime"]
    assert rows["onnxruntime+qnn@npu:0/f32"] in ("refused", "crashed")
