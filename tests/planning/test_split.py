"""Splits: found where a fast target refuses an op, right, kept where they win; wrong blocks named and kept away."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

import edgert
from edgert import data
from edgert.errors import ChildTimeout, PrepareRefused
from edgert.formats import open_model
from edgert.machine import Device
from edgert.partitioner.explain import explain
from edgert.planning.capability import Capability, capability
from edgert.planning.quarantine import Quarantine
from edgert.planning.workshop import Workshop
from edgert.profile import Row, Target
from edgert.samples import synthesise
from edgert.store import read_json

WIDTH = 16
GPU = Device("gpu:0", "gpu", "a device on paper", 0, driver="1.0")


@pytest.fixture
def model(layers, tmp_path):
    """Six layers, the third with a Tanh."""
    return layers(tmp_path / "layers.onnx", "Relu", "Sigmoid", "Tanh", "Relu", "Sigmoid", "Relu")


def backends(plan):
    return [target.backend for target in plan.targets]


def expected(load, path, feed):
    return load(path, "onnxruntime").run(feed)["y"]


def test_an_op_that_the_fast_one_refuses_is_carried_by_another(load, model, feed):
    split = load(model, "swift", "crawls", "reference")
    result = split.run(feed)
    assert backends(split.plan)[0] == backends(split.plan)[-1] == "swift", split.plan.explain()
    assert set(backends(split.plan)) == {"swift", "crawls"} or set(backends(split.plan)) == {"swift", "reference"}
    assert result.receipt.targets == split.plan.targets
    assert result.receipt.verified
    assert not result.receipt.degraded
    np.testing.assert_allclose(result["y"], expected(load, model, feed), rtol=1e-4, atol=1e-5)


def test_a_split_plan_says_everything(load, model, kept):
    plan = load(model, "swift", "crawls", cache_dir=kept).plan
    assert [segment.target.backend for segment in plan.segments] == ["swift", "crawls", "swift"]
    assert plan.fallbacks[0].backend == "crawls"
    assert [(each.source, each.sink) for each in plan.transfers] == [(0, 1), (1, 2)]
    assert all(each.size_bytes == 2 * WIDTH * 4 for each in plan.transfers)
    assert all(segment.measured_s > 0 and segment.errors and segment.cause for segment in plan.segments)
    assert plan.predicted_s > 0
    assert "'matmul2' on swift@cpu:0/f32: refused: foreign: Tanh is not known." in plan.explain()
    assert edgert.Plan.from_json(plan.to_json()) == plan


def test_a_plan_knows_its_blocks(load, model, kept):
    plan = load(model, "swift", "crawls", cache_dir=kept).plan
    assert [(block.name, block.ops, block.nodes) for block in plan.blocks][2] == ("matmul2", ("MatMul", "Tanh"), 2)
    assert [block.segment for block in plan.blocks] == [0, 0, 1, 2, 2, 2]
    tanh = plan.blocks[2]
    assert tanh.refused == {"swift@cpu:0/f32": "refused: foreign: Tanh is not known."}
    assert set(tanh.alone_s) == {"crawls@cpu:0/f32"}
    assert all(set(block.alone_s) == {"swift@cpu:0/f32", "crawls@cpu:0/f32"} for block in plan.blocks if block != tanh)
    lines = explain(plan, open_model(model).graph).splitlines()
    (row,) = [line for line in lines if line.startswith("matmul2")]
    assert row.split()[:4] == ["matmul2", "MatMul+Tanh", "2:", "crawls@cpu:0/f32"]
    assert row.endswith("swift@cpu:0/f32: refused: foreign: Tanh is not known.; its library would have to take it")
    (wanted,) = [line for line in lines if line.startswith("most wanted")]
    assert "support for Tanh (1 node), for which swift@cpu:0/f32 refused; it can win the" in wanted


def test_the_next_load_prepares_only_the_segments(load, model, feed, monkeypatch, kept):
    first = load(model, "swift", "crawls", cache_dir=kept)
    monkeypatch.setattr("edgert.planning.make_plan", lambda *_: pytest.fail("planned again"))
    second = load(model, "swift", "crawls", cache_dir=kept)
    assert second.plan == first.plan
    np.testing.assert_array_equal(second.run(feed)["y"], first.run(feed)["y"])


def test_what_was_measured_is_not_measured_again(load, model, tmp_path, monkeypatch):
    first = load(model, "swift", "crawls")
    shutil.rmtree(tmp_path / "cache" / "plans")
    monkeypatch.setattr(Workshop, "_try", lambda *_: pytest.fail("measured again"))
    again = load(model, "swift", "crawls")
    assert [segment.nodes for segment in again.plan.segments] == [segment.nodes for segment in first.plan.segments]


def test_a_planning_that_is_killed_leaves_its_measurements(load, model, monkeypatch):
    monkeypatch.setattr("edgert.planning.split.contest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load(model, "swift", "crawls")
    monkeypatch.undo()
    asked = []
    real = Workshop._try
    monkeypatch.setattr(Workshop, "_try", lambda *args: asked.append(args) or real(*args))
    load(model, "swift", "crawls")
    assert not asked


def test_segments_of_another_device_run_in_its_child_over_a_measured_link(machine_of, model, feed, tmp_path, load):
    machine = machine_of("swift@gpu:0", "lingers", devices=(GPU,))
    split = load(model, machine=machine)
    assert {target.device for target in split.plan.targets} == {"cpu:0", "gpu:0"}
    result = split.run(feed)
    assert result.receipt.targets == split.plan.targets
    np.testing.assert_allclose(result["y"], expected(load, model, feed), rtol=1e-4, atol=1e-5)
    (links,) = [read_json(path)["links"] for path in (tmp_path / "cache" / "links").iterdir()]
    assert {(link["source"], link["sink"]) for link in links} == {("cpu:0", "gpu:0"), ("gpu:0", "cpu:0")}
    assert all(link["latency_s"] > 0 and link["bandwidth_bytes_per_s"] > 0 for link in links)


def test_a_split_that_was_not_tried_for_want_of_time_may_be_tried_again(load, model, monkeypatch):
    def late(*_):
        raise ChildTimeout("no answer within 10 s.", "", timeout_s=10.0)

    monkeypatch.setattr("edgert.planning.split.reference_values", late)
    plan = load(model, "swift", "crawls").plan
    assert len(plan.segments) == 1
    assert any("no split was tried" in note for note in plan.notes)
    assert not plan.complete


def test_a_plan_that_was_made_in_a_hurry_is_made_anew_with_more_time(load, model, monkeypatch):
    monkeypatch.setattr(Workshop, "in_time", False)
    hurried = load(model, "swift", "crawls")
    assert not hurried.plan.complete
    monkeypatch.undo()
    assert load(model, "swift", "crawls").plan == hurried.plan  # not with as much again
    assert load(model, "swift", "crawls", budget_s=90).plan.complete


def test_a_split_that_does_not_pay_is_not_made(load, model, feed):
    whole = load(model, "drags", "crawls")
    assert backends(whole.plan) == ["crawls"]
    assert any("don't split" in note for note in whole.plan.notes)
    assert whole.run(feed).receipt.targets == whole.plan.targets


def test_a_model_that_every_target_takes_whole_is_not_asked_for_pieces(load, layers, tmp_path, monkeypatch):
    monkeypatch.setattr(Workshop, "_try", lambda *_: pytest.fail("asked for a piece"))
    plan = load(layers(tmp_path / "plain.onnx", "Relu", "Relu", "Sigmoid"), "swift", "crawls").plan
    assert len(plan.segments) == 1


def test_a_model_that_is_quick_as_a_whole_is_not_asked_for_pieces(load, model, monkeypatch):
    monkeypatch.setattr(Workshop, "_try", lambda *_: pytest.fail("asked for a piece"))
    assert len(load(model, "swift", "onnxruntime").plan.segments) == 1


def test_a_wrong_block_is_named_and_kept_away_from_later_plans(load, layers, model, tmp_path):
    plan = load(model, "bends", "crawls", "reference").plan
    (note,) = [note for note in plan.notes if "on bends@cpu:0/f32" in note and "'matmul2'" in note]
    assert "wrong: output 'a2': off by" in note
    assert "bends" in backends(plan)
    assert not any("act2" in segment.nodes for segment in plan.segments if segment.target.backend == "bends")
    other = layers(tmp_path / "other.onnx", "Sigmoid", "Relu", "Relu", "Tanh")
    later = load(other, "bends", "crawls", "reference").plan
    assert any("in quarantine: MatMul+Tanh (float32) on bends@cpu:0/f32 1.0" in note for note in later.notes)
    assert not any("act3" in segment.nodes for segment in later.segments if segment.target.backend == "bends")


def test_where_nothing_confirms_the_numbers_nobody_is_put_in_quarantine(load, model, tmp_path):
    plan = load(model, "bends", "crawls").plan  # two that differ, and no third
    assert not plan.verification.verified
    assert len(plan.segments) == 1
    assert not (tmp_path / "cache" / "quarantine").exists()


def test_quarantine_ends_with_another_version_of_the_library_or_the_driver(model, tmp_path, machine_of):
    graph, target = open_model(model).graph, Target("bends", "cpu:0", "f32", 1)
    machine = machine_of("bends")
    machine = dataclasses.replace(machine, backends=(edgert.machine.BackendInfo("bends", "1.0"),))
    assert Quarantine(tmp_path, machine).find(graph, (4, 5), target) is None
    Quarantine(tmp_path, machine).add(graph, (4, 5), target, "off by 3", "model")
    assert Quarantine(tmp_path, machine).find(graph, (4, 5), dataclasses.replace(target, threads=2)) is not None
    assert Quarantine(tmp_path, machine).find(graph, (2, 3), target) is None
    newer = dataclasses.replace(machine, backends=(edgert.machine.BackendInfo("bends", "1.1"),))
    assert Quarantine(tmp_path, newer).find(graph, (4, 5), target) is None
    device = dataclasses.replace(machine.devices[0], driver="2.0")
    path = tmp_path / "quarantine" / f"{machine.fingerprint}.json"
    driven = dataclasses.replace(machine, devices=(device, *machine.devices[1:]))
    path.rename(path.with_name(f"{driven.fingerprint}.json"))
    assert Quarantine(tmp_path, driven).find(graph, (4, 5), target) is None


def test_a_damaged_quarantine_starts_anew(model, tmp_path, machine_of):
    graph, target, machine = open_model(model).graph, Target("bends", "cpu:0", "f32"), machine_of("bends")
    Quarantine(tmp_path, machine).add(graph, (4, 5), target, "off by 3", "model")
    (path,) = (tmp_path / "quarantine").iterdir()
    path.write_text("{")
    assert Quarantine(tmp_path, machine).entries() == ()


class Oracle:
    """In place of a workshop: refuses the blocks that it is told to."""

    def __init__(self, blocks, culprits):
        self.blocks, self.culprits = range(blocks), culprits
        self.in_time, self.asked = True, 0

    def say(self, _text):
        pass

    def convict(self, _number, _row):
        pass

    def ask(self, blocks, target):
        self.asked += 1
        bad = self.culprits & set(blocks)
        return Row(target, "refused" if bad else "ok", f"{bad}" if bad else "")


@pytest.mark.parametrize("culprits", [{0}, {99}, {31, 32}, set(range(0, 100, 10)), set(range(100))])
def test_halving_finds_exactly_the_refused_blocks(culprits):
    oracle, target = Oracle(100, culprits), Target("any", "cpu:0", "f32")
    found = capability(oracle, target)
    assert set(found.refused) == culprits
    assert found.taken == set(range(100)) - culprits
    assert oracle.asked <= 2 * len(culprits) * 7 + 2


def test_another_precision_is_not_asked_for_what_its_kin_refuses():
    target = Target("any", "cpu:0", "bf16")
    kin = Capability(Target("any", "cpu:0", "f32"), set(range(100)) - {40}, {40: Row(target, "refused", "no")})
    oracle = Oracle(100, {40})
    found = capability(oracle, target, kin)
    assert (set(found.refused), oracle.asked) == ({40}, 2)


def test_what_is_not_known_when_the_time_is_over_counts_as_refused():
    oracle = Oracle(10, set())
    oracle.in_time = False
    assert not capability(oracle, Target("any", "cpu:0", "f32")).taken


def conv_model(path, *tail, outputs, opset=20, size=24):
    """Two convolutions on (1, 3, size, size), which onnx's evaluator is slow at, and what follows them as 'r1'."""
    rng = np.random.default_rng(3)
    shapes = [(16, 3, 3, 3), (16, 16, 3, 3)]
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) / 6).astype(np.float32), f"w{i}") for i, s in enumerate(shapes)
    ]
    nodes = []
    for number, name in enumerate(("x", "r0")):
        nodes.append(helper.make_node("Conv", [name, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
    more, constants = tail
    graph = helper.make_graph(
        [*nodes, *more], "conv", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, size, size))], outputs,
        [*weights, *constants],
    )  # fmt: skip
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


def refused_whole(plan, backend):
    return any(row.target.backend == backend and row.outcome == "refused" for row in plan.candidates)


def test_a_string_op_that_openvino_refuses_leaves_it_the_rest(load, tmp_path):
    pytest.importorskip("openvino")
    constants = [
        numpy_helper.from_array(np.array([f"class {n}" for n in range(16)], dtype=object), "labels"),
        numpy_helper.from_array(np.array(["!"], dtype=object), "suffix"),
    ]
    tail = [
        helper.make_node("GlobalAveragePool", ["r1"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["scores"], "flatten"),
        helper.make_node("ArgMax", ["scores"], ["index"], "argmax", axis=1, keepdims=0),
        helper.make_node("Gather", ["labels", "index"], ["plain"], "gather"),
        helper.make_node("StringConcat", ["plain", "suffix"], ["label"], "label"),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 16)),
               helper.make_tensor_value_info("label", TensorProto.STRING, (1,))]  # fmt: skip
    path = conv_model(tmp_path / "string.onnx", tail, constants, outputs=outputs)
    split = load(path, "openvino", "plods", "reference")  # the real OpenVINO refuses; the other's speed is declared
    x = np.random.default_rng(2).standard_normal((1, 3, 24, 24)).astype(np.float32)
    result, known = split.run(x), load(path, "onnxruntime").run(x)
    assert refused_whole(split.plan, "openvino")
    assert backends(split.plan)[0] == "openvino"
    assert backends(split.plan)[1] in ("plods", "reference")
    assert result.receipt.verified
    assert list(result["label"]) == list(known["label"])
    np.testing.assert_allclose(result["scores"], known["scores"], rtol=1e-3, atol=1e-4)


def test_an_op_that_forces_the_whole_to_the_reference_leaves_a_fast_one_the_rest(load, tmp_path):
    constants = [numpy_helper.from_array(np.array([1, 16, 4, 4]), "square")]
    tail = [
        helper.make_node("AveragePool", ["r1"], ["p"], "pool", kernel_shape=[6, 6], strides=[6, 6]),
        helper.make_node("Reshape", ["p", "square"], ["q"], "reshape"),
        helper.make_node("Cast", ["q"], ["d"], "double", to=TensorProto.DOUBLE),
        helper.make_node("Det", ["d"], ["e"], "det"),
        helper.make_node("Cast", ["e"], ["f"], "single", to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["f"], ["y"], "tanh"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 16))]
    path = conv_model(tmp_path / "det.onnx", tail, constants, outputs=outputs)
    split = load(path, "onnxruntime", "plods", "reference")
    x = np.random.default_rng(2).standard_normal((1, 3, 24, 24)).astype(np.float32)
    result = split.run(x)
    whole = load(path, "reference")
    assert refused_whole(split.plan, "onnxruntime")
    # The Tanh after it may be worth a segment of its own or not.
    assert backends(split.plan)[0] == "onnxruntime"
    assert backends(split.plan)[1] in ("plods", "reference")
    assert split.plan.fallbacks[0].backend == "plods"
    assert backends(whole.plan) == ["reference"]
    np.testing.assert_allclose(result["y"], whole.run(x)["y"], rtol=1e-3, atol=1e-5)


def test_a_segment_that_fails_at_run_time_gives_a_degraded_answer(load, model, feed, kept):
    split = load(model, "swift", "crawls", cache_dir=kept)
    relay = split._pipeline._current._relay

    def broken(_inputs):
        raise PrepareRefused("foreign: the device fell off the bus.", target="swift")

    relay._steps = (dataclasses.replace(relay._steps[0], run=broken), *relay._steps[1:])
    result = split.run(feed)
    assert result.receipt.degraded
    assert [target.backend for target in result.receipt.targets] == ["crawls"]
    assert "segment 1 of 3" in result.receipt.reason
    np.testing.assert_allclose(result["y"], expected(load, model, feed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["digits_f32.onnx", "digits_i8.onnx", "digits_f32.tflite", "digits_i8.tflite"])
def test_both_formats_and_quantised_models_are_split_across_libraries(load, name):
    if name.endswith("tflite"):
        pytest.importorskip("ai_edge_litert", reason="cuts .tflite")
    path = data.path(name)
    split = load(path, "blunt", "trudges")
    assert backends(split.plan) == ["blunt", "trudges"], split.plan.explain()
    assert [segment.target.precision for segment in split.plan.segments] == [split.plan.own_precision] * 2
    (images,) = synthesise(open_model(path).graph, seed=4)
    result = split.run(images)
    assert result.receipt.targets == split.plan.targets
    (known,) = load(path, "litert" if name.endswith("tflite") else "onnxruntime").run(images).values()
    (made,) = result.values()
    step = 0 if made.dtype != np.float32 else 1 / 128 if "i8" in name else 1e-5
    np.testing.assert_allclose(made, known, atol=step or 1)  # one step of an integer


def test_what_crosses_in_a_quantised_model_is_an_integer(load):
    plan = load(data.path("digits_i8.tflite"), "blunt", "trudges").plan
    (transfer,) = plan.transfers
    (value,) = [value for value in plan.values if value.name in transfer.values]
    assert (value.dtype, transfer.size_bytes) == ("int8", 10)
