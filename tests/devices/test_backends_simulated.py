from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import helper

from edgert import devices
from edgert.devices.simulated import Backend, operations
from edgert.errors import OptionError, PrepareRefused
from edgert.formats import open_model
from edgert.machine import Device, Machine
from edgert.profile import Target
from edgert.transport.clock import VirtualClock
from tests.devices.sources import CPU, source
from tests.formats.models import chain, info, model, save, weights

X = np.random.default_rng(4).standard_normal((1, 4)).astype(np.float32)


def npu(**attributes):
    return Device("npu:0", "npu", "an NPU on paper", 0, driver="simulated", attributes=attributes)


def time_s(device, proto, folder, feed, runs=1):
    """Virtual seconds of so many runs, and the last outputs."""
    clock = VirtualClock()
    backend, made = Backend(clock), source(proto, folder)
    (target,) = backend.targets(made, device, "", [1, 2])
    runnable = backend.prepare(made, target, device)
    for _ in range(runs):
        outputs = runnable.run(feed)
    assert runnable.ran_on == {device.id: 3 if device.attributes.get("numerics") is None else 5}
    return clock.now_s(), outputs


def test_a_run_costs_what_the_device_declares(tmp_path):
    fast = npu(launch_s="0.25", ops_per_s="1e6", bytes_per_s="1e6")
    graph = open_model(save(chain(), tmp_path / "chain.onnx")).graph
    moved = graph.weight_bytes + X.nbytes + 400 * 4
    declared = 0.25 + operations(graph) / 1e6 + moved / 1e6
    spent, _ = time_s(fast, chain(), tmp_path, {"x": X}, runs=3)
    assert spent == pytest.approx(3 * declared)


def test_the_numbers_are_those_of_the_backend_that_stands_behind(tmp_path):
    _, outputs = time_s(npu(launch_s="1"), chain(), tmp_path, {"x": X})
    made = source(chain(), tmp_path)
    expected = devices.backend("onnxruntime").prepare(made, Target("onnxruntime", "cpu:0", "f32", 1), CPU).run({"x": X})
    np.testing.assert_array_equal(outputs["y"], expected["y"])
    _, slow = time_s(npu(numerics="reference"), chain(), tmp_path, {"x": X})
    np.testing.assert_allclose(slow["y"], expected["y"], rtol=1e-5)


def test_operations_count_two_for_a_multiply_add(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"]),
    ]
    proto = model(nodes, [info("x", shape=(1, 4, 8, 8))], [info("y", shape=(1, 10))],
                  [weights("w", 6, 2, 3, 3), weights("g", 384, 10)])  # fmt: skip
    graph = open_model(save(proto, tmp_path / "conv.onnx")).graph
    assert operations(graph) == 2 * (6 * 8 * 8) * (2 * 3 * 3) + 6 * 8 * 8 + 2 * 384 * 10


def test_a_machine_description_adds_simulated_devices_and_only_this_backend_reaches_them():
    machine = Machine("x86_64", (CPU, npu(ops_per_s="4e12")), (), ())
    again = Machine.from_json(json.loads(json.dumps(machine.to_json())))
    found = {
        (reach.backend, reach.device)
        for name in devices.BACKENDS
        for reach in devices.backend(name).reaches(again.devices)
        if reach.device == "npu:0"
    }
    assert found == {("simulated", "npu:0")}


@pytest.mark.parametrize("attributes", [{"ops_per_s": "fast"}, {"bytes_per_s": "0"}, {"launch_s": "-1"}])
def test_a_speed_that_makes_no_sense_is_named(attributes, tmp_path):
    device = npu(**attributes)
    (name,) = attributes
    with pytest.raises(OptionError, match=rf"npu:0 declares {name}"):
        Backend(VirtualClock()).prepare(source(chain(), tmp_path), Target("simulated", "npu:0", "f32"), device)


def test_another_precision_than_the_models_own_is_refused(tmp_path):
    with pytest.raises(PrepareRefused, match="own precision"):
        Backend(VirtualClock()).prepare(source(chain(), tmp_path), Target("simulated", "npu:0", "bf16"), npu())
