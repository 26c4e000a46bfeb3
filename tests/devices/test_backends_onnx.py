"""What holds for every backend that reads ONNX, on small models of each kind of value."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgert import devices
from edgert.errors import PrepareRefused, RunFailed, UnknownTarget
from edgert.machine import Device
from edgert.profile import Target
from tests.devices.sources import CPU, ONNX_BACKENDS, answers, prepared, source, source_of
from tests.formats.models import info, model, weights

every_backend = pytest.mark.parametrize("name", ONNX_BACKENDS)
values_of_onnx = pytest.mark.parametrize("name", ["onnxruntime", "reference"])


def identity(dtype, shape=(3,), op="Identity"):
    return model([helper.make_node(op, ["x"], ["y"])], [info("x", dtype, shape)], [info("y", dtype, shape)])


@every_backend
def test_outputs_come_under_the_files_names_and_in_its_order(name, tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Neg", ["x"], ["c"]),
    ]
    outputs = [info(each) for each in ("c", "a", "w", "b", "same")]
    proto = model(nodes, [info("unused", shape=(7,)), info("x")], outputs, [weights("w", 1, 4)])
    x = np.float32([[1, -2, 3, -4]])
    got = answers(name, proto, tmp_path, {"unused": np.zeros(7, np.float32), "x": x})
    assert list(got) == ["c", "a", "w", "b", "same"]
    assert got["c"].tolist() == (-x).tolist()
    assert got["a"].tolist() == got["b"].tolist() == [[1, 0, 3, 0]]
    assert got["w"].tolist() == numpy_helper.to_array(proto.graph.initializer[0]).tolist()
    assert got["same"].tolist() == x.tolist()


@every_backend
@pytest.mark.parametrize("shape", [(2, 3), ("N", 3)], ids=["static", "dynamic"])
def test_a_result_is_the_callers_own(name, shape, tmp_path):
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    outputs = [info("y", shape=shape), info("z", shape=shape), info("w", shape=(3,))]
    runnable = prepared(name, source(model(nodes, [info("x", shape=shape)], outputs, [weights("w", 3)]), tmp_path))
    x = np.ones((2, 3), np.float32)
    first = runnable.run({"x": x})
    kept = {each: array.copy() for each, array in first.items()}
    again = runnable.run({"x": 5 * x})
    for each, array in kept.items():
        np.testing.assert_array_equal(first[each], array)  # a later call changed nothing
        first[each][...] = 99  # what the caller writes reaches neither the model nor its inputs
    assert (again["y"] == 5).all()
    third = runnable.run({"x": x})
    np.testing.assert_array_equal(third["w"], kept["w"])
    assert (x == 1).all()
    assert (third["z"] == -1).all()


@every_backend
def test_a_free_dimension_takes_any_size(name, tmp_path):
    proto = model([helper.make_node("Relu", ["x"], ["y"])], [info("x", shape=("N", 4))], [info("y", shape=("N", 4))])
    runnable = prepared(name, source(proto, tmp_path))
    for count in (3, 1, 0, 3):
        assert runnable.run({"x": np.ones((count, 4), np.float32)})["y"].shape == (count, 4)


@every_backend
@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (70_000,)], ids=["scalar", "one", "empty", "large"])
def test_scalars_empty_and_large_read_only_arrays_pass(name, shape, tmp_path):
    x = np.full(shape, 3, np.float32)
    x.flags.writeable = False
    got = answers(name, identity(TensorProto.FLOAT, shape, "Neg"), tmp_path, {"x": x})["y"]
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, -x)


@every_backend
@pytest.mark.parametrize(
    "dtype", ["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FLOAT16", "FLOAT"]
)
def test_every_plain_type_comes_back_as_itself(name, dtype, tmp_path):
    number = getattr(TensorProto, dtype)
    x = np.array([0, 1, 1]).astype(helper.tensor_dtype_to_np_dtype(number))
    got = answers(name, identity(number), tmp_path, {"x": x})["y"]
    assert got.dtype == x.dtype
    assert got.tolist() == x.tolist()


@values_of_onnx
def test_double_keeps_its_precision(name, tmp_path):
    x = np.float64([1 + 2**-50, 2, 3])
    assert answers(name, identity(TensorProto.DOUBLE), tmp_path, {"x": x})["y"].tolist() == x.tolist()


@values_of_onnx
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_types_that_numpy_lacks_come_back_as_themselves(name, dtype, tmp_path):
    kind = np.dtype(getattr(ml_dtypes, dtype))
    x = np.float32([1.5, -2, 0.25]).astype(kind)
    got = answers(name, identity(helper.np_dtype_to_tensor_dtype(kind)), tmp_path, {"x": x})["y"]
    assert got.dtype == kind
    assert got.tolist() == x.tolist()


@values_of_onnx
@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_four_bit_integers_go_in_and_out(name, dtype, tmp_path):
    kind = np.dtype(getattr(ml_dtypes, dtype))
    number = helper.np_dtype_to_tensor_dtype(kind)
    scale = numpy_helper.from_array(np.float32(1), "scale")
    zero = helper.make_tensor("zero", number, [], [0])
    into = [helper.make_node("DequantizeLinear", ["x", "scale"], ["y"])]
    x = np.array([1, 7, 0, 3, 2]).astype(kind)
    floats = answers(name, model(into, [info("x", number, (5,))], [info("y", shape=(5,))], [scale]), tmp_path, {"x": x})
    assert floats["y"].tolist() == [1, 7, 0, 3, 2]
    out = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])]
    proto = model(out, [info("x", shape=(5,))], [info("y", number, (5,))], [scale, zero])
    got = answers(name, proto, tmp_path, {"x": floats["y"]})["y"]
    assert got.dtype == kind
    assert got.tolist() == x.tolist()


@values_of_onnx
def test_strings_are_object_arrays_of_str(name, tmp_path):
    x = np.array(["a", "bücher", ""], object)
    got = answers(name, identity(TensorProto.STRING), tmp_path, {"x": x})["y"]
    assert got.dtype == object
    assert got.tolist() == ["a", "bücher", ""]
    assert all(type(text) is str for text in got)


@values_of_onnx
def test_a_sequence_is_a_list(name, tmp_path):
    sequence = helper.make_tensor_sequence_value_info
    nodes = [helper.make_node("SequenceInsert", ["s", "x"], ["t"])]
    ins = [sequence("s", TensorProto.FLOAT, None), info("x", shape=None)]
    proto = model(nodes, ins, [sequence("t", TensorProto.FLOAT, None)])
    got = answers(name, proto, tmp_path, {"s": [np.zeros(2, np.float32)], "x": np.float32([1, 2, 3])})["t"]
    assert [each.tolist() for each in got] == [[0, 0], [1, 2, 3]]


@values_of_onnx
@pytest.mark.parametrize(("given", "wanted"), [(None, False), (np.zeros(2, np.float32), True)])
def test_an_empty_optional_is_none(name, given, wanted, tmp_path):
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    node = helper.make_node("OptionalHasElement", ["o"], ["y"])
    proto = model([node], [helper.make_value_info("o", optional)], [info("y", TensorProto.BOOL, ())])
    assert answers(name, proto, tmp_path, {"o": given})["y"].tolist() is wanted


@values_of_onnx
@pytest.mark.parametrize("full", [True, False])
def test_an_optional_is_its_value_or_none_or_refused(name, full, tmp_path):
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    made = helper.make_value_info("o", helper.make_optional_type_proto(tensor))
    node = helper.make_node("Optional", ["x"], ["o"]) if full else helper.make_node("Optional", [], ["o"], type=tensor)
    has = helper.make_node("OptionalHasElement", ["o"], ["has"])
    keep = helper.make_node("Identity", ["x"], ["y"])
    proto = model([node, has, keep], [info("x", shape=(2,))],
                  [made, info("has", TensorProto.BOOL, ()), info("y", shape=(2,))])  # fmt: skip
    if name == "reference" and not full:
        with pytest.raises(RunFailed, match="an empty Optional"):
            answers(name, proto, tmp_path, {"x": np.float32([1, 2])})
        return
    got = answers(name, proto, tmp_path, {"x": np.float32([1, 2])})
    assert got["has"].tolist() is full
    assert (got["o"].tolist() == [1, 2]) if full else (got["o"] is None)


@every_backend
def test_a_broken_model_is_refused_with_the_target_and_no_wall_of_text(name, tmp_path):
    good = source(model([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("y")]), tmp_path)
    bad = model([helper.make_node("NoSuchOp", ["x"], ["y"])], [info("x")], [info("y")])
    good.path.write_bytes(bad.SerializeToString())
    with pytest.raises(PrepareRefused) as caught:
        prepared(name, good)
    assert str(caught.value).startswith(f"{name}@cpu:0/f32")
    assert caught.value.target.startswith(f"{name}@cpu:0/f32")
    assert len(str(caught.value)) < 600
    assert "NoSuchOp" in str(caught.value)


@every_backend
def test_a_run_that_breaks_says_who_and_why(name, tmp_path):
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", shape=("N", "K"))],
                  [info("y", shape=("N", 4))], [weights("w", 8, 4)])  # fmt: skip
    runnable = prepared(name, source(proto, tmp_path))
    with pytest.raises(RunFailed, match=rf"^{name}@cpu:0/f32.* failed while it ran") as caught:
        runnable.run({"x": np.ones((2, 3), np.float32)})
    assert len(str(caught.value)) < 600
    assert runnable.run({"x": np.ones((2, 8), np.float32)})["y"].shape == (2, 4)  # and it still works


@every_backend
def test_a_closed_runnable_refuses_to_run_and_closes_again(name, tmp_path):
    runnable = prepared(name, source(identity(TensorProto.FLOAT), tmp_path))
    runnable.close()
    runnable.close()
    with pytest.raises(RunFailed, match="closed"):
        runnable.run({"x": np.zeros(3, np.float32)})


@every_backend
def test_nothing_is_offered_for_a_format_or_a_device_that_it_cannot_run(name, tmp_path):
    made = source(identity(TensorProto.FLOAT), tmp_path)
    backend = devices.backend(name)
    assert backend.targets(made, Device("npu:0", "npu", "an NPU", 0), "", [1]) == () or name == "openvino"
    simulated = Device("cpu:0", "cpu", "paper", 0, driver="simulated")
    assert backend.reaches([simulated]) == ()


@every_backend
def test_an_unknown_variant_is_refused_by_name(name, tmp_path):
    made = source(identity(TensorProto.FLOAT), tmp_path)
    with pytest.raises(UnknownTarget, match="'warp'"):
        devices.backend(name).targets(made, CPU, "warp", [1])


@every_backend
def test_external_data_beside_the_model_is_read(name, tmp_path):
    big = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x")], [info("y", shape=(1, 300))],
                [weights("w", 4, 300)])  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save_model(big, path, save_as_external_data=True, location="w.bin", size_threshold=100)
    x = np.ones((1, 4), np.float32)
    got = prepared(name, source_of(path)).run({"x": x})["y"]
    np.testing.assert_allclose(got, x @ np.random.default_rng(0).standard_normal((4, 300)).astype("f"), rtol=1e-5)


def test_the_reference_names_one_target_and_no_threads(tmp_path):
    made = source(identity(TensorProto.FLOAT), tmp_path)
    assert devices.backend("reference").targets(made, CPU, "", [1, 2]) == (Target("reference", "cpu:0", "f32"),)
