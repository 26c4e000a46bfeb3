"""Element types, sizes, and arrays from elsewhere."""

from __future__ import annotations

import builtins
import ctypes

import numpy as np
import pytest

from edgert.errors import MissingPackage, OptionError
from edgert.tensor import BITS, FLOATS, INTEGERS, dtype_of, from_foreign, numpy_dtype, shape_text, size_bytes


@pytest.mark.parametrize("dtype", BITS)
def test_every_element_type_has_a_numpy_dtype_that_gives_its_name_back(dtype):
    assert dtype_of(np.zeros(1, numpy_dtype(dtype))) == dtype


@pytest.mark.parametrize("dtype", [name for name in BITS if name != "string"])
def test_a_whole_byte_type_takes_its_bits_in_numpy(dtype):
    assert numpy_dtype(dtype).itemsize == max(1, BITS[dtype] // 8)


def test_floats_and_integers_share_nothing():
    assert not FLOATS & INTEGERS
    assert FLOATS | INTEGERS | {"bool", "string", "complex64", "complex128"} == set(BITS)


def test_an_unknown_element_type_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match="float32") as caught:
        numpy_dtype("float31")
    assert "'float31'" in caught.value.message


@pytest.mark.parametrize("dtype", ["bfloat16", "int4", "float8_e4m3fn", "float6_e2m3fn"])
def test_without_ml_dtypes_only_its_own_types_are_missing(monkeypatch, dtype):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ml_dtypes":
            raise ImportError("No module named 'ml_dtypes'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert numpy_dtype("float16") == np.float16
    with pytest.raises(MissingPackage) as caught:
        numpy_dtype(dtype)
    assert (caught.value.package, caught.value.remedy) == ("ml-dtypes", "pip install ml-dtypes")


@pytest.mark.parametrize(
    ("dtype", "shape", "free", "expected"),
    [("float32", (2, 3), 1, 24), ("int4", (3,), 1, 2), ("int2", (5,), 1, 2), ("float32", ("N", 3), 4, 48),
     ("float32", (), 1, 4), ("float32", (0, 3), 1, 0), ("bool", (7,), 1, 7), ("float6_e2m3fn", (4,), 1, 3)],
)  # fmt: skip
def test_sizes_are_packed_and_count_free_dimensions(dtype, shape, free, expected):
    assert size_bytes(dtype, shape, free) == expected


@pytest.mark.parametrize(
    ("shape", "text"), [((1, 3, 224), "1x3x224"), (("N", 10), "Nx10"), (("", 2), "?x2"), ((), "scalar"), ((0,), "0")]
)
def test_shapes_are_written_for_people(shape, text):
    assert shape_text(shape) == text


def test_text_of_any_kind_counts_as_string():
    for array in (np.array(["a"]), np.array([b"a"]), np.array(["a"], object)):
        assert dtype_of(array) == "string"


def test_an_array_is_taken_as_it_is():
    array = np.zeros(3)[::2]
    assert from_foreign(array) is array


class Capsule:
    """Anything of another library that speaks dlpack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_objects_share_their_memory():
    array = np.arange(3.0)
    assert np.shares_memory(from_foreign(Capsule(array)), array)


@pytest.mark.parametrize(("thing", "shape"), [([[1, 2]], (1, 2)), (3, ()), (np.float32(3), ()), ((1.0, 2.0), (2,))])
def test_lists_and_scalars_become_arrays(thing, shape):
    assert from_foreign(thing).shape == shape


class Brain:
    """A bfloat16 tensor of another library: what torch lends, made from 16-bit integers."""

    def __init__(self, bits, code=4):
        self.bits, self.code = bits, code

    def __dlpack__(self, **_):
        capsule = self.bits.__dlpack__()
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        # DLTensor: void* data, two int32 of the device, int32 ndim, then the element type's code.
        ctypes.c_uint8.from_address(
            pointer_of(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p) + 12
        ).value = self.code
        return capsule

    def __dlpack_device__(self):
        return self.bits.__dlpack_device__()


def test_bfloat16_of_another_library_is_taken_where_it_lies():
    numbers = np.arange(6).reshape(2, 3).astype(numpy_dtype("bfloat16"))
    bits = numbers.view(np.uint16)
    got = from_foreign(Brain(bits))
    assert dtype_of(got) == "bfloat16"
    assert np.array_equal(got, numbers)
    assert np.shares_memory(got, bits)


def test_an_element_type_that_nobody_knows_is_no_bfloat16():
    with pytest.raises((RuntimeError, BufferError), match="dtype"):
        from_foreign(Brain(np.zeros(2, np.uint16), code=99))
