"""Shapes, axes, lengths and counts that arrive as inputs: such that the output gets the shape that the file says.

Where the file does not say, the mildest number that is always valid: one, zero, or the size that is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from edgert.samples.draw import Fact
from edgert.samples.scope import KnownShape, Site

Rule: TypeAlias = Callable[[Site], Fact]
"""What a place asks of the elements that are read there."""


def at(shape: KnownShape | None, axis: int) -> int | None:
    return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None


def ints(numbers: Sequence[int | None] | None, unknown: int = 1) -> Fact:
    """Exactly these integers; `unknown` where one of them is not known."""
    if numbers is None:
        return Fact(low=unknown, high=unknown)
    return Fact(
        low=unknown,
        high=unknown,
        exact=np.asarray([unknown if number is None else number for number in numbers], np.int64),
    )


def made_shape(site: Site) -> Fact:
    """The shape that the output has; all ones where it is unknown."""
    return ints(site.made())


def reshape(site: Site) -> Fact:
    made = site.made()
    if made is not None and None not in made:
        return ints(made)
    length = at(site.shape(1), 0)
    return ints(None if length is None else [1] * (length - 1) + [-1], unknown=-1)


def expand(site: Site) -> Fact:
    made = site.made()
    return ints(made if made is not None and None not in made else None)


def tile(site: Site) -> Fact:
    made, given = site.made(), site.shape(0)
    if made is None or given is None or len(made) != len(given):
        return ints(None)
    return ints([(out // size if out and size else 1) for out, size in zip(made, given, strict=True)])


def named_axes(site: Site, position: int, count: int) -> list[int]:
    """The axes that the node's input `position` names; `count` of those that change where it is not constant."""
    axes = site.constant(position)
    if axes is not None:
        return [int(axis) for axis in axes.reshape(-1)]
    made, given = site.made(), site.shape(0)
    if made is None or given is None or len(made) != len(given) or position >= len(site.node.inputs):
        return list(range(count))
    changed = [axis for axis, (old, new) in enumerate(zip(given, made, strict=True)) if old != new]
    return (changed + [axis for axis in range(len(given)) if axis not in changed])[:count]


def axes_input(data: int = 0) -> Rule:
    """The axes themselves, as `named_axes` answers for the input at this place."""

    def rule(site: Site) -> Fact:
        length = at(site.shape(site.position), data)
        return ints(None if length is None else named_axes(site, site.position, length), unknown=0)

    return rule


def slice_ends(site: Site) -> Fact:
    """Ends that give the output's shape from starts of zero and steps of one."""
    made, given, count = site.made(), site.shape(0), at(site.shape(2), 0)
    if count is None:
        return ints(None)
    starts, axes = site.constant(1), named_axes(site, 3, count)
    ends: list[int | None] = []
    for index, axis in enumerate(axes):
        size = at(made, axis) if at(made, axis) is not None else at(given, axis)
        start = 0 if starts is None else int(starts.reshape(-1)[index])
        ends.append(None if size is None else start + size)
    return ints(ends, unknown=1)


def count_up(site: Site) -> Fact:
    """0, 1, 2, ...: distinct axes."""
    length = at(site.shape(site.position), 0)
    return ints(None if length is None else list(range(length)), unknown=0)


def moved_axes(site: Site) -> Fact:
    """Axes of Squeeze, Unsqueeze or a reduction, found by comparing the shapes before and after."""
    given, made = site.shape(0), site.made()
    count = at(site.shape(1), 0)
    if count is None:
        count = 1
    if given is None:
        return ints(list(range(count)), unknown=0)
    if site.node.op in ("Unsqueeze", "EXPAND_DIMS"):
        return ints(extra_axes(made, given, count), unknown=0)
    if site.node.op in ("Squeeze", "SQUEEZE") and made is not None:
        return ints(extra_axes(given, made, count), unknown=0)
    if site.node.op in ("Squeeze", "SQUEEZE"):
        return ints([axis for axis, size in enumerate(given) if size == 1][:count], unknown=0)
    if made is not None and len(made) == len(given):
        changed = [axis for axis, (old, new) in enumerate(zip(given, made, strict=True)) if old != new]
        spare = [axis for axis in range(len(given)) if axis not in changed and made[axis] in (1, None)]
        return ints((changed + spare)[:count], unknown=0)
    return ints(extra_axes(given, made, count), unknown=0)


def extra_axes(longer: KnownShape | None, shorter: KnownShape | None, count: int) -> list[int]:
    """Axes of `longer` that `shorter` lacks; the first `count` where the shapes do not tell."""
    if longer is None or shorter is None or len(longer) - len(shorter) != count:
        return list(range(count))
    found: list[int] = []
    for axis, size in enumerate(longer):
        here = axis - len(found)
        if len(found) < count and (here >= len(shorter) or shorter[here] != size):
            found.append(axis)
    return (found + [axis for axis in range(len(longer)) if axis not in found])[:count]


def any_axis(site: Site) -> Fact:
    shape = site.shape(1) if site.node.op == "SPLIT" else site.shape(0)
    return Fact(low=0, high=0 if not shape else len(shape) - 1)


def split_sizes(site: Site) -> Fact:
    given, axis = site.shape(0), site.integer("axis", 0)
    made = [at(site.made(index), axis) for index in range(len(site.node.outputs))]
    if None not in made:
        return ints(made)
    size, length = at(given, axis), at(site.shape(1), 0)
    if size is None or not length:
        return ints(None)
    return ints([size // length] * (length - 1) + [size - size // length * (length - 1)])


def top_k(site: Site) -> Fact:
    size = at(site.made(), site.integer("axis", -1))
    most = at(site.shape(0), site.integer("axis", -1))
    return ints([size if size is not None else min(5, most or 1)])


def range_limit(site: Site) -> Fact:
    size = at(site.made(), 0)
    start, delta = site.constant(0), site.constant(2)
    first = 0.0 if start is None else float(start.reshape(-1)[0])
    step = 1.0 if delta is None else float(delta.reshape(-1)[0])
    return Fact(exact=np.asarray([first + step * (4 if size is None else size)]))


def size_of(axis: int, usual: int) -> Rule:
    """The size of one axis of the output; `usual` where it is unknown."""

    def rule(site: Site) -> Fact:
        size = at(site.made(), axis)
        return ints([usual if size is None else size])

    return rule


def crop_shape(site: Site) -> Fact:
    made, given = site.made(), site.shape(0)
    shape = made if made is not None and None not in made else given
    axes = site.attribute("axes")
    if shape is None:
        return ints(None)
    return ints([at(shape, int(axis)) for axis in axes] if isinstance(axes, tuple) else shape)


def grid_size(site: Site) -> Fact:
    """AffineGrid: N, C, then the spatial sizes; the output N x spatial x rank says all but the channels."""
    made, theta = site.made(), site.shape(0)
    length = at(site.shape(1), 0)
    if made is None or length is None or len(made) != length:
        return ints([at(theta, 0), 1, *([4] * ((length or 4) - 2))])
    return ints([made[0], 1, *made[1:-1]])


def image_shape(site: Site) -> Fact:
    made, length = site.made(), at(site.shape(1), 0)
    spatial = None if made is None else made[2:]
    return ints(spatial if spatial is not None and None not in spatial else [4] * (length or 2), unknown=4)


def block_shape(site: Site) -> Fact:
    """Col2Im: C x prod(block) columns of L places; searched, since only the product is known."""
    made, given = site.made(), site.shape(0)
    if made is None or given is None or None in made or None in given:
        return ints(None)
    product, spatial = (given[1] or 1) // (made[1] or 1), [size or 1 for size in made[2:]]
    rank = len(spatial)
    strides, dilations = per_axis(site, "strides", rank), per_axis(site, "dilations", rank)
    pads = site.attribute("pads")
    padding = pads if isinstance(pads, tuple) else (0,) * 2 * rank
    for block in itertools.product(range(1, min(product, 16) + 1), repeat=rank):
        places = [
            (size + int(padding[axis]) + int(padding[axis + rank]) - dilations[axis] * (block[axis] - 1) - 1)
            // strides[axis] + 1
            for axis, size in enumerate(spatial)
        ]  # fmt: skip
        if int(np.prod(block)) == product and int(np.prod(places)) == given[2]:
            return ints(block)
    return ints(None)


def per_axis(site: Site, name: str, rank: int) -> list[int]:
    found = site.attribute(name)
    return [int(number) for number in found] if isinstance(found, tuple) else [1] * rank


def sequence_split(site: Site) -> Fact:
    """SplitToSequence: one size for all parts, or sizes that add up to the axis."""
    size, length = at(site.shape(0), site.integer("axis", 0)), at(site.shape(1), 0)
    if size is None or not length or length > size:
        return ints(None)
    return ints([*([size // length] * (length - 1)), size - size // length * (length - 1)])


def dft_length(site: Site) -> Fact:
    """MelWeightMatrix: dft_length / 2 + 1 rows."""
    rows = at(site.made(), 0)
    return ints([16 if rows is None else 2 * (rows - 1)])


def _signal_axis(site: Site) -> int:
    """DFT: the axis that its third input names, else the one whose size changes, else the first after the batch."""
    given, named = site.shape(0), site.constant(2)
    if named is not None:
        return int(named.reshape(-1)[0])
    rank = 2 if given is None else len(given)
    made = site.made() or given
    if given is not None and made is not None and len(made) == rank:
        for axis in range(rank - 1):  # the last one holds real and imaginary parts
            if None not in (given[axis], made[axis]) and given[axis] != made[axis]:
                return axis
    return min(1, max(rank - 2, 0))


def signal_axis(site: Site) -> Fact:
    return ints([_signal_axis(site)])


def signal_length(site: Site) -> Fact:
    """DFT: as many points as there are, or as a one-sided spectrum stands for."""
    size = at(site.shape(0), site.integer("axis", _signal_axis(site)))
    made = at(site.made(), site.integer("axis", _signal_axis(site)))
    if site.integer("inverse", 0) and site.integer("onesided", 0) and made is not None:
        size = made
    return ints([size if size is not None else 8])


def frame_length(site: Site) -> Fact:
    window, bins = at(site.shape(2), 0), at(site.made(), 2)
    if window is not None:
        return ints([window])
    size = 16 if bins is None else (2 * (bins - 1) if site.integer("onesided", 1) else bins)
    return ints([min(size, at(site.shape(0), 1) or size)])


def frame_step(site: Site) -> Fact:
    frames, signal = at(site.made(), 1), at(site.shape(0), 1)
    length = site.constant(3)
    size = at(site.shape(2), 0) if length is None else int(length.reshape(-1)[0])
    if frames is None or signal is None or size is None or frames < 2:
        return ints([8])
    return ints([max(1, (signal - size) // (frames - 1))])


def valid_keys(site: Site) -> Fact:
    """Attention: how many keys are not padding; all of them, which also suits a causal mask."""
    keys = site.shape(1)
    size = at(keys, -2)
    return ints(None) if size is None else Fact(low=size, high=size)


def exactly(number: float) -> Rule:
    return lambda site: Fact(low=number, high=number)


def between(low: float | None, high: float | None) -> Rule:
    return lambda site: Fact(low=low, high=high)


def resize_sizes(site: Site) -> Fact:
    made, given, length = site.made(), site.shape(0), at(site.shape(site.position), 0)
    axes = site.attribute("axes")
    shape = made if made is not None and None not in made else given
    if shape is None:
        return ints(None)
    if isinstance(axes, tuple) and len(axes) == length:
        return ints([at(shape, int(axis)) for axis in axes])
    return ints(shape[-length:] if length else shape)


def resize_scales(site: Site) -> Fact:
    made, given, length = site.made(), site.shape(0), at(site.shape(site.position), 0)
    if made is None or given is None or len(made) != len(given):
        return Fact(low=1, high=1)
    ratio = [(out / size if out and size else 1.0) for out, size in zip(made, given, strict=True)]
    axes = site.attribute("axes")
    if isinstance(axes, tuple) and len(axes) == length:
        ratio = [ratio[int(axis)] for axis in axes]
    return Fact(low=1, high=1, exact=np.asarray(ratio, np.float64))


def onnx_pads(site: Site) -> Fact:
    """ONNX: all pads before, then all after; everything is added after."""
    made, given = site.made(), site.shape(0)
    length = at(site.shape(1), 0)
    if made is None or given is None or length is None or len(made) != len(given):
        return Fact(low=0, high=1)
    axes = named_axes(site, 3, length // 2)
    after = [(at(made, axis) or 0) - (at(given, axis) or 0) if at(made, axis) is not None else 0 for axis in axes]
    return ints([0] * len(after) + after, unknown=0)


def tflite_pads(site: Site) -> Fact:
    """TFLite: one row (before, after) an axis."""
    made, given = site.made(), site.shape(0)
    if made is None or given is None or len(made) != len(given) or None in made:
        return Fact(low=0, high=1)
    rows = [(0, (out or 0) - (size or 0)) for out, size in zip(made, given, strict=True)]
    return Fact(low=0, high=1, exact=np.asarray(rows, np.int64))


def trip_count(site: Site) -> Fact:
    carried = len(site.node.inputs) - 2
    scanned = [at(site.made(index), 0) for index in range(carried, len(site.node.outputs))]
    return ints([next((size for size in scanned if size is not None), 3)])


def sequence_lens(axis: int) -> Rule:
    """RNN, LSTM, GRU, ReverseSequence: at most the size of the time axis."""

    def rule(site: Site) -> Fact:
        size = at(site.shape(0), axis)
        return Fact(low=1, high=1 if size is None else size)

    return rule


def reverse_lens(site: Site) -> Fact:
    size = at(site.shape(0), site.integer("time_axis", site.integer("seq_dim", 0)))
    return Fact(low=1, high=1 if size is None else size)
