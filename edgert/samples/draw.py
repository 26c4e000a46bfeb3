"""What is known of an input's elements, and numbers drawn to fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgert.graph import Value
from edgert.samples.scope import KnownShape
from edgert.tensor import FLOATS, Array, numpy_dtype

WORDS = ("alpha", "beta", "gamma", "delta", "the quick brown fox", "naïve", "12", "")
"""Texts for an input of strings of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What the readers of an input ask of its elements. Bounds are inclusive; arrays of bounds broadcast against the
    input's shape.
    """

    low: float | Array | None = None
    high: float | Array | None = None
    exact: Array | None = None
    """The whole content; used when it has as many elements as the input."""
    choices: tuple[float | str, ...] = ()
    """The only elements allowed; empty for any."""
    mask: bool = False
    """Ones, then zeros, along the last axis."""
    rising: bool = False
    """Sorted along the last axis."""
    distinct: bool = False
    """No element twice along the last axis."""
    nonzero: bool = False
    corners: tuple[float, ...] = ()
    """Where the reader has to behave in a way of its own: beyond what it can hold, NaN, ...; drawn for a set of corners
    alone."""

    @property
    def empty(self) -> bool:
        """Whether nothing is asked."""
        bounds = (self.low, self.high, self.exact)
        return all(bound is None for bound in bounds) and not (
            self.choices or self.mask or self.rising or self.distinct or self.nonzero
        )

    def __and__(self, other: Fact) -> Fact:
        """Both facts. Where they contradict each other, the first one counts: it was seen nearer."""
        low = _tighter(self.low, other.low, np.maximum)
        high = _tighter(self.high, other.high, np.minimum)
        if low is not None and high is not None and bool(np.any(np.asarray(low) > np.asarray(high))):
            low, high = self.low, self.high
        return Fact(
            low,
            high,
            self.exact if self.exact is not None else other.exact,
            self.choices or other.choices,
            self.mask or other.mask,
            self.rising or other.rising,
            self.distinct or other.distinct,
            self.nonzero or other.nonzero,
            self.corners or other.corners,
        )

    def before(self, scale: float, shift: float, *, integer: bool) -> Fact:
        """The fact about x when this one is about scale * x + shift."""
        if (scale, shift) == (1.0, 0.0):
            return self
        if scale == 0:
            return Fact()
        low = None if self.low is None else (np.asarray(self.low) - shift) / scale
        high = None if self.high is None else (np.asarray(self.high) - shift) / scale
        if scale < 0:
            low, high = high, low
        if integer:
            low = None if low is None else np.ceil(low)
            high = None if high is None else np.floor(high)
        return Fact(low, high)

    def in_column(self, index: int, count: int) -> Fact:
        """The fact about all `count` columns of the last axis when this one is about column `index` alone."""
        low, high = np.full(count, -np.inf), np.full(count, np.inf)
        low[index] = -np.inf if self.low is None else np.max(self.low)
        high[index] = np.inf if self.high is None else np.min(self.high)
        return Fact(low, high)


ANY = Fact()


def _tighter(first: float | Array | None, second: float | Array | None, pick: np.ufunc) -> float | Array | None:
    if first is None or second is None:
        return second if first is None else first
    try:
        return np.asarray(pick(first, second))
    except ValueError:  # two arrays of bounds that do not broadcast: the nearer one counts
        return first


def draw(value: Value, known: KnownShape, fact: Fact, rng: np.random.Generator, *, corners: bool = False) -> Array:
    """An array of the value's element type and shape that fits the fact.

    With `corners`, numbers on which kernels that agree elsewhere differ: ties, zeros, halves, ends of ranges, what
    `Fact.corners` lists, and truth values whose first row is all false.

    Raises:
        MissingPackage: the element type needs ml_dtypes, which is not installed.
    """
    assert value.dtype is not None, "checked by synthesise"
    dtype = numpy_dtype(value.dtype)
    shape = tuple(1 if size is None else size for size in known)
    if fact.exact is not None:
        if fact.exact.size == int(np.prod(shape)):
            return np.array(fact.exact.reshape(shape), dtype, order="C")
        fact = replace(fact, exact=None, low=1, high=1)  # a part of a shape or of a list of axes: one is always valid
    if fact.choices or value.dtype == "string":
        drawn = _pick(fact.choices or WORDS, shape, rng)
    elif fact.mask or value.dtype == "bool":
        drawn = _mask(shape, rng, fact)
        if corners and len(shape) > 1 and shape[-2] and not fact.mask:
            drawn[..., 0, :] = False
    elif dtype.kind == "c":
        drawn = np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    elif value.dtype in FLOATS:
        edges = _corners(shape, fact, rng) if corners else None
        drawn = _floats(value, shape, fact, rng) if edges is None else edges
    else:
        drawn = _integers(value, shape, fact, rng)
    with np.errstate(over="ignore", invalid="ignore"):  # corners may lie beyond what the type holds
        return drawn.astype(dtype)


def _pick(choices: tuple[float | str, ...], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    picked = np.empty(shape, object)
    picked.reshape(-1)[:] = [choices[index] for index in rng.integers(0, len(choices), picked.size)]
    return picked


def _mask(shape: tuple[int, ...], rng: np.random.Generator, fact: Fact) -> Array:
    if not fact.mask or not shape:
        return np.asarray(rng.random(shape) < 0.75 if shape else True)
    # Three quarters are valid, and always the first, so that no softmax sees only masked positions.
    valid = max(1, shape[-1] * 3 // 4)
    return np.broadcast_to(np.arange(shape[-1]) < valid, shape).copy()


def _bounds(bound: float | Array | None, shape: tuple[int, ...], pick: np.ufunc) -> Array | None:
    if bound is None:
        return None
    try:
        return np.broadcast_to(np.asarray(bound, np.float64), shape)
    except ValueError:  # the input was reshaped on its way to the reader
        return np.full(shape, pick.reduce(np.asarray(bound, np.float64), axis=None))


_GRID = (-3.0, 2.0, 0.5, -2.5, 0.0, 1.5, -1.0, -0.5, 1.0, -1.5, -2.0)
"""Over a range of 5, odd halves are halfway between two of 256 steps, and between two integers."""


def _corners(shape: tuple[int, ...], fact: Fact, rng: np.random.Generator) -> Array | None:
    """Corners of a float input; None where its fact leaves no room for any."""
    if fact.rising or fact.nonzero or (fact.low is None) != (fact.high is None):
        return None
    if fact.corners:
        return np.resize(np.asarray(fact.corners, np.float64), shape)
    low, high = _bounds(fact.low, shape, np.maximum), _bounds(fact.high, shape, np.minimum)
    if low is None or high is None:
        whole = np.resize(np.asarray(_GRID), shape)
        return rng.permuted(whole, axis=None) if whole.size > 2 * len(_GRID) else whole
    place = rng.integers(0, 3, shape)
    return np.where(place == 0, low, np.where(place == 1, high, low + (high - low) * rng.random(shape)))


def _floats(value: Value, shape: tuple[int, ...], fact: Fact, rng: np.random.Generator) -> Array:
    low, high = _bounds(fact.low, shape, np.maximum), _bounds(fact.high, shape, np.minimum)
    if low is not None and high is not None:
        drawn = low + (high - low) * rng.random(shape)
    elif low is not None:
        drawn = low + np.abs(rng.standard_normal(shape))
    elif high is not None:
        drawn = high - np.abs(rng.standard_normal(shape))
    elif _is_image(shape):
        drawn = rng.random(shape)
    else:
        drawn = rng.standard_normal(shape)
    if fact.nonzero:
        drawn = np.where(np.abs(drawn) < 0.1, 0.5, drawn)
    if value.dtype == "float8_e8m0fnu":  # powers of two only, no zero and no sign
        drawn = np.exp2(np.round(drawn))
    drawn = np.sort(drawn, axis=-1) if fact.rising and shape else drawn
    return np.asarray(drawn, np.float32 if value.dtype != "float64" else np.float64)


def _is_image(shape: tuple[int, ...]) -> bool:
    """NCHW or NHWC with one, three or four channels."""
    if len(shape) != 4:
        return False
    channels = (1, 3, 4)
    return (shape[1] in channels and min(shape[2:]) >= 8) or (shape[3] in channels and min(shape[1:3]) >= 8)


_USUAL = (1, 9)
"""Range of an integer input of which nothing is known: small, so that sums and products stay in range; no zero, since
it may be a size or a divisor."""


def _integers(value: Value, shape: tuple[int, ...], fact: Fact, rng: np.random.Generator) -> Array:
    assert value.dtype is not None, "checked by synthesise"
    bits = int(value.dtype.lstrip("uint"))
    signed = not value.dtype.startswith("u")
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    # Narrow integers are quantised numbers: the whole range means something.
    usual = (least, most) if bits <= 8 else _USUAL
    low, high = _bounds(fact.low, shape, np.maximum), _bounds(fact.high, shape, np.minimum)
    if value.quantization is not None and value.quantization.zero_points and bits == 8 and low is None and high is None:
        return _codes(value.quantization.zero_points[0], (least, most), shape, rng)
    if low is None:
        low = np.full(shape, float(usual[0])) if high is None else np.minimum(high, float(usual[0]))
    if high is None:
        high = np.maximum(low, float(usual[1]))
    first = np.clip(low, least, float(most)).astype(np.int64)
    last = np.maximum(first, np.clip(high, least, float(min(most, 1 << 62))).astype(np.int64))
    drawn = rng.integers(first, last, endpoint=True)
    if fact.distinct and shape:
        drawn = first + (np.arange(shape[-1]) + rng.integers(0, 1 << 30)) % (last - first + 1)
    if fact.nonzero:
        drawn = np.where(drawn == 0, 1, drawn)
    return np.sort(drawn, axis=-1) if fact.rising and shape else np.asarray(drawn)


def _codes(zero_point: int, codes: tuple[int, int], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Quantised numbers over the whole range, most of them near zero: uniform ones would saturate a trained network.

    Where the zero point lies near an end (an image from 0 to 1), they gather in the middle.
    """
    least, most = codes
    width = most - least
    centre = zero_point if least + width // 4 <= zero_point <= most - width // 4 else (least + most) // 2
    return np.clip(np.rint(centre + rng.standard_normal(shape) * (width / 6)), least, most).astype(np.int64)
