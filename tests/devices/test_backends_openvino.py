from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgert import devices
from edgert.errors import PrepareRefused, RunFailed
from edgert.machine import Device
from tests.devices.sources import CPU, answers, prepared, source
from tests.formats.models import chain, info, model, qdq, weights

HAS_BF16 = any(feature in CPU.features for feature in ("avx512_bf16", "amx_bf16"))


def product():
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", shape=(16, 256))],
                  [info("y", shape=(16, 64))], [weights("w", 256, 64)])  # fmt: skip
    x = np.random.default_rng(2).standard_normal((16, 256)).astype(np.float32)
    exact = x.astype(np.float64) @ numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float64)
    return proto, x, exact


def error_of(precision, folder):
    proto, x, exact = product()
    got = answers("openvino", proto, folder, {"x": x}, precision=precision)["y"]
    return np.abs(got - exact).max() / np.ptp(exact)


def test_float32_is_float32_on_every_cpu(tmp_path):
    assert error_of("f32", tmp_path) < 1e-6


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16 instructions")
def test_bfloat16_is_used_when_asked_for(tmp_path):
    assert 1e-4 < error_of("bf16", tmp_path) < 1e-1


def test_lower_precisions_are_offered_only_where_the_device_has_them(tmp_path):
    made = source(chain(), tmp_path)
    backend = devices.backend("openvino")

    def offered(*features):
        device = Device("cpu:0", "cpu", "a CPU", 0, features=features)
        return [target.precision for target in backend.targets(made, device, "", [1])]

    assert offered() == ["f32"]
    assert offered("avx512_bf16") == ["f32", "bf16"]
    assert offered("amx_fp16", "amx_bf16") == ["f32", "bf16", "f16"]
    assert backend.targets(source(qdq(), tmp_path), CPU, "", [1])[0].precision == "i8"


@pytest.mark.skipif("avx512_fp16" in CPU.features or "asimdhp" in CPU.features, reason="this CPU computes in float16")
def test_a_precision_that_openvino_swaps_for_another_is_refused(tmp_path):
    claims = Device("cpu:0", "cpu", "a CPU that says so", 0, features=("avx512_fp16",))
    with pytest.raises(PrepareRefused, match="asked for f16, OpenVINO settled on"):
        prepared("openvino", source(chain(), tmp_path), device=claims, precision="f16")


def test_an_intel_gpu_without_its_driver_is_reported_with_the_remedy():
    arc = Device("gpu:0", "gpu", "Intel Arc A770", 0, driver="i915")
    found = devices.backend("openvino").reaches([CPU, arc, Device("gpu:1", "gpu", "llvmpipe", 0, software=True)])
    assert (found[0].device, found[0].health) == ("cpu:0", "untested")
    if len(found) > 1:  # here is no such GPU
        assert [(reach.device, reach.health) for reach in found[1:]] == [("gpu:0", "failed")]
        assert "intel-opencl-icd" in found[1].detail


def test_integers_that_leave_int32_are_refused_and_not_clamped(tmp_path):
    proto = model([helper.make_node("Add", ["x", "x"], ["y"])], [info("x", TensorProto.INT64, (2,))],
                  [info("y", TensorProto.INT64, (2,))])  # fmt: skip
    runnable = prepared("openvino", source(proto, tmp_path))
    assert runnable.run({"x": np.array([1, -5])})["y"].tolist() == [2, -10]
    with pytest.raises(RunFailed, match="'x' leaves the range of int32"):
        runnable.run({"x": np.array([1, 1 << 40])})


def test_an_input_that_it_took_for_a_constant_is_refused_when_given(tmp_path):
    proto = model([helper.make_node("Add", ["x", "b"], ["y"])], [info("x"), info("b")], [info("y")],
                  [numpy_helper.from_array(np.ones((1, 4), np.float32), "b")])  # fmt: skip
    runnable = prepared("openvino", source(proto, tmp_path))
    x = np.zeros((1, 4), np.float32)
    assert runnable.run({"x": x})["y"].tolist() == [[1, 1, 1, 1]]
    with pytest.raises(RunFailed, match="'b' has a default in the file"):
        runnable.run({"x": x, "b": x})


def test_an_input_whose_numbers_are_not_needed_may_be_given(tmp_path):
    proto = model([helper.make_node("CastLike", ["x", "like"], ["y"])], [info("x"), info("like", TensorProto.INT32)],
                  [info("y", TensorProto.INT32)])  # fmt: skip
    feed = {"x": np.float32([[1.5, -2, 3, 4]]), "like": np.zeros((1, 4), np.int32)}
    assert answers("openvino", proto, tmp_path, feed)["y"].tolist() == [[1, -2, 3, 4]]


def test_bfloat16_goes_in_and_out(tmp_path):
    import ml_dtypes

    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Neg", ["f"], ["n"]),
             helper.make_node("Cast", ["n"], ["y"], to=TensorProto.BFLOAT16)]  # fmt: skip
    ends = [info("x", TensorProto.BFLOAT16, (3,))], [info("y", TensorProto.BFLOAT16, (3,))]
    x = np.float32([1, -2.5, 3]).astype(ml_dtypes.bfloat16)
    got = answers("openvino", model(nodes, *ends), tmp_path, {"x": x})["y"]
    assert got.dtype == ml_dtypes.bfloat16
    assert got.tolist() == [-1, 2.5, -3]


@pytest.mark.parametrize("bad", [np.ones((1, 1), np.float32), np.ones((1, 4), np.int32)], ids=["shape", "dtype"])
def test_an_input_is_neither_broadcast_nor_reinterpreted(bad, tmp_path):
    proto = model([helper.make_node("Neg", ["x"], ["y"])], [info("x")], [info("y")])
    runnable = prepared("openvino", source(proto, tmp_path))
    with pytest.raises(RunFailed):
        runnable.run({"x": bad})


def test_a_free_size_that_does_not_fit_the_weights_is_refused_before_it_runs(tmp_path):
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", shape=("N", "K"))],
                  [info("y", shape=("N", 4))], [weights("w", 8, 4)])  # fmt: skip
    runnable = prepared("openvino", source(proto, tmp_path))
    assert runnable.run({"x": np.ones((2, 8), np.float32)})["y"].shape == (2, 4)
    for width in (3, 100):
        with pytest.raises(RunFailed, match="Incompatible MatMul matrix dimension"):
            runnable.run({"x": np.ones((2, width), np.float32)})


def text_model(*nodes):
    order = numpy_helper.from_array(np.array([1, 0]), "order")
    return model(list(nodes), [info("x", TensorProto.STRING, ("n",))], [info("y", TensorProto.STRING, None)], [order])


@pytest.mark.filterwarnings("error")
def test_text_comes_out_also_where_warnings_are_errors(tmp_path):
    proto = text_model(helper.make_node("Gather", ["x", "order"], ["y"]))
    got = answers("openvino", proto, tmp_path, {"x": np.array(["a", "bücher"], object)})["y"]
    assert got.tolist() == ["bücher", "a"]


def test_text_that_is_handed_through_is_refused_for_openvino_frees_it_twice(tmp_path):
    with pytest.raises(PrepareRefused, match="text"):
        prepared("openvino", source(text_model(helper.make_node("Identity", ["x"], ["y"])), tmp_path))


def test_values_that_are_no_tensors_are_refused_by_name(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    proto = model([helper.make_node("SequenceLength", ["s"], ["n"])], [sequence], [info("n", TensorProto.INT64, ())])
    with pytest.raises(PrepareRefused, match="'s' is a sequence"):
        prepared("openvino", source(proto, tmp_path))


def test_a_compiled_model_is_kept_in_the_cache_folder_and_read_from_it(tmp_path):
    proto, x, exact = product()
    cache = tmp_path / "cache"
    cache.mkdir()
    made = source(proto, tmp_path)
    first = prepared("openvino", made, cache=cache).run({"x": x})["y"]
    kept = sorted(path.name for path in cache.rglob("*") if path.is_file())
    assert kept
    again = prepared("openvino", made, cache=cache)
    np.testing.assert_array_equal(again.run({"x": x})["y"], first)
    assert again.ran_on["cpu:0"] > 0
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == kept
    np.testing.assert_allclose(first, exact, rtol=1e-4, atol=1e-3)


def test_preparing_reports_nothing_to_its_makers(tmp_path):
    made = source(chain(), tmp_path)
    code = f"""
import sys
from pathlib import Path
from tests.devices.sources import prepared, source_of
prepared("openvino", source_of(Path({str(made.path)!r})))
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(home)})
    assert list(home.iterdir()) == []
