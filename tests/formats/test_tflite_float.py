"""Operators without an integer kernel, alone in floats."""

from __future__ import annotations

import numpy as np
import pytest

import edgert
from edgert.formats import open_model
from tests.formats.lacking import LACKING, quantised_with

pytest.importorskip("ai_edge_litert", reason="the models are written with its schema")
from edgert.formats.tflite_float import float_nodes


@pytest.fixture
def model(tmp_path):
    def write(op="SQUARE", **settings):
        path = tmp_path / f"{op.lower()}.tflite"
        path.write_bytes(quantised_with(op, **settings))
        return path

    return write


@pytest.fixture
def load(machine_of, tmp_path):
    """On LiteRT alone, with one thread."""

    def begin(path, budget_s=0.2):
        machine = machine_of("litert")
        return edgert.load(
            path, machine=machine, budget_s=budget_s, cache_dir=tmp_path / "cache", targets=["litert@*/1t"]
        )

    return begin


def by_hand(x, op):
    """The chain of `quantised_with` in numpy, its integers rounded half to even as XNNPACK does."""
    first = np.maximum(x.astype(np.float32) - 3, 0) * np.float32(0.05)
    first = np.clip(np.rint(first / np.float32(0.04)) - 128, -128, 127)
    real = (first.astype(np.float32) + 128) * np.float32(0.04)
    last = {"SQUARE": np.square, "SIN": np.sin, "FLOOR": np.floor, "SIGN": np.sign}[op](real)
    last = np.maximum(last, 0)
    return np.clip(np.rint(last / np.float32(0.1)) + 5, -128, 127).astype(np.int8)


@pytest.mark.parametrize("op", LACKING)
def test_litert_refuses_it_in_integers_and_answers_in_floats(model, load, op):
    path = model(op)
    x = np.random.default_rng(0).integers(-128, 128, (1, 64), np.int8)
    with load(path) as loaded:
        result, rows = loaded.run([x]), loaded.plan.candidates
    assert {str(row.target): row.outcome for row in rows}["litert@cpu:0/i8/1t"] == "refused"
    assert [str(target) for target in result.receipt.targets] == ["litert+mixed@cpu:0/i8/1t"]
    off = np.abs(next(iter(result.values())).astype(int) - by_hand(x, op).astype(int))
    assert off.max() <= 1
    assert (off == 0).mean() > 0.95


def test_only_the_one_operator_is_in_floats(model):
    file = open_model(model())
    content, origin = float_nodes(file, [node.name for node in file.graph.nodes if node.op == "SQUARE"])
    path = file.path.with_name("mixed.tflite")
    path.write_bytes(content)
    nodes = open_model(path).graph.nodes
    assert [node.op for node in nodes] == ["RELU", "DEQUANTIZE", "SQUARE", "QUANTIZE", "RELU"]
    assert origin == (0, None, 1, None, 2)
    values = open_model(path).graph.values
    assert values[nodes[2].inputs[0]].dtype == "float32"
    assert (values[nodes[0].outputs[0]].dtype, values[nodes[3].outputs[0]].dtype) == ("int8", "int8")
    assert values[nodes[3].outputs[0]].quantization == file.graph.values[file.graph.nodes[1].outputs[0]].quantization


def test_quantised_weights_of_such_an_operator_become_floats_channel_by_channel(load, tmp_path):
    from edgert.data import path

    file = open_model(path("digits_i8.tflite"))
    convolution = next(node for node in file.graph.nodes if node.op in ("CONV_2D", "FULLY_CONNECTED"))
    content, _ = float_nodes(file, [convolution.name])
    made = tmp_path / "mixed.tflite"
    made.write_bytes(content)
    again = open_model(made)
    node = next(node for node in again.graph.nodes if node.op == convolution.op)
    for name, was in zip(node.inputs[1:], convolution.inputs[1:], strict=True):
        old = file.graph.constants[was]
        quantization = old.value.quantization
        scales = np.float32(quantization.scales).reshape([-1] + [1] * (len(old.value.shape) - 1))
        np.testing.assert_allclose(again.graph.constants[name].read(), old.read() * scales, rtol=1e-6)
    x = np.random.default_rng(1).integers(-128, 128, file.graph.inputs[0].shape, np.int8)
    answers = []
    for each in (file.path, made):
        with load(each) as loaded:
            answers.append(next(iter(loaded.run([x]).values())).astype(int))
    assert np.abs(answers[0] - answers[1]).max() <= 1


def test_a_model_with_all_its_kernels_is_never_tried_so(model, load):
    with load(model("ABS")) as loaded:
        assert "mixed" not in {row.target.variant for row in loaded.plan.candidates}


def test_an_operator_that_fails_in_floats_too_keeps_its_own_words(model, load):
    with pytest.raises(edgert.errors.ModelUnsupported, match="LOCAL_RESPONSE_NORMALIZATION"):
        load(model("LOCAL_RESPONSE_NORMALIZATION"))  # wants four dimensions in any arithmetic


def test_at_once_it_is_found_too(model, load):
    with load(model(), budget_s=0) as loaded:
        assert [target.variant for target in loaded.plan.targets] == ["mixed"]
