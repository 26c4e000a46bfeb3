"""Distances between answers, and when they are near enough."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.graph import Graph, Node, Value
from edgert.plan import Tolerance
from edgert.verify import compare, draws_random_numbers, judge, same_form, worst

floats = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20)


def one(expected, got, step=0.0):
    return compare({"y": expected}, {"y": got}, {"y": step} if step else {})[0]


def verdict(expected, got, own="f32", precision="f32", tolerance=None, step=0.0):
    dtype = np.asarray(expected).dtype.name
    return judge((one(expected, got, step),), tolerance or Tolerance(), own, precision, {"y": dtype})


@given(floats)
def test_an_answer_is_at_no_distance_from_itself(numbers):
    array = np.float32(numbers)
    error = one(array, array.copy())
    assert (error.range_fraction, error.lsb, error.sqnr_db, error.top1, error.mismatch) == (0.0, 0, math.inf, True, "")


@given(floats, st.floats(2e-4, 1))
def test_an_answer_beyond_the_tolerance_is_never_right(numbers, share):
    array = np.float64([*numbers, max(numbers) + 1])
    off = array.copy()
    off[0] += share * (array.max() - array.min())
    assert verdict(array, off, own="f64", precision="f64")


@given(floats)
def test_a_millionth_of_the_range_is_right(numbers):
    array = np.float64([*numbers, max(numbers) + 1])
    assert not verdict(array, array + 1e-6 * (array.max() - array.min()), own="f64", precision="f64")


@pytest.mark.parametrize(
    "got",
    [np.zeros((2, 1), np.float32), np.zeros(3, np.float32), np.zeros(2, np.float64), np.zeros(2, np.int32),
     np.array(["a", "b"], object), None, [np.zeros(2, np.float32)], {"a": 1}],
    ids=["rank", "size", "wider", "integers", "text", "empty", "sequence", "map"],
)  # fmt: skip
def test_no_tolerance_forgives_another_form(got):
    generous = Tolerance(range_fraction=math.inf, lsb=1 << 30, sqnr_db=-math.inf, same_top1=False)
    assert verdict(np.zeros(2, np.float32), got, tolerance=generous)


def test_an_output_that_is_missing_is_never_right():
    (error,) = compare({"y": np.zeros(2, np.float32)}, {}, {})
    assert "missing" in judge((error,), Tolerance(), "f32", "f32", {"y": "float32"})


@pytest.mark.parametrize(
    ("expected", "got", "right"),
    [([1, np.nan], [1, np.nan], True), ([1, np.nan], [1, 2], False), ([1, 2], [1, np.nan], False),
     ([1, np.inf], [1, np.inf], True), ([1, np.inf], [1, -np.inf], False), ([np.nan], [np.nan], True),
     ([1, 2], [np.inf, 2], False), ([0, 0], [0, 1e-5], True), ([0, 0], [0, 1], False), ([5, 5], [5, 5.0001], True)],
)  # fmt: skip
def test_nan_infinity_and_constants_are_compared_for_what_they_are(expected, got, right):
    assert (verdict(np.float32(expected), np.float32(got)) == "") is right


@pytest.mark.parametrize(
    ("own", "off", "right"), [("f32", 0, True), ("f32", 1, False), ("i8", 1, True), ("i8", 2, False), ("i8", -1, True)]
)
def test_integers_may_differ_by_one_step_where_the_model_is_quantised(own, off, right):
    array = np.arange(10, dtype=np.int8)
    other = array.copy()
    other[3] += off
    assert (verdict(array, other, own=own, precision=own) == "") is right


def test_indices_are_exact_also_in_a_quantised_model():
    assert verdict(np.arange(5), np.arange(5) + 1, own="i8", precision="i8")


def test_integer_differences_do_not_wrap_around():
    assert one(np.array([-128], np.int8), np.array([127], np.int8)).lsb == 255
    assert one(np.array([0], np.uint64), np.array([2**64 - 1], np.uint64)).lsb == 2**64 - 1


def test_steps_of_a_dequantised_output_count_as_integers_do():
    array = np.arange(8, dtype=np.float32) * 0.5
    assert one(array, array + 0.5, step=0.5).lsb == 1
    assert one(array, array + 0.75, step=0.5).lsb == 2


def test_a_lower_precision_is_judged_by_its_noise_and_its_top1():
    rng = np.random.default_rng(0)
    array = np.sort(rng.standard_normal(100).astype(np.float32))
    near = array * np.float32(1.003)  # 50 dB
    swapped = near.copy()
    swapped[[-1, -2]] = swapped[[-2, -1]]
    assert verdict(array, near, precision="f32")
    assert not verdict(array, near, precision="bf16")
    assert "top-1" in verdict(array, swapped, precision="bf16")
    assert not verdict(array, swapped, precision="bf16", tolerance=Tolerance(same_top1=False))
    assert "SQNR" in verdict(array, array * np.float32(1.1), precision="bf16")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_coarse_output_type_may_be_off_by_its_own_rounding(dtype):
    array = np.linspace(1, 2, 50).astype(np.float32)
    exact = array.astype(dtype)
    other = np.nextafter(array, np.float32(9)).astype(dtype)
    assert not verdict(exact, other, own="f32", precision="f32")


def test_text_and_truth_are_exact():
    assert not verdict(np.array(["a"], object), np.array(["a"], object))
    assert verdict(np.array(["a"], object), np.array(["b"], object))
    assert verdict(np.array([True]), np.array([False]))


def test_nested_values_are_compared_leaf_by_leaf():
    expected = [np.float32([1]), {"a": np.float32([2])}, None]
    assert not one(expected, [np.float32([1]), {"a": np.float32([2])}, None]).mismatch
    assert one(expected, [np.float32([1]), {"a": np.float32([2.5])}, None]).range_fraction > 0.1
    assert one(expected, [np.float32([1]), {"b": np.float32([2])}, None]).mismatch
    assert one(expected, [np.float32([1]), {"a": np.float32([2])}, np.float32([0])]).mismatch


def test_complex_outputs_are_compared_by_magnitude():
    array = np.array([1 + 1j, 2 - 1j], np.complex64)
    assert not verdict(array, array + np.complex64(1e-6j))
    assert verdict(array, array.conj())


def test_empty_outputs_are_equal():
    assert not verdict(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))


def test_the_worst_of_several_samples_counts():
    near = compare({"y": np.float32([1, 2])}, {"y": np.float32([1, 2])}, {})
    far = compare({"y": np.float32([1, 2])}, {"y": np.float32([1, 9])}, {})
    assert worst([near, far, near])[0].range_fraction == far[0].range_fraction


def test_random_models_are_compared_by_form_alone():
    node = Node("n", "RandomNormal", (), ("y",))
    graph = Graph("onnx", "g", (node,), (), (Value("y", "float32", (2,)),), {}, {})
    assert draws_random_numbers(graph)
    expected = {"y": np.float32([1, 2])}
    assert not judge(same_form(expected, {"y": np.float32([9, 9])}), Tolerance(), "f32", "f32", {"y": "float32"})
    assert judge(same_form(expected, {"y": np.float32([9])}), Tolerance(), "f32", "f32", {"y": "float32"})


def test_random_bits_in_a_body_make_a_model_random():
    body = Graph("onnx", "b", (Node("n", "Bernoulli", ("x",), ("y",)),), (), (), {}, {})
    graph = Graph("onnx", "g", (Node("i", "If", ("c",), ("z",), subgraphs=(body,)),), (), (), {}, {})
    assert draws_random_numbers(graph)


SMALL = ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn"]


@pytest.mark.parametrize("name", SMALL)
def test_small_floats_are_counted_in_their_own_values(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    expected, next_one = np.array([1, 2, 4]).astype(dtype), np.array([1, 3 if "e8m0" not in name else 4, 4])
    assert not verdict(expected, expected.copy())
    off = next_one.astype(dtype)
    assert f"values of {name}, 0 allowed" in verdict(expected, off)
    assert bool(verdict(expected, off, own="i8", precision="i8")) == (one(expected, off).lsb > 1)


@pytest.mark.parametrize("name", SMALL)
def test_neighbours_of_a_small_float_type_are_one_apart(name):
    every = np.arange(256 if "8" in name else 16, dtype=np.uint8).view(getattr(ml_dtypes, name))
    ordered = np.unique(every[np.isfinite(every.astype(np.float32))].astype(np.float32)).astype(every.dtype)
    assert one(ordered[:-1], ordered[1:]).lsb == 1
