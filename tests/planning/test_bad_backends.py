"""Backends of another package that crash, hang, lie or crawl: the answer is right, and each one's row says why it is
not the one that gave it.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

import edgert
from edgert.devices import backend
from edgert.devices.probe import glance
from edgert.errors import ModelUnsupported, UnknownTarget
from edgert.machine import Reach
from edgert.planning.trials import Course

EXPECTED = {  # backend -> outcome, and words of its row's reason
    "crashes_in_prepare": ("crashed", "tensor != nullptr"),
    "dies_in_race": ("crashed", "SIGSEGV"),
    "hangs_in_prepare": ("timeout", "it was killed"),
    "nan": ("wrong", "NaN"),
    "off_by_one_percent": ("wrong", "of its range"),
    "wrong_shape": ("wrong", "shape (8,)"),
    "wrong_dtype": ("wrong", "dtype float64"),
    "no_output": ("wrong", "missing"),
    "wants_too_much": ("out of memory", "Unable to allocate"),
    "eats_memory": ("out of memory", "Unable to allocate"),
    "killed": ("crashed", "somebody killed it"),
    "refuses": ("refused", "Mul is not known"),
    "throws": ("refused", "oops"),
    "slow": ("slow", "the best"),
    "right": ("ok", ""),
}


def rows_of(plan):
    return {row.target.backend: row for row in plan.candidates}


@pytest.fixture(scope="module")
def planned(foreign, line, tmp_path_factory):
    """One model loaded with all of them at once; a preparation counts as hung after two seconds."""
    names = (*EXPECTED, "onnxruntime", "reference")
    machine = dataclasses.replace(glance(), reaches=tuple(Reach(name, "cpu:0") for name in names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Course, "prepare_limit_s", 2.0)
        sample = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
        cache = tmp_path_factory.mktemp("planned")
        with edgert.load(line, machine=machine, budget_s=3, samples=[sample], cache_dir=cache) as model:
            yield model


def test_the_answer_is_right_and_comes_from_the_fast_and_right_one(planned, x):
    result = planned.run({"x": x})
    assert np.array_equal(result["y"], 2 * x + 1)
    assert result.receipt.targets[0].backend == "right"
    assert result.receipt.verified
    assert not result.receipt.degraded


@pytest.mark.parametrize("name", EXPECTED)
def test_the_row_of_each_says_what_it_did(planned, name):
    outcome, words = EXPECTED[name]
    row = rows_of(planned.plan)[name]
    assert row.outcome == outcome
    assert words in row.reason


def test_the_fallbacks_are_among_the_right_ones(planned):
    backends = [target.backend for target in planned.plan.fallbacks]
    assert set(backends) <= {"slow", "onnxruntime", "reference"}
    assert backends[-1] == "reference"


def test_the_plan_explains_every_one_of_them(planned):
    text = planned.plan.explain()
    assert all(f"{name}@cpu:0" in text for name in EXPECTED)


def test_wrong_numbers_are_kept_for_people_to_see(planned):
    (error,) = rows_of(planned.plan)["off_by_one_percent"].errors
    assert 0.009 < error.range_fraction < 0.012


def test_when_all_are_bad_the_evaluator_answers(line, x, machine_of, tmp_path):
    machine = machine_of("nan", "refuses", "off_by_one_percent", "reference")
    with edgert.load(line, machine=machine, budget_s=1, cache_dir=tmp_path) as model:
        result = model.run({"x": x})
    assert np.array_equal(result["y"], 2 * x + 1)
    assert result.receipt.targets[0].backend == "reference"


def test_when_the_only_one_dies_in_the_race_the_evaluator_answers(line, x, machine_of, tmp_path):
    machine = machine_of("dies_in_race", "reference")
    with edgert.load(line, machine=machine, budget_s=5, cache_dir=tmp_path) as model:
        result = model.run({"x": x})
        assert rows_of(model.plan)["dies_in_race"].outcome == "crashed"
    assert np.array_equal(result["y"], 2 * x + 1)


def test_when_the_fast_one_dies_in_the_race_the_slow_one_answers(line, x, machine_of, tmp_path):
    with edgert.load(line, machine=machine_of("dies_in_race", "slow"), budget_s=5, cache_dir=tmp_path) as model:
        result = model.run({"x": x})
    assert result.receipt.targets[0].backend == "slow"


def test_when_nothing_is_left_the_error_gives_each_ones_reason(line, machine_of, tmp_path):
    with pytest.raises(ModelUnsupported, match="Mul is not known") as caught:
        edgert.load(line, machine=machine_of("refuses", "throws"), budget_s=1, cache_dir=tmp_path)
    assert "ZeroDivisionError" in caught.value.message
    assert str(line) in caught.value.message


def test_a_target_that_dies_does_not_take_its_neighbour_along(line, x, machine_of, tmp_path):
    with edgert.load(line, machine=machine_of("half_dies", "reference"), budget_s=5, cache_dir=tmp_path) as model:
        assert str(model.run({"x": x}).receipt.targets[0]) == "half_dies@cpu:0/f32/1t"
        outcomes = {str(row.target): row.outcome for row in model.plan.candidates}
    assert outcomes["half_dies@cpu:0/f32/2t"] == "crashed"


def test_nor_when_throughput_is_measured(line, x, machine_of, tmp_path):
    machine = machine_of("half_dies", "reference")
    with edgert.load(line, machine=machine, objective="throughput", budget_s=5, cache_dir=tmp_path) as model:
        result = model.run({"x": x})
    assert str(result.receipt.targets[0]) == "half_dies@cpu:0/f32/1t"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores for two instances")
@pytest.mark.parametrize("names", [("lonely", "slow"), ("lonely", "reference")], ids=lambda names: names[1])
def test_instances_that_crash_each_other_do_not_end_the_search(line, x, machine_of, tmp_path, names):
    machine = machine_of(*names)
    with edgert.load(line, machine=machine, objective="throughput", budget_s=5, cache_dir=tmp_path) as model:
        futures = [model.submit({"x": x}) for _ in range(8)]
        assert all(np.array_equal(future.result(60)["y"], 2 * x + 1) for future in futures)


def test_what_crashed_once_is_not_tried_again(line, x, machine_of, tmp_path):
    machine = machine_of("crashes_in_prepare", "onnxruntime", "reference")
    for tolerance in (None, 1e-3):  # another wish needs another plan, from the same profile
        with edgert.load(line, machine=machine, budget_s=1, tolerance=tolerance, cache_dir=tmp_path) as model:
            row = rows_of(model.plan)["crashes_in_prepare"]
            assert row.outcome == "crashed"
    assert row.reason.startswith("as before: ")


def test_a_backend_that_does_not_load_breaks_nothing(line, x, machine_of, tmp_path, monkeypatch, foreign):
    monkeypatch.setattr(foreign.Marks, "__init__", lambda self: 1 / 0)
    with pytest.raises(edgert.errors.MissingPackage, match="edgert-foreign") as caught:
        backend("marks")
    assert caught.value.package == "edgert-foreign"
    with edgert.load(line, machine=machine_of("marks", "onnxruntime"), budget_s=1, cache_dir=tmp_path) as model:
        assert model.run({"x": x}).receipt.targets[0].backend == "onnxruntime"


def test_an_unknown_backend_is_refused_with_those_there_are(foreign):
    with pytest.raises(UnknownTarget, match=r"onnxruntime.*right"):
        backend("tensorfast")
