"""Plans as JSON, their identity, and what they tell people."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings

from edgert.errors import UnknownTarget
from edgert.graph import Value
from edgert.plan import FORMAT, Instance, Plan, Residency, Segment, Tolerance, Verification, value_from_json
from edgert.profile import OutputError, Row, Target, Timing
from tests.values import plans, values

BEST, OTHER = Target("openvino", "cpu:0", "f32", 2), Target("onnxruntime", "cpu:0", "f32", 1)


@pytest.fixture
def plan():
    return Plan(
        "digest", "machine", {"openvino": "1"}, "latency", "own", "onnx", "f32",
        (Value("x", "float32", ("N", 4)),), (Value("y", "float32", ("N", 4)),), (Segment(BEST),), (Instance(0),),
        fallbacks=(OTHER,), measured_s=0.0015,
        verification=Verification("onnx", (OutputError("y", 1e-7, 0, 120.0, True),)),
        candidates=(Row(BEST, "ok", timing=Timing(0.0015, 0.001, 0.002, 9, 9)), Row(OTHER, "wrong", "off by 3")),
        notes=("mind the gap",),
    )  # fmt: skip


@given(plans)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_plan_reads_back_from_json_text(drawn):
    read = Plan.from_json(json.loads(json.dumps(drawn.to_json())))
    assert read == drawn
    assert read.id == drawn.id


@given(values)
@settings(deadline=None)
def test_a_value_reads_back_from_json_text(drawn):
    assert value_from_json(json.loads(json.dumps(dataclasses.asdict(drawn)))) == drawn


@pytest.mark.parametrize(
    "change",
    [{"model": "x"}, {"machine": "x"}, {"versions": {}}, {"objective": "throughput"}, {"segments": (Segment(OTHER),)},
     {"instances": (Instance(0, (1,)),)}, {"fallbacks": ()}, {"measured_s": 2.0}, {"candidates": ()}, {"notes": ()},
     {"verification": Verification("")}, {"optional_inputs": ("x",)}, {"inputs": ()}],
)  # fmt: skip
def test_the_identity_changes_with_anything_in_the_plan(plan, change):
    assert dataclasses.replace(plan, **change).id != plan.id


def test_a_plan_whose_segments_take_turns_says_who_is_in_memory_when(plan):
    segments = tuple(Segment(BEST, (f"n{index}",)) for index in range(3))
    residency = Residency(300_000_000, 120_000_000, ((0, 1), (0, 1, 2), (0, 2)), (10_000_000,) * 3, 25_000_000)
    text = dataclasses.replace(plan, segments=segments, residency=residency).explain()
    assert residency.kept == {0}
    assert "memory: at most 300 MB, 120 MB of it for all but the model" in text
    assert (
        "25 MB of them were held in the trial): 3 segments are loaded, run and released in turn; 1 of them stay" in text
    )
    assert "2. 1 nodes from 'n1' to 'n1', 10.0 MB; in memory: 1, 2, 3" in text


def test_a_plan_without_turns_reads_as_before_there_were_any(plan):
    assert "residency" not in plan.to_json()


def test_the_identity_is_twelve_hex_digits_and_stays(plan):
    assert len(plan.id) == 12
    assert int(plan.id, 16) >= 0
    assert dataclasses.replace(plan).id == plan.id


@pytest.mark.parametrize(
    "damage",
    [{"id": "000000000000"}, {"plan_format": FORMAT + 1}, {"model": "another"}, {"segments": [{}]}, {"inputs": 5},
     {"surplus": 1}, {"segments": [{"target": "nonsense", "nodes": [], "inputs": [], "outputs": []}]},
     {"fallbacks": ["nonsense"]}, {"candidates": [{"target": "a@b", "errors": []}]}],
)  # fmt: skip
def test_a_damaged_plan_raises_what_the_cache_expects(plan, damage):
    with pytest.raises((KeyError, TypeError, ValueError, UnknownTarget)):
        Plan.from_json({**plan.to_json(), **damage})


def test_a_plan_is_immutable(plan):
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.model = "x"


def test_explain_names_every_candidate_with_its_reason_and_the_check(plan):
    text = plan.explain()
    for part in (plan.id, str(BEST), str(OTHER), "1.500 ms", "off by 3", "checked: onnx", "120.0 dB", "mind the gap"):
        assert part in text


def test_explain_says_when_nothing_was_timed_or_checked(plan):
    bare = dataclasses.replace(plan, measured_s=0.0, verification=Verification("", (), "no time"), fallbacks=())
    text = bare.explain()
    assert "not timed" in text
    assert "checked: no (no time)" in text
    assert "fallbacks: none" in text


def test_the_default_tolerance_is_the_documented_one():
    assert Tolerance() == Tolerance(range_fraction=1e-4, lsb=1, sqnr_db=35.0, same_top1=True)


def test_a_plan_without_reference_is_not_verified():
    assert not Verification("", (), "none").verified
    assert Verification("onnx").verified
