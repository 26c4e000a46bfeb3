"""What answers when the chosen target fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.errors import ModelUnsupported, NoLastResort
from edgert.machine import Device
from edgert.planning.candidates import Candidates
from edgert.planning.fallbacks import fallbacks
from edgert.planning.reference import Reference
from edgert.profile import OutputError, Row, Target

NPU = Device("npu:0", "npu", "made up", 0)
EVALUATOR = Row(Target.parse("reference@cpu:0/i8"), "untried", "last resort")
FOUND = Candidates((), (EVALUATOR,))


def _row(text, outcome="ok", errors=()):
    return Row(Target.parse(text), outcome, errors=errors)


def _order(winner, *rows, reference="onnx", own="i8"):
    found = fallbacks(winner, [winner, *rows], Reference(reference), FOUND, own)
    return [str(target) for target in found]


def test_an_npu_falls_to_other_accelerators_then_to_the_cpu_s_own_arithmetic_then_to_the_evaluator():
    order = _order(
        _row("onnxruntime+qnn@npu:0/i8"), _row("openvino@cpu:0/bf16/2t"), _row("onnxruntime+webgpu@gpu:0/i8"),
        _row("litert@cpu:0/f16/2t"), _row("onnxruntime@cpu:0/i8/2t"),
    )  # fmt: skip
    assert order == [
        "onnxruntime+webgpu@gpu:0/i8", "onnxruntime@cpu:0/i8/2t", "openvino@cpu:0/bf16/2t", "litert@cpu:0/f16/2t",
        "reference@cpu:0/i8",
    ]  # fmt: skip


def test_of_one_library_its_integer_kernels_stand_in_even_where_its_floats_are_faster():
    order = _order(
        _row("onnxruntime+qnn@npu:0/i8"), _row("openvino@cpu:0/bf16/2t"), _row("openvino@cpu:0/i8/2t"),
        _row("openvino@cpu:0/i8/1t"),
    )  # fmt: skip
    assert order == ["openvino@cpu:0/i8/2t", "reference@cpu:0/i8"]


def test_what_did_not_prepare_or_was_wrong_is_in_no_list():
    rows = [
        _row("openvino@cpu:0/i8/2t", outcome) for outcome in ("refused", "crashed", "timeout", "untried", "wrong")
    ]  # fmt: skip
    assert _order(_row("onnxruntime@cpu:0/i8/2t"), *rows) == ["reference@cpu:0/i8"]


def test_where_nothing_confirmed_the_numbers_who_differs_comes_last():
    order = _order(
        _row("litert@cpu:0/i8/2t"), _row("openvino@cpu:0/i8/2t", "wrong", (OutputError("y", 0.1, 3, 20.0, top1=True),)),
        _row("litert+builtin@cpu:0/i8/2t"), reference="",
    )  # fmt: skip
    assert order == ["litert+builtin@cpu:0/i8/2t", "openvino@cpu:0/i8/2t"]


def test_a_model_that_only_an_accelerator_reads_is_refused(line, machine_of, tmp_path):
    machine = machine_of("right@npu:0", "refuses", devices=(NPU,))
    with pytest.raises(NoLastResort, match=r"runs on right@npu:0/f32 alone.*\(refuses@cpu:0/f32: ") as caught:
        edgert.load(line, machine=machine, budget_s=0.2, cache_dir=tmp_path)
    assert isinstance(caught.value, ModelUnsupported)
    assert caught.value.target == "right@npu:0/f32"


def test_who_names_the_accelerator_gets_it_without_a_last_resort(line, machine_of, tmp_path, x):
    machine = machine_of("right@npu:0", "refuses", devices=(NPU,))
    with edgert.load(line, machine=machine, budget_s=0.2, cache_dir=tmp_path, targets=["right@npu:0/f32"]) as model:
        np.testing.assert_array_equal(model.run(x)["y"], 2 * x + 1)
        assert model.plan.fallbacks == ()


def test_a_compiled_context_is_named_for_what_it_is(tmp_path, machine_of):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("EPContext", ["x"], ["y"], name="context", domain="com.microsoft", embed_mode=1)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "compiled", [info("x", 1, ("N", 4))], [info("y", 1, ("N", 4))])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "model_ctx.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    machine = machine_of("right@npu:0", "onnxruntime", devices=(NPU,))
    with pytest.raises(NoLastResort, match=r"holds com\.microsoft::EPContext, a context that one execution provider"):
        edgert.load(path, machine=machine, budget_s=0.2, cache_dir=tmp_path / "cache")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """Two quantised convolutions, and between them an Erf, for which no library has an integer kernel."""
    onnx = pytest.importorskip("onnx")
    make, array, rng = onnx.helper.make_node, onnx.numpy_helper.from_array, np.random.default_rng(0)
    constants = [array(np.float32(scale), name) for name, scale in (("s", 0.05), ("ws", 0.01))]
    constants += [array(np.int8(0), name) for name in ("z", "wz")]
    nodes = []

    def requantise(value, to):
        nodes.append(make("QuantizeLinear", [value, "s", "z"], [f"{value}_q"], f"quantise_{value}"))
        nodes.append(make("DequantizeLinear", [f"{value}_q", "s", "z"], [to], f"restore_{value}"))

    def convolve(value, to, weight):
        constants.append(array(rng.integers(-127, 127, (4, 4, 3, 3), np.int8), weight))
        nodes.append(make("DequantizeLinear", [weight, "ws", "wz"], [f"{weight}_d"], f"restore_{weight}"))
        nodes.append(make("Conv", [value, f"{weight}_d"], [to], f"conv_{weight}", pads=[1, 1, 1, 1]))

    requantise("x", "x_d")
    convolve("x_d", "a", "w1")
    requantise("a", "a_d")
    nodes.append(make("Erf", ["a_d"], ["e"], "erf"))
    requantise("e", "e_d")
    convolve("e_d", "b", "w2")
    requantise("b", "y")
    ends = [[onnx.helper.make_tensor_value_info(name, 1, (1, 4, 8, 8))] for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "quantised", *ends, constants)
    path = tmp_path_factory.mktemp("quantised") / "quantised.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_a_lost_npu_leaves_the_integers_as_they_were(quantised, machine_of, tmp_path, foreign):
    machine = machine_of("genuine@npu:0", "onnxruntime", "openvino", "reference", devices=(NPU,))
    feed = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    with edgert.load(quantised, machine=machine, budget_s=2, cache_dir=tmp_path, precision="any") as model:
        plan, expected = model.plan, model.run(feed)["y"]
    cpu = [target for target in (*plan.targets, *plan.fallbacks) if target.device.startswith("cpu")]
    assert cpu[0].precision == "i8"
    floats = [target.precision != "i8" for target in cpu]
    assert floats == sorted(floats)
    with edgert.load(
        quantised, machine=machine, budget_s=1, cache_dir=tmp_path, targets=["onnxruntime@cpu:0/i8"]
    ) as own:
        np.testing.assert_array_equal(own.run(feed)["y"], expected)


def test_an_op_without_an_integer_kernel_alone_runs_in_floats(quantised, tmp_path, monkeypatch):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from edgert.devices import backend
    from edgert.devices.backend import Source
    from edgert.formats import open_model

    kept = tmp_path / "optimised.onnx"
    session = ort.InferenceSession

    def storing(model, options, **others):
        options.optimized_model_filepath = str(kept)
        return session(model, options, **others)

    monkeypatch.setattr(ort, "InferenceSession", storing)
    file = open_model(quantised)
    source = Source(file.path, file.format, file.graph.inputs, file.graph.outputs, file.precision)
    cpu = Device("cpu:0", "cpu", "one with int8 dot products", 0, features=("avx512_vnni",))
    backend("onnxruntime").prepare(source, Target.parse("onnxruntime@cpu:0/i8/1t"), cpu).close()
    ops = [node.op_type for node in onnx.load(str(kept)).graph.node]
    assert ops.count("QLinearConv") == 2
    assert ops.count("Erf") == 1
    assert "Conv" not in ops


def test_a_plan_that_was_made_at_once_can_fall_to_the_evaluator(line, machine_of, tmp_path):
    machine = machine_of("onnxruntime", "reference")
    with edgert.load(line, machine=machine, budget_s=0, cache_dir=tmp_path, targets=None) as model:
        plan = model.plan
        model.wait_improved()
        later = model.plan
    assert [target.backend for target in plan.fallbacks] == ["reference"]
    assert "reference" in [target.backend for target in (*later.targets, *later.fallbacks)]


@pytest.fixture
def beside(line, tmp_path):
    """The model in a folder of its own, where `marks` leaves its marks and `waits` finds its `go`."""
    folder = tmp_path / "beside"
    folder.mkdir()
    return Path(shutil.copy(line, folder))


@pytest.fixture
def fails(foreign):
    """Makes `fickle` fail in this process from then on."""
    yield foreign.FAIL.set
    foreign.FAIL.clear()


@pytest.mark.parametrize("between", [(), ("refuses", "crashes_in_prepare")])
def test_while_better_is_looked_for_another_library_stands_in_and_is_met_in_a_child(
    beside, machine_of, tmp_path, x, fails, between
):
    machine = machine_of("fickle", *between, "marks", "waits", "reference")  # `waits` keeps the search from its end
    with edgert.load(beside, machine=machine, budget_s=0, cache_dir=tmp_path / "cache") as model:
        assert [target.backend for target in model.plan.fallbacks] == [*between, "marks", "waits", "reference"]
        assert not model.run(x).receipt.degraded
        fails()
        result = model.run(x)
        np.testing.assert_array_equal(result["y"], 2 * x + 1)
        assert [target.backend for target in result.receipt.targets] == ["marks"]
        assert (result.receipt.degraded, result.receipt.verified) == (True, False)
        assert "the device fell off the bus" in result.receipt.reason
        assert not model.wait_improved(0)
        (beside.parent / "go").touch()
        model.wait_improved()


def test_of_a_plan_that_was_made_at_once_nothing_untried_comes_into_this_process(
    beside, machine_of, tmp_path, x, fails
):
    machine = machine_of("fickle", "marks", "waits")
    with edgert.load(beside, machine=machine, budget_s=0, cache_dir=tmp_path / "cache") as model:
        fails()
        model.run(x)
        marks = [int(mark.name.split(".")[1]) for mark in beside.parent.glob("prepared.*")]
        (beside.parent / "go").touch()
    assert marks
    assert os.getpid() not in marks
