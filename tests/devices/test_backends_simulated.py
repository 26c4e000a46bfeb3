from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgert import devices
from edgert.devices.backend import Virtual
from edgert.devices.contention import Move, Task, end_s
from edgert.devices.host import Host, source_to_json
from edgert.devices.simulated import Backend
from edgert.devices.simulation import Load, Paper, load_of, operations
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


def graph_of(nodes, inputs, outputs, constants, folder, **more):
    return open_model(save(model(nodes, inputs, outputs, constants, **more), folder / "graph.onnx")).graph


def load(graph, **attributes):
    return load_of(graph, Paper.of(npu(**attributes), "f32"))


@pytest.fixture
def two_layers(tmp_path):
    """x (1, 4, 8, 8) -> Conv -> Relu -> Conv: two kernels with 1 KiB between them."""
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], pads=[1] * 4),
    ]
    shape = (1, 4, 8, 8)
    return graph_of(
        nodes, [info("x", shape=shape)], [info("y", shape=shape)],
        [weights("v", 4, 4, 3, 3), weights("w", 4, 4, 3, 3)], tmp_path,
    )  # fmt: skip


def test_every_run_costs_its_launch_and_every_kernel_its_own(two_layers, tmp_path):
    spent, _ = time_s(npu(launch_s="0.25"), chain(), tmp_path, {"x": X}, runs=3)
    assert spent == pytest.approx(3 * 0.25)
    assert load(two_layers, kernel_s="0.5").seconds == pytest.approx(2 * 0.5)  # the Relu is in the first


def test_a_kernel_takes_what_is_longer_of_computing_and_moving(two_layers):
    values, filters = 4 * 8 * 8 * 4, 4 * 4 * 9 * 4
    moved = 4 * values + 2 * filters  # x, r written, r read, y
    assert load(two_layers, bytes_per_s="1e3") == Load(moved / 1e3, moved / 1e3, moved)
    work = operations(two_layers)
    assert load(two_layers, ops_per_s="1e3", bytes_per_s="1e9").seconds == pytest.approx(work / 1e3)


def test_what_fits_on_the_chip_does_not_go_to_memory(two_layers):
    inner, filters = 2 * 4 * 8 * 8 * 4, 2 * 4 * 4 * 9 * 4
    everywhere = load(two_layers, bytes_per_s="1e3").bytes
    assert load(two_layers, bytes_per_s="1e3", sram_bytes="1024").bytes == everywhere - inner
    assert load(two_layers, bytes_per_s="1e3", sram_bytes="1023").bytes == everywhere
    assert load(two_layers, bytes_per_s="1e3", store_bytes="1152").bytes == everywhere - filters


def test_a_whole_costs_less_than_its_parts(two_layers, tmp_path):
    nodes = [helper.make_node("Conv", ["x", "v"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["r"])]
    sides = [info("x", shape=(1, 4, 8, 8))], [info("r", shape=(1, 4, 8, 8))]
    first = graph_of(nodes, *sides, [weights("v", 4, 4, 3, 3)], tmp_path)
    nodes = [helper.make_node("Conv", ["r", "w"], ["y"], pads=[1] * 4)]
    sides = [info("r", shape=(1, 4, 8, 8))], [info("y", shape=(1, 4, 8, 8))]
    second = graph_of(nodes, *sides, [weights("w", 4, 4, 3, 3)], tmp_path)
    chip = {"bytes_per_s": "1e3", "sram_bytes": "1e6"}
    parts = load(first, **chip).seconds + load(second, **chip).seconds
    assert load(two_layers, **chip).seconds == pytest.approx(parts - 2 * 1024 / 1e3)


def test_a_table_is_read_where_it_is_looked_up_only(tmp_path):
    graph = graph_of(
        [helper.make_node("Gather", ["t", "i"], ["y"])], [info("i", TensorProto.INT64, (2,))],
        [info("y", shape=(2, 8))], [weights("t", 1000, 8)], tmp_path,
    )  # fmt: skip
    assert load(graph, bytes_per_s="1").bytes == 2 * 8 + 2 * (2 * 8 * 4)


def test_the_numbers_are_those_of_the_backend_that_stands_behind(tmp_path):
    _, outputs = time_s(npu(launch_s="1"), chain(), tmp_path, {"x": X})
    made = source(chain(), tmp_path)
    expected = devices.backend("onnxruntime").prepare(made, Target("onnxruntime", "cpu:0", "f32", 1), CPU).run({"x": X})
    np.testing.assert_array_equal(outputs["y"], expected["y"])
    _, slow = time_s(npu(numerics="reference"), chain(), tmp_path, {"x": X})
    np.testing.assert_allclose(slow["y"], expected["y"], rtol=1e-5)


def test_f16_rounds_what_goes_in_and_comes_out(tmp_path):
    device, made, backend = npu(precisions="f32 f16"), source(chain(), tmp_path), Backend(VirtualClock())
    whole, half = backend.targets(made, device, "", [1])
    assert (whole.precision, half.precision) == ("f32", "f16")
    rounded = X.astype(np.float16).astype(np.float32)
    expected = backend.prepare(made, whole, device).run({"x": rounded})["y"].astype(np.float16)
    np.testing.assert_array_equal(backend.prepare(made, half, device).run({"x": X})["y"], expected.astype(np.float32))


def test_operations_count_two_for_a_multiply_add(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"]),
    ]
    graph = graph_of(
        nodes, [info("x", shape=(1, 4, 8, 8))], [info("y", shape=(1, 10))],
        [weights("w", 6, 2, 3, 3), weights("g", 384, 10)], tmp_path,
    )  # fmt: skip
    assert operations(graph) == 2 * (6 * 8 * 8) * (2 * 3 * 3) + 6 * 8 * 8 + 2 * 384 * 10
    slow = load(graph, ops_per_s="1e3", depthwise="0.5").seconds
    assert slow == pytest.approx((2 * operations(graph) - 6 * 8 * 8 - 2 * 384 * 10) / 1e3, rel=0.01)


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
    faster = Machine("x86_64", (CPU, npu(ops_per_s="5e12")), (), ())
    assert faster.fingerprint != machine.fingerprint


@pytest.mark.parametrize(
    "attributes",
    [{"ops_per_s": "fast"}, {"bytes_per_s": "0"}, {"launch_s": "-1"}, {"time": "slow"}, {"precisions": "f32 f12"}],
)
def test_a_declaration_that_makes_no_sense_is_named(attributes, tmp_path):
    device = npu(**attributes)
    (name,) = attributes
    with pytest.raises(OptionError, match=rf"npu:0 declares {name.removesuffix('s')}"):
        Backend(VirtualClock()).prepare(source(chain(), tmp_path), Target("simulated", "npu:0", "f32"), device)


@pytest.mark.parametrize("declared", [{}, {"precisions": "i8"}])
def test_a_precision_that_it_does_not_have_is_refused(declared, tmp_path):
    wanted = "f32" if declared else "bf16"
    with pytest.raises(PrepareRefused, match="computes a model of f32 at"):
        Backend(VirtualClock()).prepare(
            source(chain(), tmp_path), Target("simulated", "npu:0", wanted), npu(**declared)
        )


def test_an_op_that_it_does_not_have_is_refused_by_name(tmp_path):
    made, target = source(chain(), tmp_path), Target("simulated", "npu:0", "f32")
    ops = {node.op for node in open_model(made.path).graph.nodes}
    odd = min(ops)
    with pytest.raises(PrepareRefused, match=f"an NPU on paper has no {odd}"):
        Backend(VirtualClock()).prepare(made, target, npu(ops=" ".join(ops - {odd})))
    Backend(VirtualClock()).prepare(made, target, npu(ops=" ".join(ops)))


def hosted(folder, device, *, samples=("s",)):
    """A host that holds the chain on the device, as a child would."""
    host, made = Host(), source(chain(), folder)
    fields = {name: getattr(device, name) for name in Device.__dataclass_fields__}
    body = {"source": source_to_json(made), "target": "simulated@npu:0/f32", "device": fields, "cache": ""}
    number = host.handle("prepare", body, {})[0]["id"]
    for sample in samples:
        host.handle("hold", {"sample": sample}, {"x": X})
    return host, number


def test_a_host_reports_virtual_time_and_nobody_waits(tmp_path):
    host, number = hosted(tmp_path, npu(time="virtual", launch_s="3600"))
    started_s = time.monotonic()
    body, outputs = host.handle("run", {"id": number, "sample": "s"}, {})
    assert body["run_s"] == pytest.approx(3600)
    assert set(outputs) == {"y"}
    body, _ = host.handle("time", {"id": number, "sample": "s", "calls": 5, "at_most_s": 1e9}, {})
    assert body["seconds"] == pytest.approx([3600] * 5)
    body, _ = host.handle("throughput", {"ids": [number], "cores": [[]], "sample": "s", "seconds": 36000.0}, {})
    assert body["items"] == 10
    assert time.monotonic() - started_s < 3600


def test_jitter_is_seeded_and_of_the_declared_size(tmp_path):
    def series(seed):
        host, number = hosted(tmp_path, npu(time="virtual", launch_s="1", jitter="0.05", seed=seed))
        ask = {"id": number, "sample": "s", "calls": 400, "at_most_s": 1e9}
        return host.handle("time", ask, {})[0]["seconds"]

    first = series("a")
    assert first == series("a")
    assert first != series("b")
    assert np.std(np.log(first)) == pytest.approx(0.05, rel=0.15)


def test_a_transfer_takes_what_its_link_declares(tmp_path):
    def transfer(device):
        fields = {name: getattr(device, name) for name in Device.__dataclass_fields__}
        return Host().handle("transfer", {"device": fields}, {"x": np.zeros(1000, np.uint8)})[0]["seconds"]

    assert transfer(npu(time="virtual", link_s="2", link_bytes_per_s="100")) == pytest.approx(12.0)
    assert transfer(npu(link_s="2")) is None  # in real time: whoever sends it can tell
    assert transfer(CPU) is None


def test_real_time_is_waited_for(tmp_path):
    host, number = hosted(tmp_path, npu(launch_s="0.02"))
    body, _ = host.handle("run", {"id": number, "sample": "s"}, {})
    assert body["run_s"] >= 0.02
    assert not isinstance(host._runnables[number], Virtual)


COMPUTES, STREAMS = Load(4.0, 0.0, 0.0), Load(4.0, 4.0, 40.0)


@pytest.mark.parametrize(
    ("tasks", "moves", "expected"),
    [
        ([Task("a", COMPUTES), Task("b", COMPUTES)], [], 4.0),
        ([Task("a", COMPUTES), Task("a", COMPUTES)], [], 8.0),
        ([Task("a", STREAMS)], [], 4.0),
        ([Task("a", STREAMS), Task("b", COMPUTES)], [], 4.0),
        ([Task("a", STREAMS), Task("b", STREAMS)], [], 8.0),  # each gets half of 10 bytes a second
        ([Task("a", STREAMS), Task("b", Load(4.0, 2.0, 40.0))], [], 7.0),  # 6 s for the half that computes, then alone
        ([Task("a", COMPUTES), Task("b", COMPUTES)], [Move(0, (1,), 3.0)], 11.0),
        ([Task("a", COMPUTES), *[Task("b", COMPUTES)] * 2], [Move(0, (1,), 3.0), Move(0, (2,), 3.0)], 15.0),
        ([Task("a", COMPUTES), Task("b", Load(1.0, 0.0, 0.0))], [Move(0, (1,), 3.0), Move(0, (1,), 3.0)], 11.0),
    ],
)  # fmt: skip
def test_segments_wait_for_devices_links_and_memory(tasks, moves, expected):
    assert end_s(tasks, moves, 10.0) == pytest.approx(expected)


def test_segments_that_wait_for_each_other_are_refused():
    with pytest.raises(OptionError, match="wait for each other"):
        end_s([Task("a", COMPUTES), Task("b", COMPUTES)], [Move(0, (1,), 1.0), Move(1, (0,), 1.0)], math.inf)
