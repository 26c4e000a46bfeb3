"""Steps before and after a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgert.errors import InputError, OptionError
from edgert.graph import Quantization
from edgert.transforms import (
    Cast,
    Dequantise,
    Grayscale,
    Labels,
    NonMaxSuppression,
    Normalise,
    Quantise,
    Resize,
    Softmax,
    ToLayout,
    TopK,
    apply,
)

sides = st.integers(1, 40)


@given(sides, sides, sides, sides, st.sampled_from(["stretch", "crop"]), st.sampled_from(["bilinear", "nearest"]))
def test_resize_keeps_one_colour_and_reaches_the_size(height, width, new_height, new_width, fit, filter_):
    image = np.full((height, width, 3), 77, np.uint8)
    resized = Resize(new_height, new_width, fit, filter_)(image)
    assert resized.shape == (new_height, new_width, 3)
    assert resized.dtype == np.uint8
    assert (resized == 77).all()


@pytest.mark.parametrize("size", [(3, 5), (9, 30), (64, 48), (17, 16)])
def test_bilinear_resize_agrees_with_pillow(size):
    image_module = pytest.importorskip("PIL.Image", reason="compares with pillow")
    image = np.random.default_rng(0).integers(0, 256, (31, 23, 3), np.uint8)
    expected = image_module.fromarray(image).resize(size[::-1], image_module.Resampling.BILINEAR)
    assert np.abs(Resize(*size)(image).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_nearest_resize_by_a_whole_factor_repeats_pixels():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert (Resize(4, 6, filter="nearest")(image) == image.repeat(2, 0).repeat(2, 1)).all()


def test_crop_takes_the_middle_of_the_longer_side():
    image = np.zeros((4, 12, 1), np.uint8)
    image[:, 4:8] = 9
    assert (Resize(4, 4, "crop")(image) == 9).all()


def test_pad_keeps_the_aspect_and_borders_the_rest():
    padded = Resize(8, 8, "pad", border=5)(np.full((4, 8, 3), 200, np.uint8))
    assert (padded[2:6] == 200).all()
    assert (padded[:2] == 5).all()
    assert (padded[6:] == 5).all()


def test_shrinking_averages_instead_of_skipping():
    stripes = np.tile(np.array([0.0, 100.0], np.float32), 32)[None, :, None].repeat(4, 0)
    assert np.abs(Resize(4, 8)(stripes)[:, 1:-1] - 50).max() < 10


def test_a_plain_matrix_is_a_grey_image():
    assert Resize(2, 2)(np.ones((4, 4), np.float32)).shape == (2, 2, 1)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3, 4), (0, 4, 3)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(InputError, match="not an image"):
        Resize(2, 2)(np.zeros(shape))


def test_an_empty_size_is_refused():
    with pytest.raises(OptionError, match="empty"):
        Resize(0, 4)


def test_grayscale_weighs_the_colours():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert Grayscale()(image)[..., 0].tolist() == [[76, 150, 29]]


def test_normalise_scales_then_subtracts_then_divides():
    image = np.full((1, 1, 3), 255, np.uint8)
    step = Normalise(1 / 255, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    normalised = step(image)
    assert normalised.dtype == np.float32
    assert normalised.ravel() == pytest.approx([1.0, 3.0, 0.5])


def test_normalise_refuses_numbers_that_are_not_one_a_channel():
    with pytest.raises(OptionError, match="3 channels"):
        Normalise(mean=(1.0, 2.0))(np.zeros((2, 2, 3)))


def test_normalise_refuses_to_divide_by_zero():
    with pytest.raises(OptionError, match="no std 0"):
        Normalise(std=(1.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("layout", "shape"), [("nchw", (1, 3, 2, 5)), ("nhwc", (1, 2, 5, 3)), ("chw", (3, 2, 5)), ("hwc", (2, 5, 3))]
)
def test_layout_moves_the_channels_and_adds_the_batch(layout, shape):
    image = np.arange(30, dtype=np.float32).reshape(2, 5, 3)
    moved = ToLayout(layout)(image)
    assert moved.shape == shape
    assert moved.flags.c_contiguous
    channel = moved.reshape(shape)[(0,) * (len(shape) - 3)][0] if "chw" in layout else moved.reshape(2, 5, 3)[:, :, 0]
    assert (channel == image[:, :, 0]).all()


def test_a_layout_without_channels_needs_one_channel():
    assert ToLayout("nhw")(np.zeros((2, 5, 1))).shape == (1, 2, 5)
    with pytest.raises(InputError, match="grayscale"):
        ToLayout("hw")(np.zeros((2, 5, 3)))


@given(arrays(np.int8, st.integers(1, 20)), st.floats(1e-4, 10, allow_subnormal=False), st.integers(-128, 127))
def test_quantising_what_was_dequantised_gives_the_same_integers(integers, scale, zero):
    quantization = Quantization((scale,), (zero,))
    assert (Quantise(quantization, "int8")(Dequantise(quantization)(integers)) == integers).all()


def test_quantising_clips_to_the_type():
    assert Quantise(Quantization((0.5,), (10,)), "uint8")(np.array([-1e9, 0.0, 1e9])).tolist() == [0, 10, 255]


def test_quantisation_per_channel_follows_its_axis():
    quantization = Quantization((1.0, 10.0), (0, 1), axis=1)
    assert Dequantise(quantization)(np.array([[1, 2], [3, 4]], np.int8)).tolist() == [[1.0, 10.0], [3.0, 30.0]]


def test_nan_is_never_turned_into_an_integer():
    with pytest.raises(InputError, match="NaN"):
        Cast("int8")(np.array([np.nan]))


@pytest.mark.parametrize(("dtype", "low", "high"), [("int64", -(2**63), 2**63 - 1), ("uint64", 0, 2**64 - 1)])
def test_casting_huge_floats_to_wide_integers_stays_in_range(dtype, low, high):
    cast = Cast(dtype)(np.array([-1e30, 1e30]))
    assert low <= int(cast[0]) <= 0
    assert high * 0.99 < int(cast[1]) <= high


@given(arrays(np.float32, (3, 7), elements=st.floats(-500, 500, width=32)))
def test_softmax_gives_shares_that_add_up_to_one(scores):
    shares = Softmax()(scores)
    assert np.allclose(shares.sum(axis=-1), 1, atol=1e-5)
    assert (shares >= 0).all()


@given(arrays(np.int16, (2, 9)), st.integers(1, 12))
def test_top_k_gives_the_largest_in_order(scores, k):
    ranked = TopK(k)(scores)
    assert ranked.shape == (2, min(k, 9))
    assert (ranked["score"] == -np.sort(-scores.astype(np.float64), axis=-1)[:, :k]).all()
    assert (np.take_along_axis(scores, ranked["index"], -1) == ranked["score"]).all()


def test_equal_scores_keep_their_order_and_nan_comes_last():
    assert TopK(4)(np.array([1.0, np.nan, 2.0, 1.0]))["index"].tolist() == [2, 0, 3, 1]


def test_labels_name_classes():
    names = Labels(("cat", "dog", "bird"))
    assert names(TopK(2)(np.array([0.1, 0.2, 0.9]))).tolist() == ["bird", "dog"]
    assert names(np.array([[1], [0]])).tolist() == [["dog"], ["cat"]]


def test_a_class_without_a_name_is_an_error():
    with pytest.raises(OptionError, match="class 3 has no name"):
        Labels(("cat", "dog", "bird"))(np.array([3]))


def test_of_boxes_that_overlap_the_best_is_kept():
    boxes = np.array([[0, 0, 10, 10, 0.6], [1, 1, 11, 11, 0.9], [50, 50, 60, 60, 0.5], [0, 0, 9, 9, 0.05]], np.float32)
    kept = NonMaxSuppression(iou=0.5, score=0.1)(boxes)
    assert kept[:, 4].tolist() == pytest.approx([0.9, 0.5])


def test_no_boxes_are_no_boxes():
    assert NonMaxSuppression()(np.zeros((0, 5), np.float32)).shape == (0, 5)


def test_steps_apply_in_order():
    steps = (Resize(2, 2), Normalise(1 / 255), ToLayout("nchw"))
    prepared = apply(steps, np.full((8, 4, 3), 255, np.uint8))
    assert prepared.shape == (1, 3, 2, 2)
    assert (prepared == 1.0).all()
