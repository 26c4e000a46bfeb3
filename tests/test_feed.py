"""What a caller passes, made into what a backend takes, or refused with the way to mend it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import DtypeMismatch, InputError, MissingInput, ShapeMismatch, UnknownInput
from edgert.feed import Feeder
from edgert.graph import Value
from edgert.tensor import numpy_dtype

IMAGE = Value("image", "float32", ("N", 3, 4, 5))
MASK = Value("mask", "int64", (2,))


def one(dtype="float32", shape=(2, 3), kind="tensor"):
    return Feeder([Value("x", dtype, shape, kind)])


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Hostile:
    """An object whose conversion fails."""

    def __array__(self, *args, **keywords):
        raise TypeError("not today")


ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_right_array_passes_untouched():
    assert one()({"x": ARRAY})["x"] is ARRAY
    assert one(shape=("N", 3))({"x": ARRAY})["x"] is ARRAY


@pytest.mark.parametrize(
    "given",
    [ARRAY.tolist(), tuple(map(tuple, ARRAY.tolist())), ARRAY.astype(">f4"), ARRAY.astype(np.float16), Foreign(ARRAY),
     np.asfortranarray(ARRAY), np.repeat(ARRAY, 2, axis=1)[:, ::2], [[0, 1, 2], [3, 4, 5]], ARRAY.view(np.memmap),
     np.frombuffer(b"-" + ARRAY.tobytes(), np.float32, 6, 1).reshape(2, 3)],
    ids=["list", "tuple", "big-endian", "float16", "dlpack", "fortran", "strided", "integers in lists", "subclass",
         "unaligned"],
)  # fmt: skip
def test_what_stands_for_the_same_numbers_becomes_the_same_array(given):
    made = one()({"x": given})["x"]
    assert made.dtype == np.float32
    assert made.dtype.isnative
    assert made.flags.c_contiguous
    assert made.flags.aligned
    assert np.array_equal(made, ARRAY)


@pytest.mark.parametrize("given", [3, 3.0, np.float32(3), np.array(3, np.float32), True])
def test_scalars_fit_an_input_without_axes(given):
    made = one(shape=())({"x": given})["x"]
    assert (made.shape, made.dtype, float(made)) == ((), np.float32, float(given))


def test_inputs_may_come_by_name_by_position_or_alone():
    by_name = one()({"x": ARRAY})
    for passed in ([ARRAY], (ARRAY,), ARRAY, ARRAY.tolist(), [ARRAY.tolist()], Foreign(ARRAY)):
        assert np.array_equal(one()(passed)["x"], by_name["x"])
    both = Feeder([IMAGE, MASK])([np.zeros((1, 3, 4, 5), np.float32), [1, 2]])
    assert list(both) == ["image", "mask"]


@pytest.mark.parametrize(
    ("dtype", "given"),
    [("float32", np.float64), ("float32", np.int32), ("float32", np.bool_), ("int64", np.float32), ("int8", np.int16),
     ("uint8", np.int8), ("int32", np.uint32), ("float32", np.complex64), ("float16", np.float32), ("bool", np.uint8),
     ("bfloat16", np.float32), ("float32", "U1"), ("string", np.float32), ("float32", "M8[s]")],
)  # fmt: skip
def test_an_array_is_never_narrowed_or_reinterpreted(dtype, given):
    with pytest.raises(DtypeMismatch, match="astype") as caught:
        one(dtype, (1,))({"x": np.zeros(1, given)})
    assert (caught.value.name, caught.value.expected) == ("x", dtype)
    assert caught.value.got in caught.value.message


@pytest.mark.parametrize(
    ("dtype", "given"), [("float64", np.float32), ("int64", np.int8), ("uint16", np.uint8), ("float32", np.float16)]
)
def test_an_array_is_widened_within_its_kind(dtype, given):
    assert one(dtype, (2,))({"x": np.ones(2, given)})["x"].dtype == dtype


@given(st.lists(st.integers(-(1 << 40), 1 << 40), min_size=1, max_size=4),
       st.sampled_from(["int8", "uint8", "int16", "int32", "int64", "int4", "uint4", "int2"]))  # fmt: skip
def test_numbers_in_lists_fit_an_integer_type_exactly_or_are_refused(numbers, dtype):
    info = ml_dtypes.iinfo(numpy_dtype(dtype)) if "int4" in dtype or "int2" in dtype else np.iinfo(dtype)
    if all(info.min <= number <= info.max for number in numbers):
        assert one(dtype, ("n",))({"x": numbers})["x"].astype(int).tolist() == numbers
    else:
        with pytest.raises(DtypeMismatch):
            one(dtype, ("n",))({"x": numbers})


@pytest.mark.parametrize(
    ("dtype", "given"),
    [("int64", [1.5]), ("int64", [float("nan")]), ("uint8", [300]), ("uint8", [-1]), ("bool", [2]), ("int8", ["1"]),
     ("float32", ["1"]), ("float32", [b"1"]), ("float32", [1j]), ("int32", [1j]), ("float32", [1e300]),
     ("float16", [1e6]), ("float32", [None]), ("float32", [object()]), ("string", [1]), ("string", [[1]])],
)  # fmt: skip
def test_a_list_that_the_type_cannot_hold_is_refused(dtype, given):
    with pytest.raises(InputError, match="'x'"):
        one(dtype, ("n",))({"x": given})


def test_infinity_and_nan_in_a_list_are_floats_like_others():
    made = one(shape=("n",))({"x": [float("inf"), float("nan")]})["x"]
    assert np.isinf(made[0])
    assert np.isnan(made[1])


@pytest.mark.parametrize(
    "given", [[[1.0], [1.0, 2.0]], Hostile(), {"a": 1}, object(), {1, 2}, iter([1.0]), "text", b"b"]
)
def test_what_is_no_array_is_an_input_error(given):
    for feed in ({"x": given}, [given], given):
        with pytest.raises(InputError):
            one()(feed)


@pytest.mark.parametrize("given", [None, 3, "text", object(), {1, 2}, np.zeros(2)])
def test_one_thing_for_two_inputs_is_an_input_error(given):
    with pytest.raises(InputError):
        Feeder([IMAGE, MASK])(given)


def test_an_unknown_name_is_refused_with_the_signature():
    with pytest.raises(UnknownInput, match="image: float32 Nx3x4x5") as caught:
        Feeder([IMAGE])({"image": np.zeros((1, 3, 4, 5), np.float32), "imagine": 1})
    assert "'imagine'" in caught.value.message
    with pytest.raises(UnknownInput, match="'imagine'"):  # misspelt, not missing
        Feeder([IMAGE])({"imagine": np.zeros((1, 3, 4, 5), np.float32)})


def test_a_missing_input_is_refused_by_name():
    with pytest.raises(MissingInput, match="'mask'"):
        Feeder([IMAGE, MASK])({"image": np.zeros((1, 3, 4, 5), np.float32)})
    with pytest.raises(MissingInput, match="'mask'"):
        Feeder([IMAGE, MASK])([np.zeros((1, 3, 4, 5), np.float32)])


def test_more_inputs_than_the_model_has_are_refused():
    with pytest.raises(UnknownInput, match="3 inputs"):
        Feeder([IMAGE, MASK])([1, 2, 3])


def test_an_optional_input_may_be_left_out_and_an_unknown_one_is_still_noticed():
    feeder = Feeder([IMAGE, MASK], ["mask"])
    image = np.zeros((1, 3, 4, 5), np.float32)
    assert list(feeder({"image": image})) == ["image"]
    with pytest.raises(UnknownInput, match="'musk'"):
        feeder({"image": image, "musk": [1, 2]})


def test_a_model_without_inputs_takes_none():
    assert Feeder([])({}) == {}
    with pytest.raises(UnknownInput, match="no inputs"):
        Feeder([])({"x": 1})


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((1, 4, 5, 3), "array.transpose(0, 3, 1, 2)"), ((4, 5, 3), "array[None].transpose(0, 3, 1, 2)"),
     ((3, 4, 5), "array[None]"), ((1, 3, 4, 6), "Reshape"), ((60,), "Reshape")],
)  # fmt: skip
def test_a_wrong_shape_is_refused_with_the_way_to_mend_it(shape, remedy):
    with pytest.raises(ShapeMismatch) as caught:
        Feeder([IMAGE])({"image": np.zeros(shape, np.float32)})
    assert remedy in caught.value.remedy
    assert (caught.value.got, caught.value.expected) == (shape, IMAGE.shape)
    assert str(shape) in caught.value.message


def test_the_mending_that_is_advised_works():
    photo = np.zeros((4, 5, 3), np.float32)
    assert Feeder([IMAGE])({"image": photo[None].transpose(0, 3, 1, 2)})["image"].shape == (1, 3, 4, 5)


def test_nchw_given_for_nhwc_is_told_to_transpose():
    with pytest.raises(ShapeMismatch, match=r"transpose\(0, 2, 3, 1\)"):
        Feeder([Value("image", "uint8", (1, 8, 9, 3))])({"image": np.zeros((1, 3, 8, 9), np.uint8)})


@pytest.mark.parametrize(("shape", "axis"), [((1, 2, 4, 5), 1), ((1, 3, 4, 4), 3), ((3, 4, 5), None)])
def test_the_first_axis_that_differs_is_named(shape, axis):
    with pytest.raises(ShapeMismatch) as caught:
        Feeder([IMAGE])({"image": np.zeros(shape, np.float32)})
    assert caught.value.axis == axis


def test_free_dimensions_take_any_size_even_none():
    for size in (0, 1, 7):
        assert Feeder([IMAGE])({"image": np.zeros((size, 3, 4, 5), np.float32)})["image"].shape[0] == size


@pytest.mark.parametrize(
    "given",
    [["a", "é"], np.array(["a", "é"]), np.array(["a", "é"], object), np.array([b"a", "é".encode()], object),
     np.array([b"a", "é".encode()]), np.array([np.str_("a"), "é"], object)],
    ids=["list", "U", "object", "bytes in objects", "S", "numpy's str"],
)  # fmt: skip
def test_strings_of_every_kind_become_objects_of_str(given):
    made = one("string", (2,))({"x": given})["x"]
    assert made.dtype == object
    assert made.tolist() == ["a", "é"]
    assert {type(item) for item in made} == {str}


@pytest.mark.parametrize("items", [[1, 2], [None, "a"], [["a"], "b"], [b"\xff\xfe", "a"]])
def test_objects_that_are_no_strings_are_refused(items):
    array = np.empty(2, object)
    array[:] = items
    with pytest.raises(InputError, match="'x'"):
        one("string", (2,))({"x": array})


def test_sequences_optionals_and_maps_are_checked_for_their_kind():
    assert [a.dtype for a in one(kind="sequence", shape=None)({"x": [[1.0], [2.0, 3.0]]})["x"]] == [np.float32] * 2
    assert one(kind="optional")({"x": None})["x"] is None
    assert one(kind="optional")({"x": ARRAY})["x"] is ARRAY
    assert one(None, None, kind="map")({"x": {"a": 1.0}})["x"] == {"a": 1.0}
    for kind in ("sequence", "map"):
        with pytest.raises(InputError, match=kind):
            one(None, None, kind=kind)({"x": ARRAY})


def test_bfloat16_lists_are_rounded_as_near_as_it_gets():
    made = one("bfloat16", ("n",))({"x": [1.0, 0.1]})["x"]
    assert made.dtype == ml_dtypes.bfloat16
    assert float(made[1]) == pytest.approx(0.1, rel=4e-3)


def test_an_input_of_unknown_type_and_shape_takes_any_array():
    assert Feeder([Value("x", None, None)])({"x": np.zeros((2, 2), np.int8)})["x"].dtype == np.int8


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [(None, MissingInput, "is None"), ([None, None], DtypeMismatch, "NoneType"), (iter([1]), DtypeMismatch, "iterator"),
     (np.array([1, "a"], object), DtypeMismatch, "object .it holds an int"), ({1}, DtypeMismatch, "a set")],
)  # fmt: skip
def test_what_is_no_array_is_called_what_it_is(given, error, words):
    with pytest.raises(error, match=words):
        one()({"x": given})


def test_masked_elements_are_never_taken_for_numbers():
    with pytest.raises(InputError, match=r"masked array.+filled"):
        one()({"x": np.ma.masked_array(ARRAY, ARRAY > 2)})
    assert np.array_equal(one()({"x": np.ma.masked_array(ARRAY)})["x"], ARRAY)


def test_whatever_an_object_raises_is_an_input_error():
    class Worse:
        def __array__(self, *args, **keywords):
            raise KeyError("boom")

    with pytest.raises(InputError, match="'x' cannot be read as an array: KeyError: 'boom'"):
        one()({"x": Worse()})


@pytest.mark.parametrize(
    ("given", "words"),
    [(["a", 3], "an int"), (["a", None], "a NoneType"), (["a", "b\ud800"], "no UTF-8"), ([b"a", b"\xff"], "no UTF-8")],
)
def test_texts_are_texts_that_every_library_can_hold(given, words):
    with pytest.raises(InputError, match=words):
        one("string", (2,))({"x": given})


def test_an_optional_tensor_has_its_shape_checked():
    feed = one("float32", (4,), "optional")
    assert feed({"x": None})["x"] is None
    assert feed({"x": np.zeros(4, np.float32)})["x"].shape == (4,)
    with pytest.raises(ShapeMismatch, match="axis 0 is 5, 4 expected"):
        feed({"x": np.zeros(5, np.float32)})


def test_a_value_that_is_in_the_file_is_not_said_to_be_unknown():
    feed = Feeder([IMAGE], ["scale"])
    with pytest.raises(UnknownInput, match="'scale' has its value in the model file"):
        feed({"image": np.zeros((1, 3, 4, 5), np.float32), "scale": np.zeros(1, np.float32)})


@pytest.mark.parametrize("narrow", ["bfloat16", "float8_e4m3fn", "float16"])
def test_every_float_that_fits_is_widened(narrow):
    got = one()({"x": ARRAY.astype(numpy_dtype(narrow))})["x"]
    assert got.dtype == np.float32
    assert np.array_equal(got, ARRAY)
