"""Planning for a machine on paper: measured in virtual time, split where that pays, as predicted."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save, shape_inference

import edgert
from edgert.devices.probe import glance
from edgert.errors import OptionError
from edgert.machine import BackendInfo, Device, Machine, Reach

WIDTH = 16
LINK = {"link_s": "50e-6", "link_bytes_per_s": "1e9"}
CPU = {"launch_s": "1e-5", "kernel_s": "4e-3"}
NPU = {"launch_s": "1e-3", "kernel_s": "1e-4", "ops": "MatMul Relu Sigmoid Gemm", **LINK}


def device(name, **attributes):
    declared = {"time": "virtual", "jitter": "0.02", **attributes}
    return Device(name, name[:3], "on paper", 0, driver="simulated", attributes=declared)


def machine(*devices, reaches=()):
    found = tuple(Reach("simulated", each.id, health="ok") for each in devices if each.driver == "simulated")
    made = Machine("x86_64", devices, (BackendInfo("simulated", "1"),), (*found, *reaches))
    return Machine.from_json(json.loads(json.dumps(made.to_json())))


@pytest.fixture
def model(tmp_path):
    """Six layers, the last with a Tanh."""
    rng = np.random.default_rng(7)
    nodes, weights, name = [], [], "x"
    for number, op in enumerate(("Relu", "Sigmoid", "Relu", "Relu", "Sigmoid", "Tanh")):
        weight = (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{number}"], [f"m{number}"], f"matmul{number}"))
        nodes.append(helper.make_node(op, [f"m{number}"], [f"a{number}"], f"act{number}"))
        name = f"a{number}"
    nodes[-1].output[0] = "y"
    sides = [[helper.make_tensor_value_info(side, TensorProto.FLOAT, (2, WIDTH))] for side in ("x", "y")]
    graph = helper.make_graph(nodes, "layers", *sides, weights)
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "layers.onnx")
    return tmp_path / "layers.onnx"


@pytest.fixture
def plan(model, tmp_path):
    """Of that model on a machine."""

    def make(on):
        with edgert.load(model, machine=on, budget_s=30, cache_dir=tmp_path / "cache") as loaded:
            return loaded.plan

    return make


def test_a_split_that_pays_is_found_and_takes_as_long_as_predicted(plan):
    found = plan(machine(device("cpu:0", **CPU), device("npu:0", **NPU)))
    assert [target.device for target in found.targets] == ["npu:0", "cpu:0"]
    whole_s = next(row.timing.p50_s for row in found.candidates if row.timing is not None)
    assert whole_s == pytest.approx(6 * 4e-3, rel=0.05)
    assert found.measured_s == pytest.approx(1e-3 + 5 * 1e-4 + 50e-6 + 4e-3, rel=0.05)
    assert found.predicted_s == pytest.approx(found.measured_s, rel=0.15)


@pytest.fixture
def narrowing(tmp_path):
    """Takes much and keeps little: a maximum over 64 kB, then five layers, the last with a Tanh."""
    rng = np.random.default_rng(7)
    nodes, weights, name = [helper.make_node("ReduceMax", ["x"], ["r"], "narrow", keepdims=0)], [], "r"
    weights.append(numpy_helper.from_array(np.array([1]), "axes"))
    nodes[0].input.append("axes")
    for number, op in enumerate(("Relu", "Sigmoid", "Relu", "Relu", "Tanh")):
        weight = (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{number}"], [f"m{number}"], f"matmul{number}"))
        nodes.append(helper.make_node(op, [f"m{number}"], [f"a{number}"], f"act{number}"))
        name = f"a{number}"
    nodes[-1].output[0] = "y"
    sides = (("x", (2, 512, WIDTH)), ("y", (2, WIDTH)))
    values = [[helper.make_tensor_value_info(side, TensorProto.FLOAT, shape)] for side, shape in sides]
    made = helper.make_model(
        helper.make_graph(nodes, "narrowing", *values, weights),
        ir_version=10, opset_imports=[helper.make_opsetid("", 21)],
    )  # fmt: skip
    save(shape_inference.infer_shapes(made), tmp_path / "narrowing.onnx")
    return tmp_path / "narrowing.onnx"


def test_what_makes_values_small_runs_before_a_slow_bus(narrowing, tmp_path):
    """The bytes at a segment's borders are no cost of its blocks: alone, every layer seems slow there."""
    cpu = {"launch_s": "1e-5", "kernel_s": "1e-3"}
    npu = {
        **NPU,
        "ops": f"{NPU['ops']} ReduceMax",
        "io_bytes_per_s": "2e5",
    }  # 0.3 s for the input, 0.6 ms for a layer's
    on = machine(device("cpu:0", **cpu), device("npu:0", **npu))
    with edgert.load(narrowing, machine=on, budget_s=90, cache_dir=tmp_path / "cache") as loaded:
        found = loaded.plan
    assert [target.device for target in found.targets] == ["cpu:0", "npu:0", "cpu:0"]
    assert found.measured_s == pytest.approx(2 * (1e-3 + 1e-5) + 1e-3 + 4e-4 + 2 * 128 / 2e5 + 1e-4, rel=0.1)
    assert found.predicted_s == pytest.approx(found.measured_s, rel=0.15)


def test_a_split_that_a_link_makes_slow_is_not_shipped(plan):
    slow = device("npu:0", **{**NPU, "link_s": "1"})
    found = plan(machine(device("cpu:0", **CPU), slow))
    assert [target.device for target in found.targets] == ["cpu:0"]
    assert any("predicted at" in note for note in found.notes)


def test_seconds_on_paper_are_not_raced_against_real_ones(plan):
    real = dataclasses.replace(glance().device("cpu:0"))
    with pytest.raises(OptionError, match="npu:0 of this machine runs in virtual time and cpu:0 does not"):
        plan(machine(real, device("npu:0", **NPU), reaches=(Reach("onnxruntime", "cpu:0"),)))
