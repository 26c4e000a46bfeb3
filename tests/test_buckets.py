"""Shape buckets: near sizes share one, a fixed axis counts for nothing, samples of one bucket stay together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.buckets import bucket_of, free_axes, grouped, shapes_of, text_of
from edgert.graph import Value

INPUTS = (Value("x", "float32", ("N", 16)), Value("mask", "int64", (1, "T")), Value("k", "int64", ()))
AXES = free_axes(INPUTS)


def test_only_open_dimensions_of_tensors_are_free():
    assert AXES == (("x", 0), ("mask", 1))
    assert free_axes([Value("s", "float32", ("N",), "sequence"), Value("u", None, None)]) == ()


@given(st.integers(1, 1 << 20))
def test_a_bucket_ends_at_a_power_of_two_and_begins_beyond_half_of_it(size):
    (found,) = bucket_of((("x", 0),), {"x": (size,)})
    assert found & (found - 1) == 0
    assert found / 2 < size <= found


def test_an_input_that_is_left_out_and_an_empty_one_have_a_bucket():
    assert bucket_of(AXES, {"x": (0, 16)}) == (0, 0)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_samples_are_grouped_as_requests_are(sizes):
    samples = [{"x": np.zeros((size, 16)), "k": np.zeros(())} for size in sizes]
    groups = grouped(samples)
    buckets = [{bucket_of(AXES, shapes_of(sample)) for sample in group} for group in groups]
    assert all(len(own) == 1 for own in buckets)
    assert len({bucket for own in buckets for bucket in own}) == len(groups)
    assert sum(map(len, groups)) == len(samples)
    assert groups[0][0] is samples[0]


def test_the_text_names_what_is_free():
    assert text_of(AXES, {"x": (2, 16), "mask": (1, 7), "k": ()}) == "x 2x16, mask 1x7"


@pytest.mark.parametrize("other", [[1.0, 2.0], {"a": 1}, None])
def test_what_is_no_array_decides_nothing(other):
    assert len(grouped([{"x": np.zeros(3), "y": other}, {"x": np.zeros(4), "y": other}])) == 1
