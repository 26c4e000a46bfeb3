"""Models with free dimensions: a plan a shape bucket, right answers everywhere, receipts that say what was measured."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the models are written with onnx")
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "Relu", "Sigmoid", "Relu")


def rows(count):
    return {"x": np.random.default_rng(count).standard_normal((count, 16)).astype(np.float32)}


@pytest.fixture
def free(layers, tmp_path):
    """Six layers, the third with a Tanh, for any number of rows."""
    return layers(tmp_path / "free.onnx", *ACTIVATIONS, batch="N")


def test_a_split_answers_right_at_other_shapes_and_says_so(load, free):
    model, known = load(free, "swift", "crawls", samples=[rows(2)]), load(free, "onnxruntime")
    assert [segment.target.backend for segment in model.plan.segments] == ["swift", "crawls", "swift"]
    assert model.plan.shapes == {"x": (2, 16)}
    for count, elsewhere in ((2, ""), (1, "x 2x16"), (3, "x 2x16"), (200, "x 2x16")):
        result = model.run(rows(count))
        assert (result.receipt.elsewhere, result.receipt.degraded) == (elsewhere, False)
        np.testing.assert_allclose(result["y"], known.run(rows(count))["y"], rtol=1e-4, atol=1e-5)


def test_a_split_that_holds_for_one_shape_alone_is_not_made(load, free):
    proto = onnx.load(free)
    for value in proto.graph.value_info:  # as a careless exporter has it
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, free)
    model, known = load(free, "swift", "crawls", samples=[rows(2)]), load(free, "onnxruntime")
    assert len(model.plan.segments) == 1
    assert any("is for one shape alone: it fails at x 5x16" in note for note in model.plan.notes)
    np.testing.assert_allclose(model.run(rows(7))["y"], known.run(rows(7))["y"], rtol=1e-4, atol=1e-5)


def test_a_plan_without_samples_says_at_which_shapes_it_was_measured(load, free):
    plan = load(free, "swift", "crawls").plan
    assert plan.shapes == {"x": (1, 16)}


def test_each_bucket_gets_the_plan_that_is_best_there(load, free):
    model = load(free, "rowwise", "crawls", samples=[rows(1), rows(30), rows(32)])
    assert [plan.targets[0].backend for plan in model.plans] == ["rowwise", "crawls"]
    assert [plan.shapes["x"] for plan in model.plans] == [(1, 16), (30, 16)]
    small, large, between = (model.run(rows(count)).receipt for count in (1, 17, 8))
    assert [receipt.targets[0].backend for receipt in (small, large, between)] == ["rowwise", "crawls", "rowwise"]
    assert [receipt.elsewhere for receipt in (small, large, between)] == ["", "", "x 1x16"]
    assert large.plan == model.plans[1].id
    assert model.submit(rows(20)).result().receipt.targets == large.targets


def test_buckets_with_one_plan_share_what_is_prepared(load, free):
    model = load(free, "crawls", samples=[rows(1), rows(32)])
    assert len(model.plans) == 1
    assert model.run(rows(32)).receipt.elsewhere == ""
    assert model.run(rows(8)).receipt.elsewhere == "x 1x16"


def test_the_next_load_finds_the_plans_of_all_buckets(load, free, monkeypatch, kept):
    first = load(free, "rowwise", "crawls", samples=[rows(1), rows(32)], cache_dir=kept)
    monkeypatch.setattr("edgert.planning.make_plan", lambda *_: pytest.fail("planned again"))
    second = load(free, "rowwise", "crawls", samples=[rows(1), rows(32)], cache_dir=kept)
    assert second.plans == first.plans


def test_closing_closes_the_models_of_all_buckets(load, free, kept):
    model = load(free, "rowwise", "crawls", samples=[rows(1), rows(32)], cache_dir=kept)
    (other,) = model._others.values()
    model.close()
    with pytest.raises(Exception, match="was closed"):
        other.run(rows(32))
