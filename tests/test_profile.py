"""Targets as text, and profiles as JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import UnknownTarget
from edgert.profile import PRECISIONS, OutputError, Profile, Row, Target, Timing
from tests.values import rows, targets


@given(targets)
@settings(deadline=None)
def test_a_target_reads_back_from_its_text(target):
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "openvino", "openvino@cpu:0", "openvino@cpu/f32", "openvino@cpu:0/f33", "openvino@cpu:0/f32/2", "@cpu:0/f32",
     "a@cpu:0/f32/2t ", "a b@cpu:0/f32", "a+@cpu:0/f32", "a@cpu:0/f32\n", "../x@cpu:0/f32", "a@cpu:0/f32/-1t"],
)  # fmt: skip
def test_a_malformed_target_is_refused_with_the_form(text):
    with pytest.raises(UnknownTarget, match=r"backend.*@device/precision") as caught:
        Target.parse(text)
    assert repr(text) in caught.value.message


def test_precisions_are_the_documented_ones():
    assert PRECISIONS == ("f64", "f32", "f16", "bf16", "i8")


@given(st.lists(rows, max_size=4, unique_by=lambda row: row.target))
@settings(deadline=None)
def test_a_profile_reads_back_from_json_text(drawn):
    profile = Profile("m", "f", {"onnxruntime": "1"}, "synthesised:0", "onnx", tuple(drawn))
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_a_newer_row_replaces_the_old_one_of_its_target():
    one, two = Target("a", "cpu:0", "f32"), Target("b", "cpu:0", "f32")
    profile = Profile("m", "f", {}, "", "", (Row(one, "ok"), Row(two, "ok")))
    newer = profile.with_row(Row(one, "crashed"))
    assert newer.row(one).outcome == "crashed"
    assert newer.row(two).outcome == "ok"
    assert len(newer.rows) == 2
    assert newer.row(Target("c", "cpu:0", "f32")) is None


def test_infinite_distances_survive_json():
    odd = OutputError("y", math.inf, 0, -math.inf, False, math.inf, "odd")
    row = Row(Target("a", "cpu:0", "f32"), "wrong", errors=(odd,))
    profile = Profile("m", "f", {}, "", "", (row,))
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


@pytest.mark.parametrize("damage", [{"rows": 3}, {"rows": [{}]}, {"surplus": 1}, {"rows": [{"target": 3}]}])
def test_a_malformed_profile_raises_what_the_cache_expects(damage):
    data = Profile("m", "f", {}, "", "", ()).to_json()
    with pytest.raises((KeyError, TypeError, ValueError, UnknownTarget)):
        Profile.from_json({**data, **damage})


def test_timings_default_to_no_throughput():
    assert (Timing(1, 1, 1, 1, 1).items_per_s, Timing(1, 1, 1, 1, 1).instances) == (0.0, 1)
