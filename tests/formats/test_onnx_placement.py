"""Placements inside .onnx files: what is written is read back, and the model stays what it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgert.data import path as data_path
from edgert.errors import ModelUnsupported, OptionError
from edgert.formats import open_model
from edgert.plan import Instance, Plan, Segment
from edgert.profile import Target

onnx = pytest.importorskip("onnx", reason="placements are in .onnx files")
from edgert.formats.onnx_placement import CONFIGURATION, read_placement, wishes, write_placement  # noqa: E402

GPU, CPU = Target.parse("openvino@gpu:0/f16"), Target.parse("onnxruntime@cpu:0/f32/1t")


def plan_for(file, split=3):
    names = [node.name for node in file.graph.nodes]
    parts = ((GPU, names[:split]), (CPU, names[split:]))
    segments = tuple(Segment(target, tuple(nodes)) for target, nodes in parts if nodes)
    return Plan(file.digest, "f" * 16, {}, "latency", "own", "onnx", "f32", file.graph.inputs, file.graph.outputs,
                segments, tuple(Instance(number) for number in range(len(segments))))  # fmt: skip


@pytest.fixture
def digits():
    return open_model(data_path("digits_f32.onnx"))


def test_what_is_written_is_read_back(digits, tmp_path):
    write_placement(digits, plan_for(digits), tmp_path / "placed.onnx")
    placed = read_placement(open_model(tmp_path / "placed.onnx"))
    names = [node.name for node in digits.graph.nodes]
    assert placed.devices == (str(GPU), str(CPU))
    assert placed.nodes == {name: int(number >= 3) for number, name in enumerate(names)}
    assert placed.stages == placed.nodes
    assert wishes(placed) == (str(GPU), str(CPU))


def test_a_plan_of_one_segment_places_every_node(digits, tmp_path):
    plan = dataclasses.replace(plan_for(digits), segments=(Segment(CPU),), instances=(Instance(0),))
    write_placement(digits, plan, tmp_path / "placed.onnx")
    placed = read_placement(open_model(tmp_path / "placed.onnx"))
    assert set(placed.nodes) == {node.name for node in digits.graph.nodes}
    assert wishes(placed) == (str(CPU),)


def test_the_copy_is_valid_and_computes_the_same(digits, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="runs both")
    write_placement(digits, plan_for(digits), tmp_path / "placed.onnx")
    onnx.checker.check_model(str(tmp_path / "placed.onnx"), full_check=True)
    images = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    answers = [
        runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
        for file in (digits.path, tmp_path / "placed.onnx")
    ]
    assert np.array_equal(*answers)


def test_writing_again_replaces_the_own_configuration_and_keeps_others(digits, tmp_path):
    model = onnx.load(digits.path)
    other = model.configuration.add()
    other.name, other.num_devices = "cluster", 2
    model.ir_version = 11
    onnx.save(model, tmp_path / "a.onnx")
    for before, after in (("a", "b"), ("b", "c")):
        file = open_model(tmp_path / f"{before}.onnx")
        write_placement(file, plan_for(file), tmp_path / f"{after}.onnx")
    written = onnx.load(tmp_path / "c.onnx")
    assert [item.name for item in written.configuration] == ["cluster", CONFIGURATION]
    assert all(len(node.device_configurations) <= 1 for node in written.graph.node)


def test_initialisers_of_an_old_file_do_not_become_inputs(tmp_path):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "old",
        [helper.make_tensor_value_info(name, kind, [2]) for name in ("x", "w")],
        [helper.make_tensor_value_info("y", kind, [2])], [helper.make_tensor("w", kind, [2], [1.0, 2.0])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 8)]), tmp_path / "a.onnx")
    file = open_model(tmp_path / "a.onnx")
    write_placement(file, plan_for(file, split=0), tmp_path / "b.onnx")
    written = open_model(tmp_path / "b.onnx").graph
    assert [value.name for value in written.inputs] == ["x"]
    assert not written.optional_inputs


def foreign(digits, folder, device, count=1, spread=(0,)):
    model = onnx.load(digits.path)
    model.ir_version = 11
    item = model.configuration.add()
    item.name, item.num_devices = "theirs", count
    item.device.extend(device)
    place = model.graph.node[0].device_configurations.add()
    place.configuration_id = "theirs"
    spec = place.sharding_spec.add()
    spec.tensor_name = model.graph.node[0].output[0]
    spec.device.extend(spread)
    onnx.save(model, folder / "theirs.onnx")
    return open_model(folder / "theirs.onnx")


@pytest.mark.parametrize(("device", "wish"), [("GPU", "*@gpu:*"), ("npu:1", "*@npu:1/*"), (str(CPU), str(CPU))])
def test_devices_of_others_become_patterns(digits, tmp_path, device, wish):
    assert wishes(read_placement(foreign(digits, tmp_path, [device]))) == (wish,)


@pytest.mark.parametrize("device", [["accelerator-7"], []])
def test_a_device_that_says_nothing_is_told(digits, tmp_path, device):
    with pytest.raises(OptionError, match="accelerator-7" if device else "name its devices"):
        wishes(read_placement(foreign(digits, tmp_path, device)))


@pytest.mark.parametrize("spread", [(0, 1), (5,)])
def test_a_node_on_several_devices_or_on_none_that_exists_is_told(digits, tmp_path, spread):
    with pytest.raises(ModelUnsupported, match="device configuration"):
        read_placement(foreign(digits, tmp_path, ["cpu", "gpu"], 2, spread))


def test_a_model_without_a_placement_says_so(digits):
    with pytest.raises(OptionError, match="no device configuration"):
        read_placement(digits)


def test_a_plan_of_another_model_is_not_written(digits, tmp_path):
    with pytest.raises(OptionError, match="another model"):
        write_placement(digits, dataclasses.replace(plan_for(digits), model="0" * 64), tmp_path / "out.onnx")


def test_tflite_carries_no_placement(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="reads .tflite")
    with pytest.raises(OptionError, match=r"only \.onnx"):
        read_placement(open_model(data_path("digits_f32.tflite")))
