"""Segments on simulated devices in virtual time: right answers, and the time that the devices would take together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnx import helper

from edgert.devices.remote import Remote
from edgert.errors import OptionError, PrepareRefused
from edgert.execution.hosted import SERVICE, Prepare, prepare_segments
from edgert.execution.segments import Parts
from edgert.formats import open_model
from edgert.machine import Device
from edgert.plan import Segment
from edgert.profile import Target
from tests.devices.sources import answers, source_of
from tests.formats.models import info, model, save

X = np.arange(4, dtype=np.float32)
MIB = 1 << 20


def device(name, **attributes):
    return Device(name, name[:3], "on paper", 0, driver="simulated", attributes={"time": "virtual", **attributes})


def fork(folder):
    """y = Neg(x) + (Relu(x) + Abs(x)): Neg, Relu and Abs side by side."""
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], "neg"),
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Abs", ["x"], ["a"], "abs"),
        helper.make_node("Sum", ["n", "r", "a"], ["y"], "sum"),
    ]
    return save(model(nodes, [info("x", shape=(4,))], [info("y", shape=(4,))], []), folder / "fork.onnx")


@pytest.fixture
def run(tmp_path):
    """Runs the fork in a child, its nodes on the given devices; the answer, its seconds and those of three more."""
    remotes = []

    def begin(places, *devices):
        path = fork(tmp_path)
        graph, whole = open_model(path).graph, source_of(path)
        parts, known = Parts(whole, tmp_path / "segments"), {each.id: each for each in devices}
        prepared = []
        for names, place in places:
            inputs, outputs = graph.boundary(frozenset(i for i, n in enumerate(graph.nodes) if n.name in names))
            target = Target("simulated", place, "f32")
            made = parts.source(Segment(target, names, inputs, outputs), graph.values)
            prepared.append(Prepare(made, target, known[place]))
        remotes.append(Remote("virtual", service=SERVICE))
        runnable = prepare_segments(remotes[-1], prepared, ["y"], None, timeout_s=60)
        remotes[-1].hold("sample", {"x": X})
        outputs, first_s = runnable.run_held("sample")
        begin.items_per_s = remotes[-1].throughput([runnable] * 2, [(), ()], "sample", 100.0)
        return outputs["y"], [first_s, *runnable.time("sample", 3, at_most_s=1e9)]

    yield begin
    for remote in remotes:
        remote.close()


CPU, NPU = device("cpu:0", launch_s="2"), device("npu:0", launch_s="3", link_s="10")
APART = ((("neg",), "cpu:0"), (("relu",), "npu:0"), (("abs",), "npu:0"), (("sum",), "cpu:0"))


def test_devices_overlap_and_links_take_their_time(run, tmp_path):
    made, seconds = run(APART, CPU, NPU)
    # The NPU: Relu until 3, Abs until 6; their values cross until 13 and 23; then the sum.
    assert seconds == pytest.approx([25.0] * 4)
    np.testing.assert_array_equal(made, answers("onnxruntime", open_proto(tmp_path), tmp_path, {"x": X})["y"])
    assert run.items_per_s == pytest.approx(1 / 20)  # the two values' way to the CPU is the narrowest


def test_one_device_runs_one_segment_at_a_time(run):
    _, seconds = run([(names, "cpu:0") for names, _ in APART], CPU)
    assert seconds == pytest.approx([8.0] * 4)


def test_what_computes_at_once_shares_the_memory(run):
    slow = {"bytes_per_s": "32", "dram_bytes_per_s": "32"}
    pair = [dataclasses.replace(each, attributes={**each.attributes, **slow, "launch_s": "0", "link_s": "0"})
            for each in (CPU, NPU)]  # fmt: skip
    _, together = run([(("neg",), "cpu:0"), (("relu", "abs"), "npu:0"), (("sum",), "cpu:0")], *pair)
    _, alone = run([(("neg",), "cpu:0"), (("relu", "abs"), "cpu:0"), (("sum",), "cpu:0")], *pair)
    assert together == pytest.approx(alone)  # nothing is won where both only wait for memory


def test_a_child_refuses_what_a_device_does_not_take(run):
    with pytest.raises(PrepareRefused, match="has no Abs"):
        run(APART, CPU, dataclasses.replace(NPU, attributes={**NPU.attributes, "ops": "Relu"}))


def test_real_and_virtual_time_do_not_mix(run):
    with pytest.raises(OptionError, match="npu:0 run in virtual time and other"):
        run(APART, dataclasses.replace(CPU, attributes={}), NPU)


def open_proto(folder):
    import onnx

    return onnx.load(folder / "fork.onnx")
