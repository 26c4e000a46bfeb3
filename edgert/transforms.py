"""Declared steps before and after a model: each a frozen dataclass that is called with an array and returns an array.

    before   Resize -> Grayscale -> Normalise -> Quantise | Cast -> ToLayout
    after    Dequantise -> Softmax -> TopK -> Labels;   NonMaxSuppression

An image is H x W x C (C = 1 or 3), uint8 or float, until `ToLayout` gives it the model's axes. numpy alone is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from edgert.errors import InputError, OptionError
from edgert.graph import Quantization
from edgert.tensor import BITS, INTEGERS, Array, DType, numpy_dtype, shape_text

Transform: TypeAlias = Callable[[Array], Array]
"""Any of the steps below."""
Fit: TypeAlias = Literal["stretch", "crop", "pad"]
"""stretch: both axes to the size; crop: the largest centred window of that aspect; pad: the whole image, bordered."""
Filter: TypeAlias = Literal["bilinear", "nearest"]
Layout: TypeAlias = Literal["nchw", "nhwc", "chw", "hwc", "nhw", "hw"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

RANKED = np.dtype([("index", np.int64), ("score", np.float64)])
"""Element of what `TopK` returns."""


def apply(steps: Sequence[Transform], array: Array) -> Array:
    """The array after every step, in order."""
    for step in steps:
        array = step(array)
    return array


@dataclass(frozen=True, slots=True)
class Resize:
    """An image at another size: H x W x C -> height x width x C, of the same dtype (integers are rounded)."""

    height: int
    """Pixels, at least 1."""
    width: int
    """Pixels, at least 1."""
    fit: Fit = "stretch"
    filter: Filter = "bilinear"
    """bilinear: half-pixel centres, widened when it shrinks, so that nothing aliases; nearest: one source pixel."""
    border: float = 0.0
    """Value of the pixels that `fit='pad'` adds."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise OptionError(f"size {self.height}x{self.width} is empty.", "Give both sides at least 1 pixel.")

    def __call__(self, image: Array) -> Array:
        image = _image(image)
        if self.fit == "pad":
            return self._padded(image)
        if self.fit == "crop":
            image = self._window(image)
        return self._stretched(image, self.height, self.width)

    def _window(self, image: Array) -> Array:
        """The largest centred part with the aspect of the result."""
        height, width = image.shape[:2]
        new_height = max(1, min(height, round(width * self.height / self.width)))
        new_width = max(1, min(width, round(height * self.width / self.height)))
        top, left = (height - new_height) // 2, (width - new_width) // 2
        return image[top : top + new_height, left : left + new_width]

    def _padded(self, image: Array) -> Array:
        height, width = image.shape[:2]
        ratio = min(self.height / height, self.width / width)
        inner = self._stretched(image, max(1, round(height * ratio)), max(1, round(width * ratio)))
        canvas = np.full((self.height, self.width, image.shape[2]), self.border, image.dtype)
        top, left = (self.height - inner.shape[0]) // 2, (self.width - inner.shape[1]) // 2
        canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return canvas

    def _stretched(self, image: Array, height: int, width: int) -> Array:
        if image.shape[:2] == (height, width):
            return image
        if self.filter == "nearest":
            return np.ascontiguousarray(image[_nearest(image.shape[0], height)][:, _nearest(image.shape[1], width)])
        rows = np.tensordot(_triangle(image.shape[0], height), image.astype(np.float32), (1, 0))
        pixels = np.tensordot(_triangle(image.shape[1], width), rows, (1, 1)).transpose(1, 0, 2)
        return _as_dtype(pixels, image.dtype)


def _nearest(old: int, new: int) -> Array:
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)


def _triangle(old: int, new: int) -> Array:
    """Weights (new, old) of linear interpolation between pixel centres; each row sums to 1."""
    support = max(1.0, old / new)  # shrinking averages over all that falls into the new pixel
    centres = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old)[None, :] - centres) / support)
    scaled: Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _as_dtype(pixels: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind not in "iu":
        return np.ascontiguousarray(pixels, dtype=dtype)
    limits = np.iinfo(dtype)
    return np.ascontiguousarray(np.clip(np.rint(pixels), limits.min, limits.max).astype(dtype))


def _image(array: Array) -> Array:
    """The array as H x W x C; a plain H x W gets its channel axis."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(
            f"an array of shape {array.shape} is not an image.", "Give H x W or H x W x C, before `ToLayout`."
        )
    return array


@dataclass(frozen=True, slots=True)
class Grayscale:
    """One channel of luma (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B), same dtype; one channel passes unchanged."""

    def __call__(self, image: Array) -> Array:
        image = _image(image)
        if image.shape[2] == 1:
            return image
        luma = image[:, :, :3].astype(np.float32) @ np.array([[0.299], [0.587], [0.114]], np.float32)
        return _as_dtype(luma, image.dtype)


@dataclass(frozen=True, slots=True)
class Normalise:
    """(pixel * scale - mean) / std in float32, over the last axis."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    """One, or one a channel."""
    std: tuple[float, ...] = (1.0,)
    """One, or one a channel; none is 0."""

    def __post_init__(self) -> None:
        if not self.mean or not self.std or 0.0 in self.std:
            raise OptionError(
                f"mean {self.mean} and std {self.std} cannot normalise.", "Give one number, or one a channel; no std 0."
            )

    def __call__(self, image: Array) -> Array:
        channels = image.shape[-1] if image.ndim else 1
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise OptionError(
                    f"{name} has {len(numbers)} numbers, the image has {channels} channels.",
                    "Give one number, or one a channel.",
                )
        scaled = image.astype(np.float32) * np.float32(self.scale)
        normalised: Array = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return normalised


@dataclass(frozen=True, slots=True)
class Cast:
    """Another element type; an integer type rounds and clips."""

    dtype: DType

    def __call__(self, array: Array) -> Array:
        if self.dtype in INTEGERS:
            return _round_into(array, self.dtype)
        return np.asarray(array).astype(numpy_dtype(self.dtype))


@dataclass(frozen=True, slots=True)
class ToLayout:
    """An image H x W x C in the axes of a model: a batch axis of 1 where the layout has 'n'."""

    layout: Layout = "nchw"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise OptionError(f"layout {self.layout!r} is unknown.", f"Known: {', '.join(LAYOUTS)}.")

    def __call__(self, image: Array) -> Array:
        image = _image(image)
        if "c" not in self.layout:
            if image.shape[2] != 1:
                raise InputError(
                    f"layout {self.layout} has no channel axis, the image has {image.shape[2]} channels.",
                    "Put `Grayscale` (--grayscale) before it.",
                )
            image = image[:, :, 0]
        elif self.layout.endswith("chw"):
            image = image.transpose(2, 0, 1)
        return np.ascontiguousarray(image[None] if "n" in self.layout else image)


@dataclass(frozen=True, slots=True)
class Quantise:
    """Real numbers as a quantised tensor: round(real / scale) + zero point, clipped to the element type."""

    quantization: Quantization
    dtype: DType
    """An integer type."""

    def __call__(self, array: Array) -> Array:
        scale, zero = _broadcast(self.quantization, array.ndim)
        return _round_into(np.rint(array.astype(np.float64) / scale) + zero, self.dtype)


@dataclass(frozen=True, slots=True)
class Dequantise:
    """The real numbers that a quantised tensor stands for, float32."""

    quantization: Quantization

    def __call__(self, array: Array) -> Array:
        scale, zero = _broadcast(self.quantization, array.ndim)
        real: Array = ((array.astype(np.float64) - zero) * scale).astype(np.float32)
        return real


def _broadcast(quantization: Quantization, ndim: int) -> tuple[Array, Array]:
    """Scale and zero point in a shape that broadcasts over an array of `ndim` axes."""
    scale, zero = np.asarray(quantization.scales, np.float64), np.asarray(quantization.zero_points, np.float64)
    if quantization.axis is None:
        return scale.reshape(()), zero.reshape(())
    shape = [1] * ndim
    shape[quantization.axis] = -1
    return scale.reshape(shape), zero.reshape(shape)


def _round_into(array: Array, dtype: DType) -> Array:
    if dtype not in INTEGERS:
        raise OptionError(f"{dtype} is not an integer type.", "Quantise to int8, uint8, int16, ...")
    bits, signed = BITS[dtype], not dtype.startswith("u")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if array.dtype.kind not in "iub":
        if np.isnan(array).any():
            raise InputError(f"NaN has no {dtype}.", "Look at where the numbers come from.")
        array = np.rint(array)
        if bits == 64:  # 2**63 - 1 has no double: clip to the largest double below it
            low, high = int(np.nextafter(float(low), 0.0)) if signed else 0, int(np.nextafter(float(high), 0.0))
    return np.clip(array, low, high).astype(numpy_dtype(dtype))


@dataclass(frozen=True, slots=True)
class Softmax:
    """exp(x) / sum exp(x) along an axis; floats keep their type, integers become float32."""

    axis: int = -1

    def __call__(self, array: Array) -> Array:
        array = array if array.dtype.kind == "f" else array.astype(np.float32)
        exponent = np.exp(array - array.max(axis=self.axis, keepdims=True))
        shares: Array = exponent / exponent.sum(axis=self.axis, keepdims=True)
        return shares


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest along the last axis, largest first: (..., n) -> (..., min(k, n)) of `RANKED`.

    Equal scores keep the order of their indices; NaN comes last.
    """

    k: int = 5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise OptionError(f"the {self.k} largest are none.", "Give k of 1 or more.")

    def __call__(self, scores: Array) -> Array:
        real = np.atleast_1d(scores).astype(np.float64)
        order = np.argsort(-real, axis=-1, kind="stable")[..., : self.k]
        ranked = np.empty(order.shape, RANKED)
        ranked["index"], ranked["score"] = order, np.take_along_axis(real, order, axis=-1)
        return ranked


@dataclass(frozen=True, slots=True)
class Labels:
    """Class numbers (integers, or what `TopK` returns) -> their names, an object array of the same shape."""

    names: tuple[str, ...]
    """In the order of the classes."""

    def __call__(self, classes: Array) -> Array:
        indices = classes["index"] if classes.dtype == RANKED else classes
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self.names):
            raise OptionError(
                f"class {indices.max()} has no name: there are {len(self.names)}.", "Use the model's own labels."
            )
        named: Array = np.array(self.names, dtype=object)[indices]
        return named


@dataclass(frozen=True, slots=True)
class NonMaxSuppression:
    """The best boxes that do not overlap much: (n, 5) rows of x0, y0, x1, y1, score -> the kept rows, best first."""

    iou: float = 0.5
    """Two boxes that share more than this part of their union are one object."""
    score: float = 0.0
    """Boxes below are dropped first."""
    limit: int = 100
    """At most so many boxes."""

    def __call__(self, boxes: Array) -> Array:
        if boxes.ndim != 2 or boxes.shape[1] != 5:
            raise InputError(f"boxes of shape {shape_text(boxes.shape)} are not (n, 5).", "Give x0, y0, x1, y1, score.")
        left = boxes[boxes[:, 4] >= self.score]
        left = left[np.argsort(-left[:, 4], kind="stable")]
        kept: list[Array] = []
        while len(left) and len(kept) < self.limit:
            kept.append(left[0])
            left = left[1:][_overlap(left[0], left[1:]) <= self.iou]
        return np.stack(kept) if kept else boxes[:0]


def _overlap(box: Array, others: Array) -> Array:
    """Intersection over union of one box with each of the others."""
    corner, opposite = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    shared = np.prod(np.maximum(0.0, opposite - corner), axis=1)
    areas = np.prod(others[:, 2:4] - others[:, :2], axis=1) + np.prod(box[2:4] - box[:2])
    share: Array = shared / np.maximum(areas - shared, np.finfo(np.float64).tiny)
    return share
