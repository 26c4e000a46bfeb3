"""Numbers that drift while serving are not planned with again."""

from __future__ import annotations

import dataclasses

import pytest

from edgert.devices.backend import Source
from edgert.execution.shadow import Drift
from edgert.formats import open_model
from edgert.machine import Device
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.planning import Memory, Wish, distrust
from edgert.planning.quarantine import Quarantine
from edgert.profile import Target

NPU = Device("npu:0", "npu", "a device on paper", 0, driver="1.0")


@pytest.fixture
def setting(line, machine_of, tmp_path):
    machine = machine_of("right@npu:0", "right", devices=(NPU,))
    file = open_model(line)
    graph = file.graph
    target = Target("right", "npu:0", "f32")
    plan = Plan(
        file.digest, machine.fingerprint, {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs,
        (Segment(target),), (Instance(0),), verification=Verification("onnx"), complete=True,
    )  # fmt: skip
    source = Source(line, "onnx", graph.inputs, graph.outputs, "f32")
    return Memory(tmp_path, file.digest, machine), Wish(), source, plan, target


def test_the_plan_is_forgotten_and_its_target_known_as_wrong(setting):
    memory, wish, source, plan, target = setting
    memory.keep_plan(wish, plan)
    assert memory.plan(wish) == plan
    distrust(memory, wish, source, plan, Drift((target,), "output 'y': off by 0.01 of its range"))
    assert memory.plan(wish) is None
    assert memory.rows("")[target].outcome == "wrong"
    assert "0.01" in memory.rows("")[target].reason


def test_of_a_split_the_segments_off_the_cpu_come_into_quarantine(setting):
    memory, wish, source, plan, target = setting
    graph = open_model(source.path).graph
    own = Target("onnxruntime", "cpu:0", "f32")
    first, second = graph.nodes
    split = dataclasses.replace(
        plan, segments=(Segment(target, (first.name,), ("x",), ("m",)), Segment(own, (second.name,), ("m",), ("y",)))
    )
    distrust(memory, wish, source, split, Drift(split.targets, "output 'y': off by 0.01 of its range"))
    (entry,) = Quarantine(memory.folder, memory.machine).entries()
    assert (entry.target, entry.ops) == ("right@npu:0/f32", ("Mul",))
