"""Real backends at once: ONNX Runtime, OpenVINO, LiteRT, the software GPU and the NPU library.

LiteRT reads TFLite alone, and the GPU and the NPU here ONNX, so it takes two models: one over four targets, one over
two, which share the executor of the CPU.
"""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest

from edgert import data, samples
from edgert.devices import backend
from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.execution import fleet as fleets
from edgert.execution.fleet import Fleet
from edgert.execution.limits import Limits
from edgert.execution.start import start
from edgert.formats import open_model
from edgert.machine import Reach
from edgert.partitioner.blocks import blocks_of
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import Target
from tests.devices.sources import reached

PATIENT = Limits(fewest_hang_s=30.0, lapse_s=30.0, backoff_s=0.01)
CPU = Target("onnxruntime", "cpu:0", "f32", 1)
CORE = min(os.sched_getaffinity(0))
"""Of the one executor that runs the CPU segments of both models."""


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Four convolutions with ReLUs between, of a fixed batch, as the NPU library wants it."""
    onnx = pytest.importorskip("onnx", reason="the model is written with onnx")
    helper, f32 = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(3)
    names = ["x", "a", "b", "c", "y"]
    nodes, constants = [], []
    for number in range(4):
        channels = 3 if number == 0 else 8
        weights = rng.standard_normal((8, channels, 3, 3)).astype(np.float32) / (3 * channels**0.5)
        constants.append(onnx.numpy_helper.from_array(weights, f"w{number}"))
        conv = helper.make_node(
            "Conv", [names[number], f"w{number}"], [f"t{number}"], name=f"conv{number}", pads=[1, 1, 1, 1]
        )
        nodes += [conv, helper.make_node("Relu", [f"t{number}"], [names[number + 1]], name=f"relu{number}")]
    shapes = {name: (1, 3 if name == "x" else 8, 16, 16) for name in (*names, *(f"t{number}" for number in range(4)))}
    infos = {name: helper.make_tensor_value_info(name, f32, shape) for name, shape in shapes.items()}
    middle = [info for name, info in infos.items() if name not in ("x", "y")]
    graph = helper.make_graph(nodes, "network", [infos["x"]], [infos["y"]], constants, value_info=middle)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def executors(monkeypatch):
    """The executors of the process, with limits that a loaded machine keeps."""
    monkeypatch.setattr(fleets, "Fleet", lambda: Fleet(PATIENT))


@pytest.fixture
def digits(executors, tmp_path):
    """A .tflite over LiteRT and OpenVINO, block by block in turn."""
    for package in ("openvino", "ai_edge_litert"):
        pytest.importorskip(package)
    file = open_model(data.path("digits_f32.tflite"))
    graph, machine = file.graph, glance()
    blocks = [tuple(graph.nodes[index].name for index in block.nodes) for block in blocks_of(graph)]
    targets = [Target(("litert", "openvino")[number % 2], "cpu:0", "f32", 1) for number in range(len(blocks))]
    index = {node.name: number for number, node in enumerate(graph.nodes)}
    segments = tuple(
        Segment(target, nodes, *graph.boundary(frozenset(index[name] for name in nodes)))
        for target, nodes in zip(targets, blocks, strict=True)
    )
    crossing = dict.fromkeys(name for segment in segments for name in (*segment.inputs, *segment.outputs))
    plan = Plan(
        file.digest, machine.fingerprint, {}, "latency", "own", "tflite", "f32", graph.inputs, graph.outputs, segments,
        tuple(Instance(number, (CORE,)) for number in range(len(segments))), fallbacks=(targets[1],),
        verification=Verification("onnx"), values=tuple(graph.values[name] for name in crossing),
    )  # fmt: skip
    source = Source(file.path, "tflite", graph.inputs, graph.outputs, "f32")
    pipeline = start(plan, source, machine, tmp_path / "digits")
    yield pipeline, source, machine
    pipeline.close()


@pytest.fixture
def mixed(network, executors, tmp_path):
    """The network over two CPU backends, the GPU and the NPU; three fallbacks."""
    gpu, npu = reached("gpu", "webgpu"), reached("npu", "qnn")
    pytest.importorskip("openvino")
    targets = [
        CPU, Target("onnxruntime", gpu.id, "f32", 0, "webgpu"), Target("openvino", "cpu:0", "f32", 1),
        Target("onnxruntime", npu.id, "f32", 0, "qnn"),
    ]  # fmt: skip
    file = open_model(network)
    graph = file.graph
    names = ["x", "a", "b", "c", "y"]
    segments = tuple(
        Segment(target, (f"conv{number}", f"relu{number}"), (names[number],), (names[number + 1],))
        for number, target in enumerate(targets)
    )
    seen = glance()
    machine = dataclasses.replace(
        seen, devices=(*seen.devices, gpu, npu), reaches=tuple(Reach(each.backend, each.device) for each in targets)
    )
    plan = Plan(
        file.digest, machine.fingerprint, {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs, segments,
        tuple(Instance(number, (CORE,)) for number in range(4)), fallbacks=(Target("openvino", "cpu:0", "f32", 1), CPU),
        verification=Verification("onnx"), values=tuple(graph.values[name] for name in names),
    )  # fmt: skip
    source = Source(network, "onnx", graph.inputs, graph.outputs, "f32")
    pipeline = start(plan, source, machine, tmp_path / "network")
    yield pipeline, source, machine
    pipeline.close()


def test_one_model_runs_on_cpu_gpu_and_npu_at_once_and_survives_the_loss_of_each(mixed):
    pipeline, source, machine = mixed
    alone = backend("onnxruntime").prepare(source, CPU, machine.device("cpu:0"))
    inputs = [
        {"x": np.random.default_rng(seed).standard_normal((1, 3, 16, 16)).astype(np.float32)} for seed in range(8)
    ]  # fmt: skip
    expected = [alone.run(each)["y"] for each in inputs]
    alone.close()

    def check():
        futures = [pipeline.submit(each, lambda made: made) for each in inputs]
        made = [future.result(120) for future in futures]
        for one, right in zip(made, expected, strict=True):
            np.testing.assert_allclose(one.outputs["y"], right, atol=1e-3 * np.ptp(right))
        return made

    for one in check():
        assert (one.targets, one.reason) == (pipeline.plan.targets, "")
        assert {target.device for target in one.targets} == {"cpu:0", "gpu:0", "npu:0"}
    for device in ("gpu:0", "npu:0"):
        os.kill(next(each.pid for each in pipeline.members() if each.place.device == device), signal.SIGKILL)
        assert all(one.reason == "" or one.targets[0].device == "cpu:0" for one in check())
    assert any(event.kind == "lost" for event in pipeline.events())


def test_three_cpu_libraries_a_gpu_and_an_npu_work_at_once(mixed, digits):
    right, feeds = {}, {}
    for name, (pipeline, source, machine) in (("network", mixed), ("digits", digits)):
        target = pipeline.plan.fallbacks[-1]
        alone = backend(target.backend).prepare(source, target, machine.device("cpu:0"))
        feeds[name] = [samples.synthesise(open_model(source.path).graph, seed=seed)[0] for seed in range(8)]
        right[name] = [alone.run(each) for each in feeds[name]]
        alone.close()
    futures = [
        (name, number, pipeline.submit(feeds[name][number], lambda made: made))
        for number in range(8)
        for name, (pipeline, *_) in (("network", mixed), ("digits", digits))
    ]
    seen = set()
    for name, number, future in futures:
        made = future.result(120)
        assert made.reason == ""
        seen |= {(target.backend, target.variant, target.device) for target in made.targets}
        for output, expected in right[name][number].items():
            np.testing.assert_allclose(made.outputs[output], expected, atol=1e-3 * max(np.ptp(expected), 1e-3))
    assert seen == {
        ("onnxruntime", "", "cpu:0"), ("openvino", "", "cpu:0"), ("litert", "", "cpu:0"),
        ("onnxruntime", "webgpu", "gpu:0"), ("onnxruntime", "qnn", "npu:0"),
    }  # fmt: skip
    shared = set(mixed[0].members()) & set(digits[0].members())
    assert [each.place.device for each in shared] == ["cpu:0"]
