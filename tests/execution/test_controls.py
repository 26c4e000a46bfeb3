"""Inputs that steer a model: a value that nothing was checked on is checked when it first comes."""

from __future__ import annotations

import numpy as np
import pytest

import edgert
from edgert.devices.probe import glance
from edgert.errors import ChildTimeout, RunFailed
from edgert.execution import controls
from edgert.execution.controls import Watch
from edgert.execution.pipeline import Made
from edgert.formats import open_model
from edgert.graph import Value
from edgert.machine import Device
from edgert.plan import Controls, Instance, Plan, Segment, Verification
from edgert.profile import Target

onnx = pytest.importorskip("onnx")
X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def feed(*axes):
    return {"x": X, "axes": np.array(axes)}


@pytest.fixture
def sums(tmp_path):
    """Sums over an axis that an input names."""
    info, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    node = onnx.helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    inputs = [info("x", types.FLOAT, [2, 3, 4]), info("axes", types.INT64, [1])]
    graph = onnx.helper.make_graph([node], "sums", inputs, [info("y", types.FLOAT, ["a", "b", "c"])])
    path = tmp_path / "sums.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def blind(sums, machine_of, tmp_path):
    """Loaded on a backend that is right for the axes that it was checked on and wrong for negative ones."""
    machine = machine_of("blind", "onnxruntime", "reference")
    with edgert.load(sums, machine=machine, targets=["blind@*"], budget_s=0.3, cache_dir=tmp_path / "cache") as model:
        yield model


def test_a_wrong_answer_for_a_new_value_is_replaced_and_the_receipt_says_so(blind):
    for call in (blind.run, lambda inputs: blind.submit(inputs).result()):
        result = call(feed(-1))
        np.testing.assert_array_equal(result["y"], X.sum(axis=-1, keepdims=True))
        assert result.receipt.targets[0].backend == "reference"
        assert result.receipt.verified
        assert result.receipt.degraded
        assert "steering inputs: output 'y': has shape (2, 1, 4), not (2, 3, 1)" in result.receipt.reason


def test_the_target_keeps_the_values_for_which_it_is_right(blind):
    for axis in (0, 1, 2, 0, -2):
        result = blind.run(feed(axis))
        np.testing.assert_array_equal(result["y"], X.sum(axis=axis, keepdims=True))
        assert (result.receipt.targets[0].backend == "blind") == (axis != -2)
        assert result.receipt.verified


def test_a_plan_remembers_what_steers_it_and_what_was_checked(blind):
    assert blind.plan.controls is not None
    assert blind.plan.controls.names == ("axes",)
    assert len(blind.plan.controls.checked) >= 1
    assert Plan.from_json(blind.plan.to_json()) == blind.plan


def test_an_ordinary_model_has_nothing_to_watch(line, machine_of, tmp_path):
    with edgert.load(line, machine=machine_of("right", "reference"), budget_s=0.3, cache_dir=tmp_path) as model:
        assert model.plan.controls is None
        assert "controls" not in model.plan.to_json()


def test_whoever_sends_new_values_without_end_pays_for_a_limited_time(blind, monkeypatch):
    monkeypatch.setattr(controls, "SPEND_LIMIT_S", -1.0)
    result = blind.run(feed(-1))
    assert result.receipt.targets[0].backend == "blind"
    assert not result.receipt.verified


def target(backend):
    return Target(backend, "cpu:0", "f32", 1)


def plan_of(*fallbacks):
    value = Value("y", "float32", (1,))
    return Plan(
        "m", "h", {}, "latency", "own", "onnx", "f32", (Value("k", "int64", ()),), (value,),
        (Segment(target("a")),), (Instance(0),), fallbacks=tuple(map(target, fallbacks)),
        verification=Verification("onnx"), controls=Controls(("k",), ()),
    )  # fmt: skip


class Answers:
    """A target that answers one number, or refuses."""

    def __init__(self, backend, number):
        self.name, self.targets, self.number, self.asked = backend, (target(backend),), number, 0

    def run(self, inputs):
        self.asked += 1
        if self.number is None:
            raise RunFailed(f"{self.name} refuses.")
        return {"y": np.float32([self.number])}

    def close(self):
        self.number = None


def watched(own, law, **fallbacks):
    """Receives (answer, confirmed, who) for k = 1, and the parts."""
    first, judge = Answers("a", own), Answers("law", law)
    others = {target(name): Answers(name, number) for name, number in fallbacks.items()}
    others.setdefault(target("b"), Answers("b", None))
    watch = Watch(plan_of(*fallbacks), judge.run, lambda wanted: others.get(wanted, Answers("none", None)))
    made = [
        watch.run({"k": np.array(1)}, lambda inputs: Made(first.run(inputs), first.targets, "")) for _ in range(3)
    ]  # fmt: skip
    told = {(float(each.outputs["y"][0]), each.confirmed, each.target.backend) for each in made}
    assert len(told) == 1
    assert judge.asked == 1
    return told.pop()


def test_an_answer_that_the_reference_confirms_is_confirmed_once_for_all():
    assert watched(5, 5, b=7) == (5, True, "a")


def test_the_first_fallback_that_is_right_answers_instead():
    assert watched(5, 6, b=7, c=6, d=6) == (6, True, "c")


def test_two_libraries_against_the_reference_dispute_it():
    assert watched(5, 6, b=5, c=6) == (5, False, "a")


def test_without_a_reference_another_library_confirms_or_nobody_does():
    assert watched(5, None, b=5) == (5, True, "a")
    assert watched(5, None, b=7) == (5, False, "a")
    assert watched(5, None) == (5, False, "a")


def test_a_reference_that_is_too_slow_is_asked_once_and_another_library_from_then_on():
    first, asked = Answers("a", 5), []

    def late(inputs):
        asked.append(inputs)
        raise ChildTimeout("no answer.", timeout_s=2.0)

    watch = Watch(plan_of("b"), late, lambda wanted: Answers("b", 5))
    for k in range(4):
        made = watch.run({"k": np.array(k)}, lambda inputs: Made(first.run(inputs), first.targets, ""))
        assert made.confirmed
    assert len(asked) == 1


def test_a_device_in_a_child_is_watched_too(sums, machine_of, tmp_path):
    gpu = Device("gpu:0", "gpu", "a GPU", 0)
    machine = machine_of("blind@gpu:0", "onnxruntime", "reference", devices=(gpu,))
    with edgert.load(sums, machine=machine, targets=["blind@*"], budget_s=0.3, cache_dir=tmp_path / "cache") as model:
        assert str(model.plan.targets[0]).startswith("blind@gpu:0")
        results = [model.run(feed(axis)) for axis in (1, -1)]
    assert [result.receipt.targets[0].backend for result in results] == ["blind", "reference"]
    assert all(result.receipt.verified for result in results)


STEERED = {
    "Reshape": (("x", "shape"), {"shape": ("int64", (2,))}, ("shape",)),
    "Slice": (("x", "s", "e"), {"s": ("int64", (1,)), "e": ("int64", (1,))}, ("s", "e")),
    "Gather": (("x", "i"), {"i": ("int64", (3,))}, ()),
    "Add": (("x", "b"), {"b": ("float32", (1,))}, ()),
    "Resize": (("x", "", "scales"), {"scales": ("float32", (2,))}, ("scales",)),
    "TopK": (("x", "k"), {"k": ("int64", (1,))}, ("k",)),
}


@pytest.mark.parametrize("op", STEERED)
def test_what_steers_a_kernel_is_found_and_data_is_not(op, tmp_path):
    reads, others, wanted = STEERED[op]
    info = onnx.helper.make_tensor_value_info
    types = {"int64": onnx.TensorProto.INT64, "float32": onnx.TensorProto.FLOAT}
    inputs = [info("x", types["float32"], (4, 6)), *(info(name, types[kind], size) for name, (kind, size) in
                                                     others.items())]  # fmt: skip
    node = onnx.helper.make_node(op, reads, ["y"] + (["z"] if op == "TopK" else []))
    graph = onnx.helper.make_graph([node], "g", inputs, [info("y", types["float32"], None)])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    assert edgert.samples.controls(open_model(path).graph) == wanted


def test_a_tflite_model_is_watched_with_litert_own_reference_kernels(tmp_path):
    models = pytest.importorskip("tests.formats.models", reason="written with ai-edge-litert's schema")
    flat = models.Flat()
    graph = flat.subgraph()
    x, order = flat.tensor(graph, "x", (2, 3)), flat.tensor(graph, "order", (2,), "INT32")
    turned, y = flat.tensor(graph, "turned", (3, 2)), flat.tensor(graph, "y", (3, 2))
    flat.op(graph, "TRANSPOSE", [x, order], [turned], "TransposeOptions")
    flat.op(graph, "ADD", [turned, turned], [y], "AddOptions")
    graph.inputs, graph.outputs = [x, order], [y]
    path = tmp_path / "turn.tflite"
    path.write_bytes(flat.bytes())
    with edgert.load(path, budget_s=0.5, machine=glance(), cache_dir=tmp_path / "cache") as model:
        assert model.plan.controls.names == ("order",)
        for axes in ((1, 0), (0, 1), (1, 0)):
            result = model.run({"x": X[0, :2, :3], "order": np.int32(axes)})
            np.testing.assert_array_equal(result["y"], 2 * X[0, :2, :3].transpose(axes))
            assert result.receipt.verified
