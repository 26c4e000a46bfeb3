"""Splits for throughput: stages on several devices at once, shipped only where they finish more items a second."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.machine import Device

pytest.importorskip("onnx", reason="the models are written with onnx")
GPU = Device("gpu:0", "gpu", "a device on paper", 0, driver="1.0")
ENOUGH_S = 60.0
"""To time every block on both devices on a busy machine too; what is certain sooner ends sooner."""


@pytest.fixture
def model(layers, tmp_path):
    return layers(tmp_path / "layers.onnx", "Relu", "Sigmoid", "Tanh", "Relu", "Sigmoid", "Relu")


def answers_right(load, path, split):
    """Many requests in flight, each answered as the unsplit model answers it."""
    known = load(path, "onnxruntime")
    feeds = [{"x": np.random.default_rng(n).standard_normal((2, 16)).astype(np.float32)} for n in range(20)]
    futures = [split.submit(feed) for feed in feeds]
    for feed, future in zip(feeds, futures, strict=True):
        result = future.result(timeout=60)
        assert result.receipt.targets == split.plan.targets, result.receipt.reason
        np.testing.assert_allclose(result["y"], known.run(feed)["y"], rtol=1e-4, atol=1e-5)


def test_two_equal_devices_get_half_each(load, machine_of, model):
    machine = machine_of("lingers", "lingers@gpu:0", devices=(GPU,))
    split = load(model, machine=machine, objective="throughput", budget_s=ENOUGH_S)
    plan = split.plan
    assert {target.device for target in plan.targets} == {"cpu:0", "gpu:0"}, plan.explain()
    blocks = {"cpu:0": 0, "gpu:0": 0}
    for segment in plan.segments:
        blocks[segment.target.device] += len(segment.nodes) // 2
    assert blocks == {"cpu:0": 3, "gpu:0": 3}
    assert {instance.segment for instance in plan.instances} == set(range(len(plan.segments)))
    (row,) = [row for row in plan.candidates if "the split finishes" in row.reason]
    assert row.timing.items_per_s < plan.items_per_s
    answers_right(load, model, split)


def test_a_split_is_held_to_a_whole_model_on_another_device(load, machine_of, model):
    """The best whole model lives in the child to which links are measured, and stays there, whoever wins."""
    machine = machine_of("ambles", "crawls@gpu:0", devices=(GPU,))
    plan = load(model, machine=machine, objective="throughput", budget_s=ENOUGH_S).plan
    said = [row.reason for row in plan.candidates] + list(plan.notes)
    assert any("the split finishes" in each or "does not win beyond the noise" in each for each in said), plan.explain()


def test_an_op_that_the_fast_one_refuses_is_carried_by_another(load, model):
    split = load(model, "swift", "crawls", objective="throughput", budget_s=ENOUGH_S)
    assert [target.backend for target in split.plan.targets] == ["swift", "crawls", "swift"], split.plan.explain()
    answers_right(load, model, split)


def test_a_device_that_is_much_slower_gets_nothing(load, machine_of, model):
    machine = machine_of("crawls", "trudges@gpu:0", devices=(GPU,))
    plan = load(model, machine=machine, objective="throughput", budget_s=ENOUGH_S).plan
    assert [target.backend for target in plan.targets] == ["crawls"]
    assert any("don't split" in note for note in plan.notes), plan.explain()
