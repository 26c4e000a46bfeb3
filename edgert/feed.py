"""What a caller passes, made into what a backend takes: named, checked, of the right element type, C-contiguous."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgert.errors import DtypeMismatch, InputError, MissingInput, ShapeMismatch, UnknownInput
from edgert.graph import Value
from edgert.tensor import BITS, FLOATS, Array, Data, Shape, dtype_of, from_foreign, numpy_dtype, shape_text


class Feeder:
    """The checks of one model's inputs, prepared once. The path of a right array of a right shape is short on
    purpose.
    """

    def __init__(self, inputs: Sequence[Value], optional: Sequence[str] = ()) -> None:
        """Args:
        inputs: the model's, in order.
        optional: names of those that may be left out, and of those whose values are in the file and are kept.
        """
        self._values = {value.name: value for value in inputs}
        self._optional = frozenset(optional)
        self._needed = len(inputs)
        self._fast = [_fast(value) for value in inputs]

    def __call__(self, inputs: Any) -> dict[str, Data]:
        """Every input by name.

        Args:
            inputs: a mapping by name; a sequence by position; or, for a model with one input, its array.

        Raises:
            UnknownInput, MissingInput, ShapeMismatch, DtypeMismatch: names the input and what was expected.
        """
        if type(inputs) is not dict:
            inputs = self._by_name(inputs)
        feed: dict[str, Data] = {}
        for name, dtype, shape in self._fast:
            given = inputs.get(name)
            if (
                type(given) is np.ndarray and given.dtype == dtype and given.shape == shape
                and (flags := given.flags).c_contiguous and flags.aligned
            ):  # fmt: skip
                feed[name] = given
            elif name in inputs:
                feed[name] = _convert(given, self._values[name])
            elif name not in self._optional:
                self._reject_unknown(inputs)  # a name that is misspelt says more than the one that is missing
                raise MissingInput(f"input {name!r} was not given.", f"The model wants {self._signature()}.")
        if len(inputs) != len(feed):
            self._reject_unknown(inputs)
        return feed

    def _by_name(self, inputs: Any) -> Mapping[str, Any]:
        if isinstance(inputs, Mapping):
            return inputs
        names = list(self._values)
        if len(names) == 1 and not (
            isinstance(inputs, list | tuple) and _looks_positional(inputs, self._values[names[0]])
        ):
            return {names[0]: inputs}
        if isinstance(inputs, np.ndarray) or not isinstance(inputs, Sequence) or isinstance(inputs, str):
            raise MissingInput(
                f"one {type(inputs).__name__} was given for {len(names)} inputs.",
                f"The model wants {self._signature()}.",
            )
        if len(inputs) > len(names):
            raise UnknownInput(
                f"{len(inputs)} inputs were given, the model has {len(names)}.", f"They are {self._signature()}."
            )
        return dict(zip(names, inputs, strict=False))

    def _reject_unknown(self, inputs: Mapping[str, Any]) -> None:
        unknown = [str(name) for name in inputs if name not in self._values]
        if held := [name for name in unknown if name in self._optional]:
            raise UnknownInput(
                f"input {held[0]!r} has its value in the model file, which cannot be replaced.",
                "Export the model without that value (initialiser) to pass one.",
            )
        if unknown:
            raise UnknownInput(
                f"the model has no input {', '.join(map(repr, unknown))}.", f"It has {self._signature()}."
            )

    def _signature(self) -> str:
        return ", ".join(str(value) for value in self._values.values()) or "no inputs"


def _fast(value: Value) -> tuple[str, np.dtype[Any] | None, tuple[int, ...] | None]:
    """Name, dtype and shape that need no further look; None where every array needs one."""
    shape = value.shape
    static = shape is not None and all(isinstance(size, int) for size in shape)
    if value.kind != "tensor" or value.dtype in (None, "string") or not static:
        return value.name, None, None
    return value.name, numpy_dtype(value.dtype or ""), shape  # type: ignore[return-value]  # all int, as just checked


def _looks_positional(inputs: Sequence[Any], value: Value) -> bool:
    """Whether a list for a model with one input is the list of its inputs, rather than that input as nested lists."""
    if value.kind in ("sequence", "map"):
        return len(inputs) == 1 and isinstance(inputs[0], list | tuple | Mapping)
    if len(inputs) != 1 or hasattr(inputs[0], "shape") or value.shape is None:
        return len(inputs) == 1
    try:
        return np.ndim(inputs[0]) == len(value.shape)
    except (ValueError, TypeError):  # no array at all; whoever converts it says so
        return True


def _convert(given: Any, value: Value) -> Data:
    if value.kind == "optional" and given is None:
        return None
    if value.kind == "sequence" or (value.kind == "optional" and isinstance(given, list | tuple)):
        if not isinstance(given, list | tuple):
            raise InputError(
                f"input {value.name!r} is a sequence, not a {type(given).__name__}.", "Pass a list of arrays."
            )
        return [_tensor(item, value) for item in given]
    if value.kind == "map" or (isinstance(given, Mapping) and value.dtype is None):
        if not isinstance(given, Mapping):
            raise InputError(f"input {value.name!r} is a map, not a {type(given).__name__}.", "Pass a dict.")
        return dict(given)
    array = _tensor(given, value)
    if value.shape is not None and value.kind in ("tensor", "optional"):
        _check_shape(array, value.name, value.shape)
    return array


def _tensor(given: Any, value: Value) -> Array:
    if given is None:
        raise MissingInput(f"input {value.name!r} is None.", f"The model wants {value}.")
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise InputError(
            f"input {value.name!r} is a masked array, and a model knows no masked elements.",
            "Say what stands in their place, with array.filled(value).",
        )
    texts = value.dtype == "string" and isinstance(given, list | tuple)
    try:
        array = np.array(given, dtype=object) if texts else from_foreign(given)  # numpy makes texts of numbers
    except Exception as error:  # objects of other libraries may raise anything
        raise InputError(
            f"input {value.name!r} cannot be read as an array: {type(error).__name__}: {error}.",
            f"The model wants {value}.",
        ) from error
    if value.dtype is None:
        return np.ascontiguousarray(array) if array.ndim else array
    loose = not isinstance(given, np.ndarray | np.generic) and not hasattr(given, "__dlpack__")
    array = _cast(array, value, loose)
    # Kernels may read whole vectors at once, which some processors do from aligned addresses only.
    return array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")


def _cast(array: Array, value: Value, loose: bool) -> Array:
    """The array in the model's element type: as it is, widened without loss, or (lists and Python scalars) as near as
    it gets.
    """
    wanted = value.dtype or ""
    if wanted == "string":
        return _texts(array, value, loose)
    dtype = numpy_dtype(wanted)
    if array.dtype == dtype:
        return array if array.dtype.isnative else array.astype(dtype)
    if loose and _is_number(array, wanted):
        with np.errstate(over="ignore", invalid="ignore"):  # what is lost is looked at below
            cast = array.astype(dtype)
            if _kept(array, cast, wanted):
                return cast
    elif not loose and _alike(array.dtype, dtype) and np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    raise _wrong_dtype(array, value)


def _alike(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Whether both are integers, or both floats, those included that numpy lacks."""
    return one.kind == other.kind or {one.name, other.name} <= FLOATS


def _is_number(array: Array, wanted: str) -> bool:
    """Whether the values of a list can stand for `wanted` at all: text is never parsed, no imaginary part dropped."""
    dtype = dtype_of(array)
    return dtype in BITS and dtype != "string" and (not dtype.startswith("complex") or wanted.startswith("complex"))


def _kept(array: Array, cast: Array, wanted: str) -> bool:
    """Whether a cast lost nothing but a float's last digits: integers are exact, and nothing overflowed."""
    if wanted in FLOATS or wanted.startswith("complex"):
        wide = cast if cast.dtype.kind in "fc" else cast.astype(np.float64)
        return bool((np.isfinite(wide) | ~np.isfinite(array)).all())
    return bool((cast.astype(array.dtype) == array).all())


def _texts(array: Array, value: Value, loose: bool) -> Array:
    """An object array of `str`; bytes are read as UTF-8."""
    if loose and not array.size:
        return np.empty(array.shape, dtype=object)
    if dtype_of(array) != "string":
        raise _wrong_dtype(array, value)
    texts = np.empty(array.shape, dtype=object)
    for index, item in np.ndenumerate(array):
        if not isinstance(item, str | bytes):
            raise InputError(f"input {value.name!r} holds {_kind(item)} in place of text.", "Pass str.")
        try:
            text = item.decode() if isinstance(item, bytes) else str(item)
            text.encode()  # half a surrogate pair has no bytes
        except UnicodeError as error:
            raise InputError(f"input {value.name!r} holds what is no UTF-8: {error}.", "Pass str.") from error
        texts[index] = text
    return texts


def _wrong_dtype(array: Array, value: Value) -> DtypeMismatch:
    got = dtype_of(array)
    said, remedy = f"dtype {got}", f"; convert on purpose, with array.astype({value.dtype!r})"
    others = [item for item in array.flat if not isinstance(item, str | bytes)] if array.dtype.hasobject else []
    if others:
        said, remedy = f"dtype object (it holds {_kind(others[0])})", ""
    elif value.dtype == "string":
        remedy = "; convert on purpose, with array.astype(str)"
    return DtypeMismatch(
        f"input {value.name!r}: {said} does not fit {value.dtype}.",
        f"The model wants {value}{remedy}.",
        name=value.name, got=got, expected=value.dtype,
    )  # fmt: skip


def _kind(thing: Any) -> str:
    name = type(thing).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _check_shape(array: Array, name: str, shape: Shape) -> None:
    got = array.shape
    axis = None
    if len(got) == len(shape):
        axis = next((i for i, size in enumerate(shape) if isinstance(size, int) and got[i] != size), -1)
        if axis == -1:
            return
        what = f"axis {axis} is {got[axis]}, {shape[axis]} expected"
    else:
        what = f"{len(got)} axes, {len(shape)} expected"
    raise ShapeMismatch(
        f"input {name!r}: shape {got} does not fit {shape_text(shape)}: {what}.",
        _shape_hint(got, shape), name=name, got=got, expected=shape, axis=axis,
    )  # fmt: skip


def _shape_hint(got: tuple[int, ...], shape: Shape) -> str:
    def fits(sizes: Sequence[int]) -> bool:
        return len(sizes) == len(shape) and all(
            not isinstance(want, int) or want == size for want, size in zip(shape, sizes, strict=True)
        )

    if fits((1, *got)):
        return "Add the batch axis: array[None]."
    image = (1, *got) if len(got) == 3 else got
    batch = "[None]" if len(got) == 3 else ""
    if len(image) == 4:
        n, a, b, c = image
        if fits((n, c, a, b)):
            return f"The model wants NCHW; pass array{batch}.transpose(0, 3, 1, 2)."
        if fits((n, b, c, a)):
            return f"The model wants NHWC; pass array{batch}.transpose(0, 2, 3, 1)."
    return "Reshape or resize the input; free dimensions are shown by name."
